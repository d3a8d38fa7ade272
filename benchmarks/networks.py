"""The drills of benchmarks/faults.py that need servers: S3 stopped and restarted, and a bad network before S3 and the web."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import fsspec
from actlake.store.core.progress import bar
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move, write_index
from actlake.store.remote.opening import open_store
from drill import Tally, Work, finished, judge, read_all, refusal
from proxy import KINDS, Proxy, bad_network
from servers import S3, environment, served

SHORT = (0.05,) * 6  # pauses between tries where nothing is waited for


def carry(source: Path | str, target: Path | str, **wish: Any) -> None:
    """Move a lake with all that it keeps, or the part of it that is wished for."""
    move(Planner(origin_of(str(source)), origin_of(str(target)), Selection(**{"weights": True, **wish})).plan())


@contextmanager
def bucket(work: Work) -> Iterator[S3]:
    """An S3 server of this drill, with a bucket for lakes."""
    server = S3(work.fresh("s3"))
    server.start()
    try:
        with environment(**server.environment):
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("lakes")
            yield server
    finally:
        server.stop()


def restarts(work: Work) -> Iterator[Tally]:
    """An S3 server that stops in the middle of a push or of reading, and comes back in time, or after the command gave up."""
    rng = Random(work.rng.random())
    pushing, reading = Tally("S3 restarted in a push"), Tally("S3 restarted in a read")
    with bucket(work) as server:
        count = work.times(6)
        with bar("S3 restarts", 2 * count, "faults") as progress:
            for number in range(count):
                _push(pushing, work, server, rng, number)
                progress.advance(1)
                _read(reading, work, server, rng, number)
                progress.advance(1)
    yield pushing
    yield reading


@contextmanager
def _outage(server: S3, rng: Random, gives_up: bool, latest: float = 1.5) -> Iterator[None]:
    """The server stops in the block, and is back soon, or only after it where what runs there `gives_up` in little time."""
    over, stopped, after, away = threading.Event(), threading.Event(), rng.uniform(0, latest), rng.uniform(0.1, 2)

    def cycle() -> None:
        over.wait(after)
        server.stop()
        stopped.set()
        over.wait(None if gives_up else away)
        server.start()

    thread = threading.Thread(target=cycle)
    thread.start()
    try:
        with patch("actlake.store.remote.store.PAUSES", SHORT) if gives_up else nullcontext():
            yield
        stopped.wait(60)
    finally:
        over.set()
        thread.join()


def _push(tally: Tally, work: Work, server: S3, rng: Random, number: int) -> None:
    """Push, the server gone in the middle; push again if that gave up; the bucket then has the lake, byte for byte."""
    url, gives_up = f"s3://lakes/push-{number}", number % 2 == 1
    case = f"push {number}"
    try:
        with _outage(server, rng, gives_up):
            line, _ = refusal(lambda: carry(work.victim.root, url))
        carry(work.victim.root, url)
        carry(url, back := work.fresh("back"))
        tally.count(case, line, finished(back) == work.victim.files)
        if finished(back) != work.victim.files:
            tally.lost.append(case)
    except Exception as error:
        tally.crash(case, error)


def _read(tally: Tally, work: Work, server: S3, rng: Random, number: int) -> None:
    """Read all of a lake in a bucket, the server gone in the middle; some of it where each reader would give up by itself."""
    shutil.rmtree(work.folder / "mirrors", ignore_errors=True)
    gives_up = number % 2 == 1
    file = some_file(work, rng) if gives_up else ""
    case = f"read {number} {file}"
    try:
        with _outage(server, rng, gives_up, 0.5 if gives_up else 1.5):
            judge(tally, case, read_all(f"s3://lakes/push-{number}", work.victim, file))
    except Exception as error:
        tally.crash(case, error)


def some_file(work: Work, rng: Random) -> str:
    """A file of the small lake, of any kind with the same odds."""
    area = rng.choice(sorted({name.split("/")[0] for name in work.victim.files if "/" in name}))
    return rng.choice([name for name in sorted(work.victim.files) if name.startswith(f"{area}/")])


@dataclass(frozen=True)
class Fault:
    """A kind of fault of a network, how likely each request meets it, and what else is drawn."""

    kind: str
    number: int
    odds: float
    rng: Random


def networks(work: Work) -> Iterator[Tally]:
    """Delays, ends in the middle, refusals, short and false bodies, between a client and an S3 or a web server."""
    rng = Random(work.rng.random())
    www = work.fresh("www")
    shutil.copytree(work.victim.root, www / "lake")
    write_index(open_store(www / "lake"))
    with bucket(work) as server, patch("actlake.store.remote.store.PAUSES", SHORT):
        carry(work.victim.root, "s3://lakes/lake")
        with (
            served(www) as web,
            bad_network(int(web.url.rpartition(":")[2]), rng.randrange(1 << 30)) as before_web,
            bad_network(server.port, rng.randrange(1 << 30)) as before_s3,
            environment(AWS_ENDPOINT_URL=before_s3.url),
        ):
            kinds, count = rng.sample(KINDS, len(KINDS)), work.times(36, 3)
            with bar("bad network", 3 * count, "faults") as progress:
                tallies = [Tally(f"bad network, {what}") for what in ("web", "S3", "push to S3")]
                for number in range(count):
                    fault = Fault(kinds[number % len(kinds)], number, rng.choice((0.02, 0.1, 0.5)), rng)
                    _bad_read(tallies[0], work, f"{before_web.url}/lake", before_web, fault)
                    _bad_read(tallies[1], work, "s3://lakes/lake", before_s3, fault)
                    _bad_push(tallies[2], work, f"s3://lakes/bad-{number}", before_s3, fault)
                    progress.advance(3)
    yield from tallies


@contextmanager
def _bad(proxy: Proxy, kind: str, odds: float, rng: Random) -> Iterator[None]:
    """Each request in the block meets this fault, with these odds."""
    proxy.done.clear()
    draw = Random(rng.random())
    proxy.choose = lambda method, path: kind if draw.random() < odds else None
    try:
        yield
    finally:
        proxy.choose = lambda method, path: None


def _bad_read(tally: Tally, work: Work, url: str, proxy: Proxy, fault: Fault) -> None:
    """Read a part of a lake from the start, nothing of it being on this machine."""
    shutil.rmtree(work.folder / "mirrors", ignore_errors=True)
    file = some_file(work, fault.rng)
    case = f"{fault.kind} {fault.number}, {file}"
    try:
        with _bad(proxy, fault.kind, fault.odds, fault.rng):
            found = read_all(url, work.victim, file)
        if proxy.done:
            judge(tally, f"{case}, {proxy.done[0]}", found)
    except Exception as error:
        tally.crash(case, error)


def _bad_push(tally: Tally, work: Work, url: str, proxy: Proxy, fault: Fault) -> None:
    """Push a lake, again without faults if that gave up; what is then in the bucket is the lake, or is known not to be."""
    case = f"{fault.kind} {fault.number}"
    try:
        with _bad(proxy, fault.kind, fault.odds, fault.rng):
            line, _ = refusal(lambda: carry(work.victim.root, url))
        if not proxy.done:
            return
        case = f"{case}, {proxy.done[0]}"
        if line:
            carry(work.victim.root, url)
        back = work.fresh("back")
        broken, _ = refusal(lambda: carry(url, back))
        tally.count(case, line or broken, broken is not None or finished(back) == work.victim.files)
    except Exception as error:
        tally.crash(case, error)
