"""A lake of 10,000 small artifacts of every kind: opening, listing, the first SQL, against a plain walk over its files.

500 pairs of tiny models: records and heads, streams, captures, tuned lenses, directions, texts, verdicts and tables, all sealed
and valid, made by the code that makes real ones. Each task runs in a new process and is timed there, imports left out: `cold`
without what this package remembers of files, `warm` with it, `again` for the second time in one process. Files stay in the
operating system's cache throughout. Seconds are of CPU time, which other programs disturb less. `--pairs N` makes a smaller lake,
`--lake FOLDER` keeps the lake for the next run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import helpers  # noqa: F401  (the tests' helpers)
import many
from measure import Row, main

PAIRS, LIMIT, REPEATS = 500, 1.0, 3
TASKS = {
    "open": "actlake.open(root)",
    "list captures": "lake.captures",
    "list models": "lake.models",
    "list streams": "lake.streams",
    "list lenses": "lake.lenses()",
    "list pairs": "lake.pairs",
    "list tables": "lake.tables",
    "SQL over captures": "lake.sql('SELECT count(*) FROM captures').fetchall()",
    "SQL over a table": "lake.sql('SELECT avg(block_cos) FROM delta', compute=False).fetchall()",
    "SQL over a table of one pair": (
        "lake.sql(\"SELECT avg(block_cos) FROM delta WHERE pair = 'small007'\", compute=False).fetchall()"
    ),
}
# What is imported when first needed is, before the clock starts.
IMPORTS = "import actlake, duckdb, xarray, actlake.queries.makers, actlake.queries.answer.listings"
TIMED = f"""
import json, os, sys, time
{IMPORTS}
root, task = sys.argv[1:]
lake, found = actlake.open(root) if task != "actlake.open(root)" else None, []
for _ in range(2):
    started = time.process_time()
    eval(task)
    found.append(time.process_time() - started)
print(json.dumps(found))
"""
WALK = """
import json, os, sys, time
def walk():
    for folder, _, files in os.walk(sys.argv[1]):
        for name in files:
            os.stat(os.path.join(folder, name))
found = []
for _ in range(2):
    started = time.process_time()
    walk()
    found.append(time.process_time() - started)
print(json.dumps(found))
"""


def timed(code: str, cache: Path, *words: str) -> list[float]:
    """Seconds of the first and the second time in a new process."""
    environment = {**os.environ, "ACTLAKE_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(pairs: int = PAIRS, lake: Path | None = None) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        root, cache = lake or Path(folder) / "lake", Path(folder) / "cache"
        if not (root / "lake.json").exists():
            many.make_lake(root, pairs)
        files = sum(len(names) for _, _, names in os.walk(root))
        walks, rows = list[float](), list[Row]()
        size = f"{many.PER_PAIR * pairs:,} artifacts in {files:,} files"
        for what, task in TASKS.items():
            cold, warm, again = list[float](), list[float](), list[float]()
            for _ in range(REPEATS):
                walks.append(timed(WALK, cache, str(root))[1])
                shutil.rmtree(cache, ignore_errors=True)
                cold.append(timed(TIMED, cache, str(root), task)[0])
                first, second = timed(TIMED, cache, str(root), task)
                warm.append(first)
                again.append(second)
            walk = statistics.median(walks[-REPEATS:])
            if not what.startswith("SQL"):
                rows.append(Row(f"{what}, warm", statistics.median(warm), LIMIT, "s", "<= 1"))
            for state, seconds in (("cold", cold), ("warm", warm), ("again", again)):
                rows.append(Row(f"{what}, {state}, against os.walk and stat", statistics.median(seconds), walk, "s"))
        rows[0:0] = [Row("os.walk and stat of every file", statistics.median(walks), float("nan"), "s", "", size)]
        return rows


def options(parser: argparse.ArgumentParser) -> None:
    """A smaller lake, or one that stays."""
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of models, {many.PER_PAIR} artifacts each")
    parser.add_argument("--lake", type=Path, help="folder that keeps the lake for the next run; made if need be")


if __name__ == "__main__":
    main("artifacts", run, __doc__, options)
