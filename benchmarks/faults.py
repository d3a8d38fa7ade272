"""The fault drill: seeded kills, damage, bad networks, full disks and clocks that jump, on copies of one small lake.

Every fault must be detected (one line that names the object, exit code 2) or survived (the right answer, bit for bit). Silent
wrong answers, tracebacks for what is the user's or the world's fault, and lost sealed data must be none.
"""

import argparse
import errno
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import helpers  # noqa: F401  (the tests' helpers)
import mutate
import tiny
from actlake.capture.streams.prompts import read_prompts
from actlake.queries.rows.header import parse
from actlake.store.core.catalog import load_catalog
from actlake.store.core.progress import bar
from drill import Job, Tally, Work, command, finished, intact, judge, make_work, read_all, refusal, sealed_in, start
from measure import Row, main
from networks import carry, networks, restarts

PAGE = 4096  # bytes that disks give out at once
YEAR = 365.25 * 86400
FULL = ("are free", "disk full", "No space")  # words that name a full disk
REPAIR = re.compile("; (restore|delete|write) ")  # how a line says what mends a damaged file
QUICK = 0.08  # share of the faults that --quick tries
ROOT = Path(__file__).parent.parent


def steps(label: str, count: int) -> Iterator[int]:
    """Numbers of faults, under a progress bar."""
    with bar(label, count, "faults") as progress:
        for number in range(count):
            yield number
            progress.advance(1)


# --- damaged files -------------------------------------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """The type of a file of a lake: its place without the names that differ from lake to lake."""
    area, (_, _, inside) = name.split("/")[0], name.partition(".zarr/")
    if inside:
        return f"{area}: {inside.partition('/c/')[0]}{'/c' if '/c/' in inside else ''}"
    last = Path(name).name
    return f"{area}: {last if last in ('model.json', 'condition.json') else Path(name).suffix}"


def flip_or_cut(data: bytes, rng: Random) -> bytes:
    """One bit turned over, as disks and memory do, or only a beginning left."""
    if data and rng.random() < 0.6:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return mutate.cut(data, rng)


def damage(work: Work) -> Tally:
    """Bits turned over and ends cut off, in every type of file."""
    tally, victim, rng = Tally("bit flips and cut files"), work.victim, Random(work.rng.random())
    kinds: dict[str, list[str]] = {}
    for name in sorted(victim.files):
        kinds.setdefault(kind_of(name), []).append(name)
    plan, count = rng.sample(sorted(kinds), len(kinds)), work.times(8 * len(kinds))
    for number in steps(tally.name, count):
        name = rng.choice(kinds[plan[number % len(plan)]])
        file = victim.root / name
        data = flip_or_cut(victim.files[name], rng)
        if data == victim.files[name]:
            continue
        file.write_bytes(data)
        found = read_all(victim.root, victim, name)
        if helpless := [line for line in found.refused if not REPAIR.search(line)]:
            found.crashed.append(("says not what to do", RuntimeError(helpless[0])))
        judge(tally, f"{name}, fault {number}", found)
        victim.restore()
    tally.notes.append(f"{min(count, len(kinds))} types of file")
    return tally


FUZZED = {
    "manifests": ("manifest.json", "model.json", "condition.json", ".json"),
    "Zarr metadata": ("zarr.json",),
    "Parquet files": (".parquet",),
}


def fuzz(work: Work) -> Iterator[Tally]:
    """Records, metadata and tables changed as a stranger or a bug would; half of them with all hashes made to fit."""
    victim, rng = work.victim, Random(work.rng.random())
    for what, ends in FUZZED.items():
        tally = Tally(f"fuzzed {what}")
        names = [
            name for name in victim.files if name.endswith(ends) and (what != "manifests" or "zarr.json" not in name)
        ]
        for number in steps(tally.name, work.times(200)):
            name, consistent = rng.choice(names), rng.random() < 0.5
            deed = mutate.spoil(victim.root / name, rng)
            if consistent:
                mutate.again(victim.root, victim.root / name)
            # Values that a stranger wrote, with the hashes that go with them, are read as they are.
            case = f"{deed} of {name}, fault {number}"
            plain = not consistent and deed in ("flip", "cut", "grow", "number")
            judge(tally, case, read_all(victim.root, victim, name), values=plain)
            victim.restore()
        yield tally
    yield fuzz_pulls(work, rng)
    yield from fuzz_outside(work, rng)


WISHES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"boundaries": (0,)},
    {"limit": 2},
    {"names": ("llama",)},
    {"variants": ("it",)},
)


def fuzz_pulls(work: Work, rng: Random) -> Tally:
    """Copies of lakes and parts of lakes in which something was changed: refused, or what arrives is what is there."""
    tally, part = Tally("pulls of fuzzed lakes"), work.fresh("part")
    carry(work.victim.root, part, boundaries=(0, 2))
    for number in steps(tally.name, work.times(200)):
        source, target, wish = work.fresh("theirs"), work.fresh("inside") / "mine", rng.choice(WISHES)
        shutil.copytree(rng.choice((work.victim.root, part)), source)
        name = rng.choice(sorted(tiny.tree(source)))
        deed = mutate.spoil(source / name, rng)
        if rng.random() < 0.5:
            mutate.again(source, source / name)
        case = f"{deed} of {name}, fault {number}"
        try:
            line, _ = refusal(partial(carry, source, target, **wish))
        except Exception as error:
            tally.crash(case, error)
            continue
        theirs, mine = tiny.tree(source), tiny.tree(target) if target.exists() else {}
        whole = [file for file in mine if not (file.endswith("partial.json") or (wish and "/c/" in file))]
        beside = [file for file in (target.parent.iterdir() if target.parent.exists() else ()) if file != target]
        tally.count(case, line, not beside and all(mine[file] == theirs.get(file) for file in whole))
    return tally


def fuzz_outside(work: Work, rng: Random) -> Iterator[Tally]:
    """Catalogs, headers of query files and prompt sets: read or refused."""
    kinds: dict[str, tuple[str, list[Path], Callable[[Path], Any]]] = {
        "catalogs": ("catalog.yaml", [ROOT / "catalog.yaml", work.catalog], load_catalog),
        "query files": (
            "query.sql",
            sorted((ROOT / "queries" / "rows").glob("*.sql")),
            lambda file: parse(file.read_text(errors="replace"), file.name),
        ),
        "prompt sets": ("prompts.jsonl", [work.folder / "tiny.jsonl"], read_prompts),
    }
    for what, (name, good, reader) in kinds.items():
        tally, file = Tally(f"fuzzed {what}"), work.folder / "outside" / name
        file.parent.mkdir(exist_ok=True)
        for number in steps(tally.name, work.times(200)):
            file.write_bytes(rng.choice(good).read_bytes())
            deed = mutate.spoil(file, rng)
            try:
                tally.count(f"{deed}, fault {number}", refusal(partial(reader, file))[0])
            except Exception as error:
                tally.crash(f"{deed}, fault {number}", error)
        yield tally


# --- kills ---------------------------------------------------------------------------------------------------------------


def kills(work: Work) -> Iterator[Tally]:
    """SIGKILL of capture, push, pull and the making of a table, at random moments; run again, the result is the same."""
    for job, most in zip(work.jobs(), (40, 20, 20, 20), strict=True):
        yield _kill(work, job, work.times(most, 2))


def _kill(work: Work, job: Job, count: int) -> Tally:
    """Kill a command, sometimes several times in a row, then run it to its end."""
    tally, rng, log = Tally(f"kill -9 of {job.what}"), Random(work.rng.random()), work.folder / "log.txt"
    expected, done, prepare, words = finished(job.result), 0, job.prepare, job.words
    prepare(first := work.fresh("kill-lake"))
    start(["--version"], log).join()  # so that the process that others are forked from is there
    started = time.monotonic()
    process = start(words(first), log)
    process.join()
    seconds, lake = time.monotonic() - started, first
    for number in steps(tally.name, count):
        if process.exitcode == 0:  # it got through: another one
            done += 1
            _compare(tally, f"kill {number}", finished(lake), expected)
            prepare(lake := work.fresh("kill-lake"))
        elif process.exitcode != -9:
            tally.tracebacks.append(f"kill {number}: exit code {process.exitcode}: {log.read_text()[-300:]}")
        process = start(words(lake), log)
        process.join(rng.uniform(0.02, 1.0) * seconds)
        process.kill()
        process.join()
        tally.tried += process.exitcode == -9
        sealed = sealed_in(lake) if (lake / "lake.json").exists() else []
        if sealed:
            intact(lake, tally, f"kill {number}", sealed)
    process = start(words(lake), log)
    process.join()
    if process.exitcode:
        tally.tracebacks.append(f"the last run: exit code {process.exitcode}: {log.read_text()[-300:]}")
    _compare(tally, "the last run", finished(lake), expected)
    tally.survived = tally.tried - len(tally.wrong)
    tally.notes.append(f"{seconds:.1f} s undisturbed, got through {done} times between kills")
    return tally


def _compare(tally: Tally, case: str, found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    if found != expected:
        names = found.keys() | expected.keys()
        other = sorted(name for name in names if found.get(name) != expected.get(name))
        tally.wrong.append(f"{case}: {len(other)} files differ, {other[0]} first")


# --- full disks ----------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A disk of so many bytes, and what makes it large; None where the system lets nobody mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return

    def enlarge() -> None:
        subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)

    try:
        yield enlarge
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def failing_flush(last: int) -> Iterator[Callable[[], None]]:
    """Where no disk can be mounted: the flush of this number finds the disk full, until the block ends that."""
    flush, left = os.fsync, [last]

    def full(fd: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(fd)

    with patch("os.fsync", full):
        yield lambda: left.__setitem__(0, -1)


def full_disks(work: Work) -> Iterator[Tally]:
    """A disk that fills up at a random moment; then there is room, and the same command goes on."""
    for job in work.jobs():
        yield _fill(work, job)


def _fill(work: Work, job: Job) -> Tally:
    tally, rng, expected = Tally(f"disk full in {job.what}"), Random(work.rng.random()), finished(job.result)
    prepare, words = job.prepare, job.words
    prepare(before := work.fresh("disk"))
    taken, needed = (sum(-(-len(data) // PAGE) for data in tree.values()) for tree in (finished(before), expected))
    for number in steps(tally.name, work.times(12)):
        disk = work.fresh("disk")
        size = rng.randrange(taken + 1, needed + 1) * PAGE
        with small_disk(disk, size) as enlarge:
            lake, case = disk / "lake", f"{size} bytes, fault {number}"
            with failing_flush(rng.randrange(1, 60)) if enlarge is None else _nothing(enlarge) as room:
                try:
                    prepare(lake)
                except OSError:
                    continue
                try:
                    code, line = command(*words(lake))
                except Exception as error:
                    tally.crash(case, error)
                    continue
                sealed = sealed_in(lake) if (lake / "lake.json").exists() else []
                room()
                if sealed:
                    intact(lake, tally, case, sealed)
                # Refused before it began, or stopped on its way.
                good = code == 2 and line.count("error:") == 1 and any(words in line for words in FULL)
                if code and not good:
                    tally.crash(case, RuntimeError(f"exit code {code}: {line}"))
                    continue
                code, rest = command(*words(lake)) if code else (0, "")
                right = code == 0 and finished(lake) == expected
                tally.count(f"{case}: {rest}", line if good and right else None, right)
    return tally


@contextmanager
def _nothing(room: Callable[[], None]) -> Iterator[Callable[[], None]]:
    yield room


# --- clocks --------------------------------------------------------------------------------------------------------------


class Jumping:
    """Clocks that are years off, another way each time; files' times that change under a running command."""

    def __init__(self, lake: Path, rng: Random):
        self.lake, self.rng, self.jumps = lake, rng, 0
        self._time, self._time_ns, self._over = time.time, time.time_ns, threading.Event()

    def _off(self) -> float:
        self.jumps += 1
        return self.rng.uniform(-60, 60) * YEAR

    def touch(self) -> None:
        """Give every file of the lake a time of another decade."""
        for file in self.lake.rglob("*"):
            moment = max(1.0, self._time() + self.rng.uniform(-50, 50) * YEAR)
            try:
                os.utime(file, (moment, moment))
                self.jumps += 1
            except FileNotFoundError:  # it was a temporary one
                continue

    def _keep_on(self) -> None:
        while not self._over.wait(0.02):
            self.touch()

    def __enter__(self) -> "Jumping":
        self._patches = ExitStack()
        self._patches.enter_context(patch("time.time", lambda: max(1.0, self._time() + self._off())))
        self._patches.enter_context(patch("time.time_ns", lambda: max(1, self._time_ns() + int(1e9 * self._off()))))
        self._thread = threading.Thread(target=self._keep_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()
        self._over.set()
        self._thread.join()


def clocks(work: Work) -> Tally:
    """Captures, moves, tables and reads while clocks and files' times jump by decades; nothing may change."""
    tally, rng = Tally("clocks that jump"), Random(work.rng.random())
    jumps, jobs = 0, [*work.jobs(), None]
    for number in steps(tally.name, work.times(15, len(jobs))):
        lake, job = work.fresh("clock"), jobs[number % len(jobs)]
        case = f"{job.what if job else 'reading'}, fault {number}"
        if job:
            job.prepare(lake)
        else:
            shutil.copytree(work.victim.root, lake)
        jumping = Jumping(lake, rng)
        jumping.touch()
        try:
            with jumping:
                if not job:
                    judge(tally, case, read_all(lake, work.victim))
                    continue
                code, line = command(*job.words(lake))
            right = code == 0 and finished(lake) == finished(job.result)
            tally.count(f"{case}: {line}", None, right)
        except Exception as error:
            tally.crash(case, error)
        finally:
            jumps += jumping.jumps
    tally.notes.append(f"{jumps:,} jumps")
    return tally


def drills(work: Work) -> Iterator[Tally]:
    """All drills, one after the other."""
    yield damage(work)
    yield from fuzz(work)
    yield from kills(work)
    yield from full_disks(work)
    yield clocks(work)
    yield from restarts(work)
    yield from networks(work)


def run(seed: int = 0, quick: bool = False, share: float | None = None) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="actlake-faults-") as folder, patch.dict(os.environ, OMP_NUM_THREADS="1"):
        os.environ["ACTLAKE_CACHE"] = f"{folder}/mirrors"
        work = make_work(Path(folder), seed, share if share is not None else QUICK if quick else 1.0)
        rows = []
        for tally in drills(work):
            rows.append(tally.row())
            print(f"{rows[-1].what}: {rows[-1].measured:.0f} of {tally.tried}; {rows[-1].note}", flush=True)
        return rows


def options(parser: argparse.ArgumentParser) -> None:
    """Seed and size."""
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--quick", action="store_true", help="a twelfth of the faults")


if __name__ == "__main__":
    main("faults", run, __doc__, options)
