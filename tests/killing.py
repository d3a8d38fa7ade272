"""A process that captures in forked children and kills them, at a moment or before a file operation.

It imports everything once (what a first child turned out to need) and runs no tensor operation itself, so that forking
it is safe and cheap. Orders are JSON lines on standard input, {"lake", "after": seconds or null, "operation": number, part of a file's name or null, "rank": [rank, world] or null, "by_layer": true or left out}; each
is answered by one line, {"killed", "seconds", "operations"}.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import tiny
import torch
from actlake.capture.run.ranks import ALONE, Rank
from working import Counter


def child(order: dict[str, Any], pair: Any, answer: int) -> None:
    """Capture, then say how many file operations it took; never returns."""
    status = 1
    try:
        counter = Counter(order["lake"], order["operation"])
        sys.addaudithook(counter)
        rank = Rank(*order["rank"]) if order.get("rank") else ALONE
        layers = order.get("by_layer", False)
        stream = tiny.BARE if layers else tiny.NATIVE
        tiny.capture(Path(order["lake"]), pair, stream, variants=("it",), batch=2, rank=rank, by_layer=layers)
        os.write(answer, f"{counter.count}\n".encode())
        if order.get("modules"):
            Path(order["modules"]).write_text("\n".join(sys.modules))
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run(order: dict[str, Any], pair: Any) -> dict[str, Any]:
    """Fork one child and wait for it, or kill it when its time is over."""
    started, (reading, writing) = time.monotonic(), os.pipe()
    pid = os.fork()
    if pid == 0:
        child(order, pair, writing)
    os.close(writing)
    # The pipe closes when the child ends, whichever way.
    ready, _, _ = select.select([reading], [], [], order["after"])
    if not ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    count = os.read(reading, 20).strip()
    os.close(reading)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status:
        raise SystemExit(f"the capture failed with status {status}")
    return {"killed": killed, "seconds": seconds, "operations": int(count or 0)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, work = Path(sys.argv[1]), Path(sys.argv[2])
    spec = [tiny.spec(folder / variant, f"{folder.name}-{variant}") for variant in ("pt", "it")]
    tiny_pair = tiny.PairSpec(folder.name, spec[0], spec[1], {})
    run({"lake": str(work / "first"), "after": None, "operation": None, "modules": str(work / "modules")}, tiny_pair)
    for module in (work / "modules").read_text().split("\n"):
        with contextlib.suppress(Exception):  # a module that exists under this name only while another is imported
            importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), tiny_pair)), flush=True)
