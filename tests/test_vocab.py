"""The vocabulary that is kept with a model: words of a lens and of texts without checkpoint or tokenizer, hashed, moved, refused."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.capture.checkpoint.configs import load_tokenizer
from actlake.capture.checkpoint.tokens import is_text, real_token_mask, running_texts, vocabulary
from actlake.capture.run.check import check_captures
from actlake.lake import Lake
from actlake.store.artifacts.models import FILE, SCHEMA, keep_vocab, read_model, read_vocab, with_vocab
from actlake.store.core import progress
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import hash_file, write_json
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move
from actlake.store.format.paths import Layout


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    return tiny.make_pair(tmp_path_factory.mktemp("vocab"))


@pytest.fixture
def lake(pair, made: Path, tmp_path: Path) -> Lake:
    """A lake whose pair no catalog names: models and tokenizers can't be found."""
    shutil.copytree(made, tmp_path / "lake")
    (tmp_path / "none.yaml").write_text("lakes: {x: y}\n")
    return Lake(tmp_path / "lake", catalog=tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.capture(tmp_path_factory.mktemp("made") / "lake", pair, tiny.NATIVE, tiny.RAW).root


def test_every_id_has_its_text_bytes_and_marks(pair, lake: Lake) -> None:
    tokenizer = load_tokenizer(pair.it)
    table = read_vocab(lake.layout, "llama-it")
    assert table is not None and table.schema == SCHEMA and len(table) == 300
    assert table["text"].to_pylist() == running_texts(tokenizer, 300)
    assert (table["real"].to_numpy() == real_token_mask(tokenizer, 300)).all()
    assert ((table["real"].to_numpy() & ~table["special"].to_numpy()) == is_text(tokenizer, 300)).all()
    for text in ("naïve café, 雨", "the cat\n\t12 + 7", "\U0001f327 x"):  # letters of several tokens, too
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert lake.decode(ids, "llama-it") == text
    assert vocabulary(tokenizer, 303)["text"][300:] == [""] * 3 and not vocabulary(tokenizer, 303)["real"][300:].any()


def test_words_need_no_checkpoint(lake: Lake) -> None:
    found = lake.sql("SELECT variant, token, layer, top1, top1_text FROM lens_text WHERE layer >= 0").df()
    texts = read_vocab(lake.layout, "llama-it")["text"].to_pylist()
    assert len(found) and found["top1_text"].tolist() == [texts[index] for index in found["top1"]]
    assert lake.sql("SELECT count(*) FROM words").fetchall()[0][0] > 0
    parted = lake.sql(
        "SELECT it_token, token_text FROM first_diff d JOIN vocab v ON v.pair = d.pair AND v.token_id = d.it_token"
    ).df()
    assert parted["token_text"].tolist() == [texts[index] for index in parted["it_token"]]


def test_tokens_of_a_prompt(lake: Lake) -> None:
    every = lake.tokens("llama-it", "native")
    data = lake.dataset("llama-it", "native")
    assert np.array_equal(every["token_id"], data["token_id"].values) and len(every) == data.sizes["token"]
    one = lake.tokens("llama-it", "native", "p1")
    assert set(one["prompt_id"]) == {"p1"} and "dog ran" in lake.decode(one["token_id"], "llama-it")
    with pytest.raises(LakeError, match="has no prompt 'p-u'; did you mean 'p-ü'"):
        lake.tokens("llama-it", "native", "p-u")
    with pytest.raises(LakeError, match="llama-it has no token 300; its ids are 0 to 299"):
        lake.decode([300], "llama-it")


def test_a_lake_of_an_older_version_says_what_brings_it(pair, lake: Lake) -> None:
    tiny.forget_vocab(lake.layout, "llama-pt", "llama-it")
    with pytest.raises(LakeError, match="keeps no vocabulary of llama-it .* `actlake capture llama-it` keeps it"):
        lake.sql("SELECT count(*) FROM vocab")
    with pytest.raises(LakeError, match="the lake keeps no vocabulary of llama-it; a new"):
        lake.decode([1], "llama-it")
    tiny.capture(lake.layout.root, pair, tiny.NATIVE)  # reuses all captures
    assert read_vocab(lake.layout, "llama-pt") is not None and lake.sql("FROM vocab").df().shape[0] == 300


def test_it_moves_with_the_model_and_into_a_lake_without(lake: Lake, tmp_path: Path) -> None:
    def carry(source: Lake | Path, target: Path, **wish) -> None:
        there = origin_of(source.layout if isinstance(source, Lake) else str(source))
        move(Planner(there, origin_of(str(target)), Selection(tables=False, **wish)).plan())

    carry(lake, tmp_path / "copy")
    copy = Lake(tmp_path / "copy", catalog=lake._catalog)
    assert read_vocab(copy.layout, "llama-it").equals(read_vocab(lake.layout, "llama-it"))
    tiny.forget_vocab(copy.layout, "llama-it")
    carry(lake, tmp_path / "copy")
    assert read_model(copy.layout, "llama-it") == read_model(lake.layout, "llama-it")
    assert read_vocab(copy.layout, "llama-it") is not None
    # another writer's bytes of the same vocabulary stay
    tiny.forget_vocab(copy.layout, "llama-it")
    columns = {name: read_vocab(lake.layout, "llama-it")[name] for name in SCHEMA.names}
    path = copy.layout.model("llama-it") / FILE
    pq.write_table(pa.table(columns, schema=SCHEMA), path, compression="none")
    write_json(path.with_name("model.json"), with_vocab(read_model(copy.layout, "llama-it"), hash_file(path)))
    before = tiny.tree(tmp_path / "copy")
    carry(lake, tmp_path / "copy")
    assert tiny.tree(tmp_path / "copy") == before


def test_damage_is_found_by_reading_and_by_verify(lake: Lake) -> None:
    path = lake.layout.model("llama-it") / FILE
    tiny.flip(path, 100)
    with pytest.raises(
        CorruptError, match="vocab.parquet: bytes differ from the recorded hash .* run `actlake capture`"
    ):
        lake.sql("SELECT count(*) FROM vocab")
    reports = check_captures(lake.layout, load_catalog(lake._catalog), None, None, 0)
    assert [bool(report.problems) for report in reports].count(True) == 1
    path.unlink()
    with pytest.raises(CorruptError, match="vocab.parquet: missing"):
        lake.decode([1], "llama-it")


def test_checks_that_take_long_are_said_before(lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    check_captures(lake.layout, load_catalog(lake._catalog), None, "llama", 0)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"verifying \d captures?, [\d.]+ KB, a few seconds; MODEL/STREAM or --pair verifies less", said)
    monkeypatch.setattr(progress, "WORTH_SAYING", 1e9)
    check_captures(lake.layout, load_catalog(lake._catalog), None, "llama", 0)
    assert "verifying" not in capsys.readouterr().err


def hostile(lake: Lake, columns: dict, schema: pa.Schema | None = None) -> None:
    """A vocabulary that a stranger made, with its hash."""
    path = lake.layout.model("llama-it") / FILE
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink)
    path.write_bytes(sink.getvalue())
    record = read_model(lake.layout, "llama-it")
    write_json(path.with_name("model.json"), with_vocab(record, hash_file(path)))


def test_what_a_stranger_makes_of_it_is_refused(lake: Lake) -> None:
    good = {name: read_vocab(lake.layout, "llama-it")[name].to_pylist() for name in SCHEMA.names}
    cases = {
        "299 ids, the model has 300": {name: values[:-1] for name, values in good.items()},
        "without gaps": good | {"id": [0, *range(299)]},
        "column text: expected text": good | {"text": list(range(300))},
        "column real: expected true or false": good | {"real": ["yes"] * 300},
        "column bytes: expected once": {name: values for name, values in good.items() if name != "bytes"},
        "can't be read": good | {"id": [1 << 40, *range(1, 300)]},
        "not plausible": good | {"text": ["x" * 100_000] * 300, "bytes": [b"%d" % n * 20_000 for n in range(300)]},
    }
    for problem, columns in cases.items():
        hostile(lake, columns)
        with pytest.raises(CorruptError, match=problem):
            read_vocab(lake.layout, "llama-it")
    hostile(lake, good | {"text": [None, *good["text"][1:]]})
    with pytest.raises(CorruptError, match="vocab.parquet"):
        read_vocab(lake.layout, "llama-it")
    path = lake.layout.model("llama-it") / FILE
    path.write_bytes(b"PAR1 nothing PAR1")
    write_json(path.with_name("model.json"), with_vocab(read_model(lake.layout, "llama-it"), hash_file(path)))
    with pytest.raises(CorruptError, match="not a Parquet file"):
        read_vocab(lake.layout, "llama-it")


def test_it_is_kept_once(lake: Lake, pair) -> None:
    before = tiny.tree(lake.layout.root)
    keep_vocab(Layout.open(lake.layout.root), "llama-it", vocabulary(load_tokenizer(pair.it), 300))
    assert tiny.tree(lake.layout.root) == before
