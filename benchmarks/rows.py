"""Every row of the index on the embedded pair, in one command: cold (nothing but captures there), and the same again.

Then fifteen rows by name, without figures. The captures (both variants of pocket on all 262 prompts, native and teacher
streams, attention entropies) are made beforehand and are not part of the times. Each run is a process of its own, imports
included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actlake.queries.rows.registry import queries
from measure import Row, main

COLD, WARM = 300.0, 10.0  # seconds that the runs may take
FIFTEEN = ["L1", "L2", "L3", "L8", "L9", "0A", "0B", "0G", "0H", "0J", "1A", "exp10", "exp16", "exp22", "tuned"]


def actlake(*words: str) -> str:
    """Run an actlake command and return what it prints."""
    done = subprocess.run([sys.executable, "-m", "actlake", *words], check=True, capture_output=True, text=True)
    return done.stdout


def seconds(*words: str) -> tuple[float, str]:
    """How long a command takes, and what it prints."""
    started = time.perf_counter()
    said = actlake(*words)
    return time.perf_counter() - started, said


def run() -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        lake = ("--lake", str(Path(folder) / "lake"))
        os.environ["ACTLAKE_CACHE"] = str(Path(folder) / "cache")  # figures drawn before are kept there
        options = ("--no-generate", "--pair", "pocket", "--json", "--out", str(Path(folder) / "answers"), *lake)
        actlake("capture", "pocket", "--stream", "native", "--stream", "teacher", "--profile", "attention", *lake)
        cold, said = seconds("run", "--all", *options)
        warm, _ = seconds("run", "--all", *options)
        fifteen, _ = seconds("run", *FIFTEEN, *options)
        answered = len(json.loads(said)["answers"])
        note = f"{answered} of {len(queries())} rows can be answered from these captures"
        return [
            Row("all rows on pocket, cold, vs 5 minutes", cold, COLD, "s", "<= 1", note),
            Row("all rows on pocket, warm, vs 10 seconds", warm, WARM, "s", "<= 1"),
            Row("fifteen rows on pocket, warm, vs 10 seconds", fifteen, WARM, "s", "<= 1", " ".join(FIFTEEN)),
        ]


if __name__ == "__main__":
    main("rows", run, __doc__)
