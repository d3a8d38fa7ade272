"""A lake of many pairs: a question about one of them reads nothing of the others, and what was read once is not read again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actlake
import golden
import many
import pytest
from actlake.queries.answer.asking import Asking
from actlake.queries.rows.registry import find
from actlake.store.remote import hashes
from reads import opened

PAIRS, MINE = 20, 7
PAIR = many.pair_name(MINE)


class Many:
    """The lake, and whose each of its files is."""

    def __init__(self, root: Path):
        self.layout, self.of = many.Layout.open(root, create=True), dict[str, int]()
        for number in range(PAIRS):
            many.add_pair(self.layout, number)
            self.of = dict.fromkeys(self.names(), number) | self.of
        self.of["lake.json"] = MINE  # everybody's

    def names(self) -> list[str]:
        """Every file of the lake."""
        root = self.layout.root
        return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]

    def touch(self) -> None:
        """Give every file another time: nothing is known of them then."""
        for name in self.names():
            os.utime(self.layout.root / name)

    def others(self, names: Any) -> list[str]:
        """Files of other pairs among some."""
        return sorted(name for name in names if self.of.get(name, MINE) != MINE)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Many:
    return Many(tmp_path_factory.mktemp("many") / "lake")


@pytest.fixture(autouse=True)
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and files that count as untouched for long."""
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED", -1)


ABOUT_ONE: dict[str, Callable[[actlake.Lake], object]] = {
    "run L2": lambda lake: lake.run("L2", PAIR, generate=False).table,
    "run 0G": lambda lake: lake.run("0G", PAIR, generate=False).table,
    "show": lambda lake: lake.describe(f"{PAIR}-it/native"),
    "cite": lambda lake: lake.cite(f"{PAIR}/it/native"),
    "dataset": lambda lake: lake.dataset(f"{PAIR}/it", "native").resid[0].values,
    "tokens": lambda lake: lake.tokens(f"{PAIR}-pt", "native"),
    "lenses": lambda lake: lake.lenses(f"{PAIR}-it"),
    "head": lambda lake: lake.head(f"{PAIR}-it"),
    "directions": lambda lake: lake.directions(PAIR).values,
    "captures": lambda lake: lake.sql(f"SELECT * FROM captures WHERE model = '{PAIR}-it'").fetchall(),
    "streams": lambda lake: lake.sql(f"SELECT * FROM streams WHERE model = '{PAIR}-it'").fetchall(),
    "texts": lambda lake: lake.sql(f"SELECT text FROM outputs WHERE model = '{PAIR}-it'").fetchall(),
}
# The footers of all files of a table are read once, to learn whose they are.
SQL_ABOUT_ONE = {
    "of a pair": f"SELECT * FROM delta WHERE pair = '{PAIR}'",
    "of a pair, computed": f"SELECT layer, avg(entropy) FROM lens WHERE pair = '{PAIR}' AND lens = 'raw' GROUP BY layer",
    "of a model": f"SELECT * FROM delta AS d WHERE '{PAIR}-it' = d.model",
    "of two models": f"SELECT js, history FROM pair_lens WHERE model_it IN ('{PAIR}-it')",
}


@pytest.mark.parametrize("what", ABOUT_ONE)
def test_a_question_about_one_pair_opens_no_file_of_another(lake: Many, what: str) -> None:
    lake.touch()
    with opened(lake.layout.root) as found:
        ABOUT_ONE[what](actlake.open(lake.layout.root))
    assert not (others := lake.others(found)), f"{len(others)} of {len(found)}: {others[:5]}"
    assert len(set(found) - {"lake.json"}) >= 1, "nothing was counted"


@pytest.mark.parametrize("what", SQL_ABOUT_ONE)
def test_sql_about_one_pair_opens_no_file_of_another(lake: Many, what: str) -> None:
    sql = SQL_ABOUT_ONE[what]
    lake.touch()
    with opened(lake.layout.root) as first:
        expected = sorted(actlake.open(lake.layout.root).sql(sql).fetchall())
    assert all(name.startswith("tables/") for name in lake.others(first)), lake.others(first)[:5]
    hashes._store.cache_clear()
    with opened(lake.layout.root) as found:
        assert sorted(actlake.open(lake.layout.root).sql(sql).fetchall()) == expected and expected
    assert not (others := lake.others(found)), f"{len(others)} of {len(found)}: {others[:5]}"
    # Of a statement with another inside nobody tells which pair it is about.
    assert sorted(actlake.open(lake.layout.root).sql(f"FROM ({sql})", compute=False).fetchall()) == expected


def test_an_answer_does_not_depend_on_what_else_is_asked(lake: Many) -> None:
    """The same of every row: the golden lake's test."""

    def answers(*rows: str) -> dict[str, Any]:
        options = {"device": "cpu", "generate": False, "probes": False, "resamples": 50}
        found = Asking(lake.layout, [find(row) for row in rows], PAIR, **options).answers()
        return {answer.query.id: [answer.sentence, golden._columns(answer.table)] for answer in found}

    alone = {row: answers(row)[row] for row in ("0G", "L2", "tuned")}
    assert answers("0G", "L2", "tuned") == alone == answers("tuned", "L2", "0G")


LISTINGS: dict[str, Callable[[actlake.Lake], Any]] = {
    "captures": lambda lake: lake.captures,
    "models": lambda lake: lake.models,
    "streams": lambda lake: lake.streams,
    "lenses": lambda lake: lake.lenses(),
    "pairs": lambda lake: lake.pairs,
    "stale": lambda lake: lake.stale(),
}


@pytest.mark.parametrize("what", LISTINGS)
def test_a_second_listing_opens_no_record_again(lake: Many, what: str) -> None:
    lake.touch()
    with opened(lake.layout.root) as found:
        first = LISTINGS[what](actlake.open(lake.layout.root))
    assert len(found) >= PAIRS or what == "pairs"  # which needs names alone
    with opened(lake.layout.root) as found:
        assert LISTINGS[what](actlake.open(lake.layout.root)).equals(first)
    assert set(found) <= {"lake.json"}, sorted(found)[:5]
