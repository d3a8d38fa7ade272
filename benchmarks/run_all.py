"""Run all benchmarks one after the other and write benchmarks/RESULTS.md (what `make bench` does).

With names only those are run, and the other sections of RESULTS.md stay as they are: `run_all.py store loader`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine
from measure import HEADER, Row

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
NAMES = (
    "lens",
    "tuned",
    "jacobian",
    "store",
    "loader",
    "capture",
    "memory",
    "tables",
    "rows",
    "scale",
    "artifacts",
    "replay",
    "factorials",
    "generate",
    "cluster",
    "sharing",
    "faults",
    "vouched",
    "peers",
    "explore",
    "by_layer",
)
LARGE = ("explore", "by_layer")  # a browser; 26 GB of disk
# Benchmark -> packages that `pip install -e '.[NAME]'` brings.
EXTRAS = {"cluster": ("distributed",), "peers": ("nnsight", "transformer_lens"), "tuned": ("tuned_lens",)}
NOTES = "<!-- notes: everything below this line is kept by run_all.py -->"
REST = 20  # seconds before each benchmark, so that the load of the last one is forgotten


def run_one(name: str, folder: Path) -> dict[str, Any] | None:
    """Run one benchmark in its own process; its record, or None when it failed."""
    file = folder / f"{name}.json"
    print(f"\n{name}", flush=True)
    done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--json", str(file)], check=False)
    return json.loads(file.read_bytes()) if done.returncode == 0 and file.exists() else None


def missing(name: str) -> bool:
    """True when a benchmark needs packages that are not installed."""
    return any(find_spec(package) is None for package in EXTRAS.get(name, ()))


def section(name: str, record: dict[str, Any] | None) -> list[str]:
    """Markdown of one benchmark: its table, remarks on rows, and how busy the machine was."""
    lines = [f"## {name}", "", f"`python benchmarks/{name}.py`", ""]
    if missing(name):
        return [*lines, f"Not run: needs `pip install -e '.[{name}]'`.", ""]
    if record is None:
        return [*lines, "Failed; see the output of the run.", ""]
    rows = [Row(**{key: row[key] for key in Row.__dataclass_fields__}) for row in record["rows"]]
    table = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    lines += ["| " + " | ".join(cells) + " |" for cells in table]
    remarks = [f"- {row.what}: {row.note}" for row in rows if row.note]
    processor, load = record["machine"].split(",")[0], f"load average {record['load_average']:.2f} before"
    return [
        *lines,
        "",
        *remarks,
        f"- {processor}; {load}; {machine.note(record['others_cores'])}",
        "",
    ]


def earlier(file: Path) -> tuple[dict[str, list[str]], str]:
    """The sections of an earlier file by their names, and what people wrote below the marker."""
    text = file.read_text() if file.exists() else ""
    measured, _, kept = text.partition(NOTES)
    parts = [part.splitlines() for part in measured.split("\n## ")[1:]]
    return {part[0]: [f"## {part[0]}", *part[1:]] for part in parts}, kept.strip()


def page(sections: dict[str, list[str]], kept: str) -> str:
    """The whole of RESULTS.md; it bears no date, so that equal figures make an equal file."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python benchmarks/run_all.py`). Every figure stands beside a limit taken in the same",
        "run, the two in turn, medians of repeats; the ratio is measured / limit. Ratios hold on an idle machine only.",
        "",
        f"Machine: {machine.describe()}",
        "",
    ]
    for name in sorted(sections, key=NAMES.index):
        lines += [*sections[name], ""] if sections[name][-1] else sections[name]
    return "\n".join([*lines, NOTES, "", kept]).rstrip() + "\n"


def main() -> int:
    """Run, write, and fail when a benchmark broke; a missed target is printed and is no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=NAMES, help=f"[default: all but {' and '.join(LARGE)}]")
    names = parser.parse_args().names
    records: dict[str, dict[str, Any] | None] = {}
    sections, kept = earlier(RESULTS)
    with tempfile.TemporaryDirectory(prefix="actlake-bench-") as folder:
        for name in names or [name for name in NAMES if name not in LARGE]:
            if missing(name):
                print(f"\n{name}: not run, needs pip install -e '.[{name}]'")
                records[name] = None
                continue
            time.sleep(REST)
            records[name] = run_one(name, Path(folder))
    sections |= {name: section(name, record) for name, record in records.items()}
    RESULTS.write_text(page(sections, kept))
    missed = [
        f"{name}: {row['what']}" for name, r in records.items() if r for row in r["rows"] if row["verdict"] == "missed"
    ]
    broken = [name for name, record in records.items() if record is None and not missing(name)]
    print(f"\nwrote {RESULTS}; {len(missed)} targets missed{''.join(f'{chr(10)}  {line}' for line in missed)}")
    if broken:
        print(f"failed: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
