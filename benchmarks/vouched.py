"""What vouches for a lake: each file damaged in five ways, each value of each record changed, and lakes of equal names moved.

Each fault must be found by `actlake verify` (a line that names the file), or show in what `actlake cite` says and a lock file
records. What was only damaged, and not made to fit, must be refused by what reads it, or give the same answer.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import helpers  # noqa: F401  (the tests' helpers)
import mutate
import tiny
from actlake.capture.run.check import check_captures
from actlake.queries.answer.lock import FILE, hash_of
from actlake.store.captures.reader import list_captures
from actlake.store.captures.verify import citation
from actlake.store.core.catalog import ProfileSpec, load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from drill import read_all, refusal
from faults import kind_of, steps
from measure import Row, main
from networks import carry
from victim import Victim, make_victim

FOLDERS = ("texts", "lenses", "directions")  # of whose artifacts a lock file has one hash each
PROFILE = ProfileSpec("full", ("resid", "mlp_out"), "auto", "auto", 64)
DEEDS = ("flip", "cut", "exchange", "delete", "edit")
SHOWN = 6  # faults of a row that came out badly


@dataclass
class Count:
    """What came of the faults of one kind of file and damage; the last three must stay empty."""

    found: int = 0
    visible: int = 0
    silent: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """What must not be."""
        kinds = (("silent", self.silent), ("answered from damage", self.answered), ("traceback", self.tracebacks))
        return [f"{kind}: {case}" for kind, some in kinds for case in some]

    @property
    def tried(self) -> int:
        """How many faults there were."""
        return self.found + self.visible + len(self.silent) + len(self.tracebacks)


Counts = dict[tuple[str, str], Count]


# --- damage --------------------------------------------------------------------------------------------------------------


def siblings(name: str, names: list[str]) -> list[str]:
    """Files of the same kind, those of its own artifact first, that could be put in a file's place."""
    return [other for other in names if other != name and kind_of(other) == kind_of(name)]


def do(deed: str, victim: Victim, name: str, rng: Random) -> bool:
    """Damage a file of the lake in place; False where that can't be done to it."""
    file, data = victim.root / name, victim.files[name]
    if deed == "flip":
        at = rng.randrange(len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
    elif deed == "cut":
        file.write_bytes(data[: rng.choice((0, len(data) // 2, len(data.rstrip()) - 1))])  # a line feed says nothing
    elif deed == "delete":
        file.unlink()
    elif deed == "exchange":
        others = [other for other in siblings(name, sorted(victim.files)) if victim.files[other] != data]
        if not others:
            return False
        other = rng.choice(others)
        file.write_bytes(victim.files[other])
        (victim.root / other).write_bytes(data)
    else:
        return mutate.edit(victim.root, file, rng)
    return True


# --- what is seen of it --------------------------------------------------------------------------------------------------


def verified(root: Path) -> list[str]:
    """What `actlake verify` says is wrong."""
    try:
        return [
            line
            for report in check_captures(Layout.open(root), load_catalog(), None, None, 0)
            for line in report.problems
        ]
    except LakeError as error:
        return [str(error)]


def seen(root: Path) -> dict[str, Any]:
    """What citations say, and the hashes that a lock file may have of this lake's files."""
    with suppress(LakeError):
        layout = Layout.open(root)
        names = {
            file.relative_to(root)
            for area in ("tables", "verdicts", *FOLDERS)
            for file in (root / area).rglob("*")
            if file.is_file()
        }
        places = {Path(*name.parts[:3]) if name.parts[0] in FOLDERS else name for name in names}
        found: dict[str, Any] = {str(place): hash_of(root / place) for place in places if FILE.fullmatch(str(place))}
        for row in list_captures(layout).itertuples():
            line, cited = refusal(partial(citation, layout, Path(str(row.path))))
            found[f"{row.model}/{row.stream}"] = line or cited
        return found
    return {}


def named(line: str, name: str) -> bool:
    """Whether a line names a file, or what it is a part of."""
    above = [str(part) for part in Path(name).parents if len(part.parts) > 1]
    return any(part in line for part in (Path(name).name, *above))


class Judge:
    """Counts faults on a lake by what verify, cite and the readers make of them."""

    def __init__(self, victim: Victim):
        self.victim, self.counts, self.before = victim, defaultdict[tuple[str, str], Count](Count), seen(victim.root)
        assert not (wrong := verified(victim.root)), wrong

    def count(self, kind: str, deed: str, case: str, name: str, read: bool = True) -> None:
        """Count a fault of a file; with `read` also read what hangs on it."""
        count = self.counts[kind, deed]
        try:
            lines = verified(self.victim.root)
            clear = [line for line in lines if "\n" not in line and named(line, name)]
            visible = clear or seen(self.victim.root) != self.before
        except Exception as error:
            count.tracebacks.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")
            return
        if clear:
            count.found += 1
        elif visible and not lines:
            count.visible += 1
        else:
            count.silent.append(f"{case}{': ' + lines[0] if lines else ''}")
        if not read:
            return
        found = read_all(self.victim.root, self.victim, name)
        count.tracebacks += [f"{case}: {what}: {type(error).__name__}: {error}" for what, error in found.crashed]
        # What is not there is not read: a table is computed again, a stream or verdict is not listed.
        if found.other and deed in DEEDS[:3]:
            count.answered.append(f"{case}: {found.other[0]}")


# --- the drills ----------------------------------------------------------------------------------------------------------


def every_file(victim: Victim, rng: Random, share: float = 1.0) -> Counts:
    """Each file of the lake flipped, cut, exchanged, deleted and edited consistently."""
    judge, names = Judge(victim), sorted(victim.files)
    plan = [(name, deed) for name in names for deed in DEEDS]
    chosen = sampled(plan, rng, share, key=lambda one: (one[0].split("/")[0], one[1]))
    for number in steps("every file", len(chosen)):
        name, deed = chosen[number]
        if do(deed, victim, name, rng):
            judge.count(name.split("/")[0], deed, f"{deed} of {name}", name)
        again(victim)
    return judge.counts


def every_value(victim: Victim, rng: Random, share: float = 1.0) -> Counts:
    """Each value of each JSON record changed as it stands, and with all hashes made to fit."""
    judge, plan = Judge(victim), []
    for name in sorted(victim.files):
        if name.endswith(".json") and "/weights/" not in name:
            count = len(list(mutate.leaves(json.loads(victim.files[name]))))
            plan += [(name, place, deed) for place in range(count) for deed in ("changed", "resealed")]
    chosen = sampled(plan, rng, share, key=lambda one: (kind_of(one[0]), one[2]))
    for number in steps("every value of every record", len(chosen)):
        name, place, deed = chosen[number]
        file, record = victim.root / name, json.loads(victim.files[name])
        at = mutate.change_leaf(record, place)
        file.write_text(json.dumps(record))
        if deed == "resealed":
            mutate.again(victim.root, file)
        if json.loads(file.read_bytes()) == json.loads(victim.files[name]):  # the seal itself, made to fit again
            continue
        judge.count(name.split("/")[0], deed, f"{at} of {name} {deed}", name, read=False)
        again(victim)
    return judge.counts


def two_lakes(victim: Victim, rng: Random, folder: Path, share: float = 1.0) -> Counts:
    """The lake against one with a file edited consistently: moved both ways, neither loses anything and both verify."""
    counts: Counts = defaultdict(Count)
    plan = [(name, way) for name in sorted(victim.files) for way in ("push", "pull", "sync")]
    chosen = sampled(plan, rng, share, key=lambda one: (kind_of(one[0]), one[1]))
    for number in steps("lakes of equal names", len(chosen)):
        name, way = chosen[number]
        case, count = f"{way} beside an edited {name}", counts[name.split("/")[0], way]
        if not mutate.edit(victim.root, victim.root / name, rng) or verified(victim.root):
            again(victim)
            continue
        theirs = folder / f"other-{number}"
        tiny.write_tree(theirs, victim.files)
        mine = tiny.tree(victim.root)
        try:
            ends = {"push": [(victim.root, theirs)], "pull": [(theirs, victim.root)]}
            for source, target in ends.get(way, ends["push"] + ends["pull"]):
                refusal(partial(carry, source, target))
            lost = [one for lake, then in ((victim.root, mine), (theirs, victim.files)) for one in gone(lake, then)]
            wrong = [line for lake in (victim.root, theirs) for line in verified(lake)]
            count.silent += [f"{case}: {(lost + wrong)[0]}"] if lost or wrong else []
            count.found += not (lost or wrong)
        except Exception as error:
            count.tracebacks.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(theirs, ignore_errors=True)
        again(victim)
    return counts


def gone(lake: Path, then: dict[str, bytes]) -> list[str]:
    """Files of a lake that are not what they were; records that learn of more (streams' keys) are."""
    now = tiny.tree(lake)
    return [name for name, data in then.items() if now.get(name) != data and not grown(name, data, now.get(name))]


def grown(name: str, before: bytes, now: bytes | None) -> bool:
    """Whether a stream's record has only learned of more recipes and writers."""
    if now is None or not (name.startswith("streams/") and name.endswith(".json")):
        return False
    old, new = (json.loads(data) for data in (before, now))
    more = ("keys", "written_by")
    return all(set(old[key]) <= set(new[key]) for key in more) and all(
        old[key] == new[key] for key in old if key not in (*more, mutate.SEAL)
    )


def again(victim: Victim) -> None:
    """The lake as it was, without what a fault or a move added."""
    for name in tiny.tree(victim.root).keys() - victim.files.keys():
        (victim.root / name).unlink()
    victim.restore()


def sampled(plan: list[Any], rng: Random, share: float, key: Callable[[Any], Any]) -> list[Any]:
    """A share of the faults, of each kind one at least; with a share of 0 one for each folder of a lake."""
    if share >= 1:
        return plan
    groups: dict[Any, list[Any]] = {}
    for one in plan:
        groups.setdefault(key(one) if share else one[0].split("/")[0], []).append(one)
    return [one for some in groups.values() for one in rng.sample(some, max(1, round(share * len(some))))]


def rows_of(what: str, counts: Counts) -> Iterator[Row]:
    """The figures: for each kind of file how many faults came out badly, of how many; by kind of damage in the note."""
    for kind in sorted({kind for kind, _ in counts}):
        some = {deed: count for (one, deed), count in counts.items() if one == kind}
        parts = [f"{deed} {count.found} found, {count.visible} in cite or lock" for deed, count in some.items()]
        bad = [case for count in some.values() for case in count.bad]
        note = "; ".join([*parts, *bad[:SHOWN]])
        yield Row(
            f"{what}, {kind}: came out badly", len(bad), sum(c.tried for c in some.values()), "faults", "<= 0", note
        )


def part_of(victim: Victim, folder: Path) -> Victim:
    """A copy of a part of the lake, and its files."""
    carry(victim.root, folder / "part", boundaries=(0, 2))
    return Victim(folder / "part", tiny.tree(folder / "part"), {})


def full_lake(folder: Path) -> Victim:
    """A small lake with one of everything that docs/FORMAT.md lists, and two of most."""
    return make_victim(folder / "lake", tiny.make_pair(folder / "llama", "llama"), tiny.NATIVE, profile=PROFILE)


def run(seed: int = 0, quick: bool = False, share: float | None = None) -> list[Row]:
    """All rows of this benchmark."""
    share = share if share is not None else 0.05 if quick else 1.0
    with tempfile.TemporaryDirectory(prefix="actlake-vouched-") as folder, patch.dict(os.environ, OMP_NUM_THREADS="1"):
        os.environ["ACTLAKE_CACHE"] = f"{folder}/cache"
        victim, rng, rows = full_lake(Path(folder)), Random(seed), []
        for what, drill in (
            ("files", every_file),
            ("values", every_value),
            ("two lakes", partial(two_lakes, folder=Path(folder))),
        ):
            for row in rows_of(what, drill(victim, rng, share=share)):
                rows.append(row)
                print(f"{row.what}: {row.measured:.0f} of {row.limit:.0f}; {row.note}", flush=True)
        return rows


def options(parser: argparse.ArgumentParser) -> None:
    """Seed and size."""
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the faults")
    parser.add_argument("--share", type=float, help="this share of the faults")


if __name__ == "__main__":
    main("vouched", run, __doc__, options)
