"""Every row of the index on the embedded pair, in one command: cold (nothing but captures there), and the same again.

The captures (both variants of pocket on all 262 prompts, native and teacher streams, attention entropies) are made
beforehand and are not part of the times. Each run is a process of its own, imports and figures included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actlake.queries.registry import queries
from measure import Row, main

COLD, WARM = 300.0, 10.0  # seconds that the runs may take


def actlake(*words: str) -> str:
    """Run an actlake command and return what it prints."""
    done = subprocess.run([sys.executable, "-m", "actlake", *words], check=True, capture_output=True, text=True)
    return done.stdout


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        lake = ("--lake", str(Path(folder) / "lake"))
        actlake("capture", "pocket", "--stream", "native", "--stream", "teacher", "--profile", "attention", *lake)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            said = actlake(
                "run",
                "--all",
                "--no-generate",
                "--pair",
                "pocket",
                "--json",
                "--out",
                str(Path(folder) / "answers"),
                *lake,
            )
            seconds.append(time.perf_counter() - started)
        answered = len(json.loads(said)["answers"])
        note = f"{answered} of {len(queries())} rows can be answered from these captures"
        return [
            Row("all rows on pocket, cold, vs 5 minutes", seconds[0], COLD, "s", "<= 1", note),
            Row("all rows on pocket, warm, vs 10 seconds", seconds[1], WARM, "s", "<= 1"),
        ]


if __name__ == "__main__":
    main("rows", run, __doc__)
