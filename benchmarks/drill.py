"""What the drills of benchmarks/faults.py share: the small lake, how a fault is counted, and commands that can be killed."""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from math import nan
from pathlib import Path
from random import Random
from typing import Any

import helpers  # noqa: F401  (the tests' helpers)
import tiny
from actlake.cli import main
from actlake.store.captures.reader import list_captures
from actlake.store.captures.verify import verify
from actlake.store.core.errors import LakeError
from actlake.store.core.schema import PULLED
from actlake.store.format.paths import Layout
from measure import Row
from victim import Victim, make_victim, readers, same

LENS = "SELECT pair, variant, count(*), sum(kl_final_layer), sum(entropy) FROM lens GROUP BY ALL ORDER BY ALL"
WARM = (  # what commands import
    *(
        "actlake.cli.main",
        "actlake.capture.run.capture",
        "actlake.queries.answer.answer",
        "actlake.store.exchange.plan",
        "s3fs",
    ),
    *("transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama"),
)
SHOWN = 3  # of the faults that came out badly


@dataclass
class Tally:
    """Faults of one drill, by what came of them. A fault is detected or survived; the three lists must stay empty."""

    name: str
    tried: int = 0
    detected: int = 0
    survived: int = 0
    wrong: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    described: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """What must not be."""
        kinds = (("wrong", self.wrong), ("traceback", self.tracebacks), ("lost", self.lost))
        return [f"{kind}: {case}" for kind, some in kinds for case in some]

    def count(self, case: str, found: str | None, right: bool = True) -> None:
        """One fault: `found` is the line that refuses (None: none did), `right` whether what was read is what was there."""
        self.tried += 1
        if found is not None:
            self.detected += 1
        elif right:
            self.survived += 1
        else:
            self.wrong.append(case)

    def crash(self, case: str, error: BaseException) -> None:
        """One fault that ended in an exception no user should see."""
        self.tried += 1
        self.tracebacks.append(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def row(self) -> Row:
        """The figures: how many came out badly, of how many."""
        counted = f"{self.detected} detected, {self.survived} survived"
        bad = f"{len(self.wrong)} silent wrong, {len(self.tracebacks)} tracebacks, {len(self.lost)} lost"
        described = [f"of the survived {self.described} with another description"] if self.described else []
        note = "; ".join([f"{counted}; {bad}", *described, *self.notes, *self.bad[:SHOWN]])
        return Row(f"{self.name}: came out badly", len(self.bad), self.tried or nan, "faults", "<= 0", note)


def refusal(action: Callable[[], Any]) -> tuple[str | None, Any]:
    """The one line that refuses, or None and the result; any other exception goes on."""
    try:
        return None, action()
    except LakeError as error:
        line = str(error)
        if "\n" in line or not line.isprintable() or not 20 < len(line) < 2000:
            raise AssertionError(f"not one clear line: {line!r}") from error
        return line, None


def hangs(file: str, reader: str) -> bool:
    """Whether a reader of a lake reads a file, as far as their names tell."""
    kind, _, rest = reader.partition(" ")
    area, _, name = rest.partition(" ")[2].partition("/")
    stem = name.removesuffix("/condition.json").removesuffix(".json").removesuffix(".parquet").removesuffix(".zarr")
    if file.startswith("streams/") and kind == "captures":
        return not name or Path(file).stem == Path(stem).name
    return file.split("/")[0] == kind and (not area or file.startswith(f"{area}/{stem}"))


@dataclass
class Reading:
    """What came of reading a lake with all its readers: lines that refused, readers with other values, crashes."""

    refused: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    crashed: list[tuple[str, BaseException]] = field(default_factory=list)
    verified: bool = True


def read_all(place: Path | str, victim: Victim, file: str = "") -> Reading:
    """Read a lake, or what hangs on one file of it, and compare with what the undamaged one gave."""
    found = Reading()
    try:
        line, layout = refusal(lambda: Layout.open(place))
    except Exception as error:
        return Reading(crashed=[("open", error)])
    if line:
        return Reading([line])
    for name, reader in readers(layout, victim.files).items():
        if file and not hangs(file, name):
            continue
        try:
            line, value = refusal(reader)
        except Exception as error:
            found.crashed.append((name, error))
            continue
        if line:
            found.refused.append(line)
        elif " verify " in name:
            found.verified &= value
        elif not same(value, victim.values[name]):
            found.other.append(name)
    return found


def judge(tally: Tally, case: str, found: Reading, values: bool = True) -> None:
    """Count one fault by what reading gave; without `values` other values are no fault, as where hashes were made to fit.

    A number, table or text that is another one and that nothing refuses and `verify` does not find is a silent wrong answer.
    Fields that no number hangs on (provenance, names) have no checksum of their own: they are counted apart.
    """
    if found.crashed:
        tally.crash(f"{case}: {found.crashed[0][0]}", found.crashed[0][1])
        return
    wrong = [name for name in found.other if name.split()[1] != "notes" and values and found.verified]
    if wrong:
        tally.count(f"{case}: {wrong[0]}", None, right=False)
        return
    tally.described += bool(values and found.other and found.verified and not found.refused)
    line = found.refused[0] if found.refused else None if found.verified else "found by verify"
    tally.count(case, line)


def intact(root: Path, tally: Tally, case: str, sealed: Iterable[str]) -> None:
    """Sealed captures stay sealed and whole whatever happens: those that are not are lost."""
    layout = Layout.open(root)
    there = {Path(row.path).relative_to(layout.root).as_posix(): row for row in list_captures(layout).itertuples()}
    for name in sealed:
        row = there.get(name)
        if row is None or not row.sealed or not verify(layout, layout.root / name).ok:
            tally.lost.append(f"{case}: {name}")


def sealed_in(root: Path) -> list[str]:
    """The captures of a lake that are sealed now."""
    return [file.parent.relative_to(root).as_posix() for file in root.glob("captures/*/[!.]*.zarr/manifest.json")]


def finished(root: Path) -> dict[str, bytes]:
    """All files of a lake but for half-written ones outside of captures, which nothing reads, and the note on its origin."""
    names = (".tmp", ".partial", ".lock", ".merged", PULLED)
    return {
        name: data for name, data in tiny.tree(root).items() if name.startswith("captures/") or not name.endswith(names)
    }


# --- the work that is disturbed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command that makes something in a lake: what must be there first, its words, and the lake it must give."""

    what: str
    prepare: Callable[[Path], None]
    words: Callable[[Path], list[str]]
    result: Path


@dataclass
class Work:
    """A pair, its catalog, a small lake with one of everything, and how much to do to it."""

    folder: Path
    rng: Random
    share: float
    catalog: Path
    pair: Any
    victim: Victim

    def times(self, most: int, least: int = 1) -> int:
        """How many faults of a kind this run tries."""
        return max(round(most * self.share), least)

    def copy(self, name: str) -> Path:
        """A fresh copy of the small lake."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.victim.root, self.folder / name))

    def fresh(self, name: str) -> Path:
        """A place where nothing is."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    @cached_property
    def whole(self) -> Path:
        """The small lake with the table lens as `sql` makes it."""
        self._untabled(lake := self.fresh("whole"))
        command("sql", LENS, "--lake", str(lake))
        return lake

    @cached_property
    def captured(self) -> Path:
        """What the capture command makes when nothing disturbs it."""
        command(*self.capture(lake := self.fresh("captured")))
        return lake

    def _untabled(self, lake: Path) -> None:
        shutil.copytree(self.victim.root, lake)
        shutil.rmtree(lake / "tables" / "lens")

    def jobs(self) -> list[Job]:
        """What is killed and runs out of disk: a capture, a push, a pull, and the making of a table."""

        def nothing(lake: Path) -> None:
            """The command makes its lake itself."""

        whole = str(self.whole)
        return [
            Job("capture", nothing, self.capture, self.captured),
            Job("push", nothing, lambda lake: ["push", str(lake), "--lake", whole, "--with-weights"], self.whole),
            Job("pull", nothing, lambda lake: ["pull", whole, "--lake", str(lake), "--with-weights"], self.whole),
            Job("a table", self._untabled, lambda lake: ["sql", LENS, "--lake", str(lake)], self.whole),
        ]

    def capture(self, lake: Path | str) -> list[str]:
        """The command that captures the pair."""
        most = ("--max-new-tokens", "6", "--batch", "2")
        named = ("--stream", "native", "--stream", "teacher", "--prompts", str(self.folder / "tiny.jsonl"))
        return ["capture", "llama", *named, *most, "--lake", str(lake), "--catalog", str(self.catalog)]


def make_work(folder: Path, seed: int, share: float) -> Work:
    """Make all that the drills damage copies of."""
    pair = tiny.make_pair(folder / "llama", "llama")
    rows = [f'{{"id": "{i}", "category": "{c}", "text": "{t}"}}' for i, c, t in tiny.TEXTS if "\n" not in t]
    (folder / "tiny.jsonl").write_text("\n".join(rows) + "\n")
    catalog = folder / "catalog.yaml"
    catalog.write_text("pairs:\n  llama:\n    pt: {path: llama/pt}\n    it: {path: llama/it}\n")
    victim = make_victim(folder / "lake", pair, tiny.NATIVE, tiny.TEACHER)
    return Work(folder, Random(seed), share, catalog, pair, victim)


def command(*words: str) -> tuple[int, str]:
    """Run an actlake command in this process: exit code and what it printed on standard error. A crash goes on as it is."""
    case, before = StringIO(), sys.argv
    sys.argv = ["actlake", *words]
    try:
        with redirect_stderr(case), redirect_stdout(StringIO()):
            main.main()
        return 0, case.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), case.getvalue()
    finally:
        sys.argv = before


def _apart(words: list[str], log: str, environment: dict[str, str]) -> None:
    """The command as a process of its own, its output in a file."""
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["actlake", *words]
    main.main()


def start(words: list[str], log: Path, **environment: str) -> Any:
    """Start an actlake command in a process forked from one that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WARM))
    process = context.Process(target=_apart, args=(words, str(log), environment))
    process.start()
    return process
