"""The sweep: every stored chunk is decoded once whoever wants it, in blocks of any size, and an error leaves nothing."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from actlake.lake import Lake
from actlake.queries.engine import job
from actlake.queries.engine import passes as sweep
from actlake.queries.engine.context import Context, Scope
from actlake.queries.engine.job import Job
from actlake.queries.makers import ensure
from actlake.queries.tables.per_layer import raw_lens_table
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.format.shards import Grid
from actlake.store.tables.sql import connect


def path_of(lake, model="llama-it", stream="native") -> Path:
    return find_capture(lake, model, stream)


def scopes(lake) -> dict[str, Scope]:
    """The native captures (of different texts) and the teacher ones (of one answer)."""
    found = {
        kind: {variant: path_of(lake, f"llama-{variant}", kind).stem for variant in ("pt", "it")}
        for kind in ("native", "teacher")
    }
    return {kind: tiny.scope("llama", streams) for kind, streams in found.items()}


def needs(lake):
    native, teacher = scopes(lake).values()
    return [("lens", "raw", native), ("delta", "", native), ("lens", "raw", teacher), ("pair_lens", "", teacher)]


@pytest.fixture
def fresh(lake_copy):
    """A copy of the captured lake without what other tests have had computed there."""
    for name in ("tables", "lenses", "directions"):
        shutil.rmtree(lake_copy.root / name, ignore_errors=True)
    return lake_copy


@pytest.fixture
def decoded(monkeypatch):
    """How often each chunk of an activation was decoded: (file, place in the shard) -> times."""
    counts: Counter = Counter()
    pieces = Grid._pieces

    def counted(self, file, spots):
        counts.update((str(file), spot) for spot in spots)
        return pieces(self, file, spots)

    monkeypatch.setattr(Grid, "_pieces", counted)
    return counts


@pytest.mark.parametrize("size", [1, 3000, 1 << 27])
def test_every_chunk_is_decoded_once(fresh, decoded, monkeypatch, size):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", size)
    made = ensure(fresh, needs(fresh))
    assert len(made) == 6  # two captures natively, one more of the teacher's, and the pair
    assert max(decoded.values()) == 1
    captures = {part for file, _ in decoded for part in Path(file).parts if part.endswith(".zarr")}
    assert len(captures) == 3
    assert ensure(fresh, needs(fresh)) == []


def test_block_size_does_not_matter(fresh, tmp_path, monkeypatch):
    found = []
    shutil.copytree(fresh.root, tmp_path / "other")
    for size, lake in ((1, fresh), (1 << 27, Layout.open(tmp_path / "other"))):
        monkeypatch.setattr(sweep, "BLOCK_BYTES", size)
        ensure(lake, needs(lake))
        tables = {
            name: connect(lake).sql(f"SELECT * FROM {name} ORDER BY ALL").df()
            for name in ("lens", "delta", "pair_lens")
        }
        found.append(tables)
    for name, table in found[0].items():
        assert len(table) == len(found[1][name]) > 0
        for column in table:
            one, two = table[column], found[1][name][column]
            if one.dtype.kind == "f":
                assert np.allclose(one, two, atol=1e-5, equal_nan=True), (name, column)
            else:
                assert one.equals(two), (name, column)


def test_row_groups_are_written_as_they_fill(fresh, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1)
    monkeypatch.setattr(job, "HELD_TOKENS", 20)
    ensure(fresh, needs(fresh)[:1])
    tokens = Capture(path_of(fresh)).n_tokens
    rows = connect(fresh).sql(
        "SELECT layer, count(*), count(DISTINCT token) FROM lens WHERE variant = 'it' GROUP BY layer ORDER BY layer"
    )
    assert rows.fetchall() == [(layer, tokens, tokens) for layer in range(-1, 3)]


class Seen(Job):
    """Keeps what it is handed."""

    def __init__(self, path, *captures, fail=False):
        super().__init__("seen", path)
        self.captures, self.reads = captures, ("resid", "logsumexp")
        self.rows, self.fail, self.shared = [], fail, []

    def block(self, *rows):
        self.rows.append(rows)
        self.shared.append(rows[0].once("number", object))
        if self.fail and len(self.rows) == 2:
            raise RuntimeError("in the middle")

    def finish(self):
        self.path.write_text("done")


def test_rows_are_those_of_the_capture(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 2000)
    pt, it = (Capture(path_of(fresh, f"llama-{variant}", "teacher")) for variant in ("pt", "it"))
    one, two = Seen(tmp_path / "one", pt, it), Seen(tmp_path / "two", pt)
    assert sweep.run([one, two]) == [tmp_path / "one", tmp_path / "two"]
    assert len(one.rows) > 2 and all(a is b for a, b in zip(one.shared, two.shared, strict=True))
    for place, capture in enumerate((pt, it)):
        rows = [block[place] for block in one.rows]
        for name in ("resid", "logsumexp"):
            assert np.array_equal(np.concatenate([r[name] for r in rows]), capture.array(name)[:])
        assert np.array_equal(np.concatenate([r.columns["token_id"] for r in rows]), capture.array("token_id")[:])
        assert [p for r in rows for p in r.prompts] == list(range(len(tiny.TEXTS)))
        target = np.concatenate([r.columns["target"] for r in rows])
        ids, prompt = capture.array("token_id")[:], capture.array("prompt")[:]
        ends = np.append(prompt[1:] != prompt[:-1], True)
        assert (target[ends] == -1).all() and np.array_equal(target[~ends], np.roll(ids, -1)[~ends])


def test_what_comes_first_is_done_first(fresh, tmp_path):
    capture = Capture(path_of(fresh))
    first, second = Seen(tmp_path / "first", capture), Seen(tmp_path / "second", capture)
    second.before = (first,)
    second.block = lambda *rows: first.path.read_text()  # fails unless it is there
    assert sweep.run([second]) == [tmp_path / "first", tmp_path / "second"]
    assert sweep.run([second]) == []


def test_an_error_leaves_no_table(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1)
    before = tiny.tree(fresh.root)
    kit, names = Context(fresh), ("llama-it", path_of(fresh).stem)
    jobs = [raw_lens_table(kit, names), Seen(tmp_path / "x", kit.capture(names), fail=True)]
    with pytest.raises(RuntimeError, match="in the middle"):
        sweep.run(jobs)
    assert tiny.tree(fresh.root) == before


def test_one_that_fails_is_taken_out_and_the_others_go_on(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1)
    kit, names = Context(fresh), ("llama-it", path_of(fresh).stem)
    capture, seen = kit.capture(names), []

    class Failing(Seen):
        def block(self, *rows):
            seen.append(len(rows[0]))
            raise LakeError("no weights")

        def __exit__(self, kind, error, trace):
            seen.append(kind)

    bad, good, lens = Failing(tmp_path / "bad", capture), Seen(tmp_path / "good", capture), raw_lens_table(kit, names)
    needy, table = Seen(tmp_path / "needy", capture), Seen(tmp_path / "table", capture)
    table.reads, needy.before, table.before = (), (bad,), (needy,)
    failed: dict[Path, LakeError] = {}
    made = sweep.run([bad, good, lens, needy, table], failed)
    assert made == [good.path, lens.path] and all(path.exists() for path in made)
    assert {path.name: str(error) for path, error in failed.items()} == dict.fromkeys(
        ("bad", "needy", "table"), "no weights"
    )
    assert len(seen) == 2 and seen[1] is LakeError  # one block, and left at once
    assert connect(fresh).sql("SELECT DISTINCT token FROM lens").df().shape == (capture.n_tokens, 1)
    with pytest.raises(LakeError, match="no weights"):
        sweep.run([bad, Seen(tmp_path / "late", capture)])
    assert not (tmp_path / "late").exists()


def test_a_failure_without_blocks_spares_the_others_too(fresh, tmp_path, llama):
    tiny.capture(fresh.root, llama, tiny.BARE, prompts=tiny.prompt_set(tiny.TEXTS[:3], "few"), variants=("it",))
    captures = [Capture(path_of(fresh, "llama-it", kind)) for kind in ("native", "bare-few")]
    apart, fine = Seen(tmp_path / "apart", *captures), Seen(tmp_path / "fine", captures[0])
    failed: dict[Path, LakeError] = {}
    assert sweep.run([apart, fine], failed) == [fine.path] and list(failed) == [apart.path]


def test_captures_of_other_prompts_are_not_read_side_by_side(fresh, tmp_path, llama):
    tiny.capture(fresh.root, llama, tiny.BARE, prompts=tiny.prompt_set(tiny.TEXTS[:3], "few"), variants=("it",))
    captures = [Capture(path_of(fresh, "llama-it", kind)) for kind in ("native", "bare-few")]
    with pytest.raises(LakeError, match="captures of different prompts can't be read side by side"):
        sweep.run([Seen(tmp_path / "x", *captures)])


def test_sql_computes_everything_in_one_pass(fresh, decoded):
    Lake(fresh.root).sql(
        "SELECT (SELECT count(*) FROM lens) + (SELECT count(*) FROM delta) + (SELECT count(*) FROM pair_lens)"
    )
    assert max(decoded.values()) == 1


def test_passes_are_few_and_jobs_wait_for_the_last_that_serves_them(fresh, tmp_path, decoded, monkeypatch):
    passes = []
    together = sweep._sweep
    monkeypatch.setattr(sweep, "_sweep", lambda jobs: (passes.append([job.path.name for job in jobs]), together(jobs)))
    capture = Capture(path_of(fresh))
    probe, tuned, raw, shared = (Seen(tmp_path / name, capture) for name in ("probe", "tuned", "raw", "shared"))
    table = Seen(tmp_path / "table")
    table.reads = ()  # it reads nothing itself: its turn comes at the end of the pass that made what it needs
    tuned.before, table.before = (probe,), (shared, raw)
    made = sweep.run([table, tuned, raw])
    assert passes == [["probe"], ["shared", "raw", "tuned"]]
    assert [path.name for path in made] == ["shared", "raw", "table", "probe", "tuned"]
    assert max(decoded.values()) == 2 and table.path.read_text() == "done"
