"""Captures that are rounded to int8 or fp8: the grids, the recorded error, the size, and what answers say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from actlake.capture.model.load import load_model
from actlake.capture.run import capture as run
from actlake.capture.run.ranks import Rank
from actlake.capture.run.reforward import reforward
from actlake.capture.streams.capture_pair import Options
from actlake.capture.streams.estimate import forecast
from actlake.cli import main
from actlake.lake import Lake
from actlake.queries.rows.registry import find
from actlake.store.captures import precision as module
from actlake.store.captures.manifest import read_manifest
from actlake.store.captures.precision import rounded, rounding_note
from actlake.store.captures.reader import Capture, find_capture, list_captures
from actlake.store.captures.verify import citation, citation_lines, verify
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.core.files import json_bytes
from actlake.store.core.progress import remark
from actlake.store.core.specs import precision_of
from actlake.store.format.records import sealed
from asking import answer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

INT8 = replace(tiny.FULL, precision={"mlp_out": "int8", "resid": "int8"})
MIXED = replace(tiny.FULL, precision={"mlp_out": "fp8", "resid": "int8"})
WORDS = ("int8", "fp8")
rows = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=20), elements=st.floats(width=32, allow_nan=False)
)


def step_of(values: np.ndarray, word: str) -> np.ndarray:
    """The distance of neighbouring grid values at each value, float64, by frexp and not by bits of floats."""
    top = np.frexp(np.abs(values).max(-1, keepdims=True).astype(np.float64))[1].clip(min=-125)
    if word == "int8":
        return np.ldexp(1.0, top - 7) * np.ones(values.shape)
    own = np.frexp(values.astype(np.float64))[1]
    return np.ldexp(1.0, np.maximum(np.maximum(own - 4, top - 17), -133))


# --- the grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
@given(values=rows.filter(lambda found: np.isfinite(found).all()))
def test_values_go_to_the_nearest_of_the_grid(word, values):
    found = rounded(values, word)
    assert found.dtype == np.float32 and found.shape == values.shape
    assert np.array_equal(rounded(found, word), found)
    assert np.array_equal(rounded(-values, word), -found)
    assert not (found.view(np.uint32) & 0xFFFF).any()  # bfloat16's
    assert not found[values == 0].any()
    step, wide = step_of(values, word), values.astype(np.float64)
    multiple = found / step
    assert np.array_equal(multiple, np.rint(multiple)) and np.abs(multiple).max() <= (127 if word == "int8" else 2**17)
    end = np.ldexp(1.0, np.frexp(np.abs(values).max(-1, keepdims=True).astype(np.float64))[1])
    last = np.abs(wide) > end - step / 2  # of a row's range: there is no grid value above
    error = np.abs(found - wide)
    assert (error[~last] <= step[~last] / 2).all() and (error <= step).all()


def test_fp8_is_that_of_torch():
    """At rows whose largest value lies below 240, where a row's scale is 1."""
    values = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32) * np.logspace(
        -4, 1.3, 64, dtype="f4"
    )
    values[:, 0] = 200
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    assert np.abs(values).max() <= 240 and np.array_equal(rounded(values, "fp8"), expected)


def test_int8_is_a_whole_number_of_steps():
    values = np.random.default_rng(1).uniform(-127, 127, (40, 30)).astype(np.float32)
    values[:, 0] = 127
    assert np.array_equal(rounded(values, "int8"), np.rint(values))


@pytest.mark.parametrize("word", WORDS)
def test_what_is_not_finite_stays_and_leaves_the_scale_alone(word):
    values = np.array([[np.nan, 1, 0.5], [np.inf, -3, 0.01], [np.nan, -np.inf, np.nan]], np.float32)
    found = rounded(values, word)
    assert np.array_equal(np.isnan(found), np.isnan(values)) and np.array_equal(found == np.inf, values == np.inf)
    assert np.array_equal(found[:2, 1:], rounded(values[:2, 1:], word)) and found[2, 1] == -np.inf


def test_a_large_outlier_takes_the_rest_of_its_row_in_int8_and_not_in_fp8():
    values = np.random.default_rng(2).standard_normal((20, 64)).astype(np.float32)
    values[:, 5] = 1e4
    zeroed = {word: np.mean(rounded(values, word) == 0) for word in WORDS}
    assert zeroed["int8"] > 0.95 and zeroed["fp8"] < 0.1


# --- captures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(tmp_path_factory, llama):
    return tiny.capture(tmp_path_factory.mktemp("exact") / "lake", llama, tiny.NATIVE, tiny.TEACHER)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory, llama):
    return tiny.capture(tmp_path_factory.mktemp("coarse") / "lake", llama, tiny.NATIVE, tiny.TEACHER, profile=MIXED)


def open_it(layout, model: str = "llama-it") -> Capture:
    return Capture(find_capture(layout, model, "native"))


def test_stored_is_the_rounded_value_and_the_record_its_error(exact, coarse):
    """Against another computation: sums over the whole arrays."""
    one, two = open_it(exact), open_it(coarse)
    assert two.precision == {"mlp_out": "fp8", "resid": "int8"} and one.precision == {}
    for name, word in two.precision.items():
        values, found = one.array(name)[:], two.array(name)[:]
        assert np.array_equal(found, rounded(values, word)) and not np.array_equal(found, values)
        assert two.array(name).array.attrs["precision"] == word
        error = found.astype(np.float64) - values
        square = lambda x: np.square(x, dtype=np.float64).sum((0, 2))  # noqa: E731
        record = two.manifest["rounding"][name]
        assert np.allclose(record["relative"], np.sqrt(square(error) / square(values)), rtol=1e-12)
        assert np.array_equal(record["max_abs"], np.abs(error).max((0, 2)))
        assert np.allclose(record["zeroed"], ((found == 0) & (values != 0)).sum((0, 2)) / (values != 0).sum((0, 2)))
        assert len(record["relative"]) == values.shape[1]
    for name in ("topk_id", "topk_logit", "logsumexp"):
        assert np.array_equal(one.array(name)[:], two.array(name)[:])
    assert verify(coarse, two.path).problems == []
    with xr.open_zarr(two.path, consolidated=False) as opened:
        assert np.array_equal(opened["resid"].values, two.array("resid")[:])


def test_without_a_precision_nothing_is_recorded(exact):
    capture = open_it(exact)
    text = (capture.path / "manifest.json").read_text() + (capture.path / "resid/zarr.json").read_text()
    assert "precision" not in text and "rounding" not in text and rounding_note(capture.manifest) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_is_smaller(tmp_path, pairs, dtype):
    """Of noise, which nothing else makes smaller: bytes a value, with the frames' and the index's own."""
    size = {}
    pair = tiny.make_pair(tmp_path / "pair", hidden_size=256, intermediate_size=64, num_attention_heads=4)
    for word in ("", *WORDS):
        profile = replace(tiny.FULL, sites=("resid",), precision={"resid": word} if word else {}, shard_tokens=256)
        layout = tiny.capture(
            tmp_path / (word or "exact"), pair, tiny.BARE, variants=("it",), profile=profile, dtype=dtype
        )
        capture = Capture(find_capture(layout, "llama-it", "bare"))
        files = capture.manifest["files"]
        held = sum(entry["bytes"] for name, entry in files.items() if name.startswith("resid/c/"))
        size[word] = held / capture.array("resid")[:].size
    assert size["int8"] < 0.8 * size[""] and size["fp8"] < 0.9 * size["int8"] and size["int8"] < 1.1


def test_trainers_get_the_rounded_values_and_are_told(coarse, capsys):
    """A float32 model's, too, are held as bfloat16: rounded values have no other bits."""
    array = open_it(coarse).array("resid")
    remark.cache_clear()  # said once a process
    for batch in Lake(coarse.root).batches("llama-it", "native", site="resid", layer=1, batch=8):
        assert np.array_equal(batch.x, array[:][batch.token, 2])
    assert array.narrow and "warning: capture llama-it/native-tiny-" in capsys.readouterr().err
    assert Lake(coarse.root).verify("llama-it/native")[0].ok


def test_the_noise_floor_and_a_second_forward_know_of_the_steps(coarse, llama):
    capture = open_it(coarse)
    floor, errors = capture.manifest["noise_floor"]["max_abs"], capture.manifest["rounding"]
    for name in ("resid", "mlp_out"):
        assert floor[name] <= 2.1 * max(errors[name]["max_abs"])
    found = reforward(coarse, load_model(llama.it), capture.path, 4)
    assert found.ok and found.exact  # what is computed again is rounded again


def test_replays_of_a_rounded_residual_are_near_and_refuse_other_weights(coarse, exact, llama, tmp_path):
    from actlake.capture.edit.replay import replay_whole
    from actlake.capture.edit.start import open_start

    model = load_model(llama.it)
    start = open_start(coarse, "llama-it", "native", 1)
    assert 0.001 < start.rounding < 0.05 and open_start(exact, "llama-it", "native", 1).rounding == 0
    found = replay_whole(model, start).arrays["logsumexp"]
    stored = open_it(exact).array("logsumexp")[:]
    assert 0 < np.abs(found - stored).max() < 0.1 * np.abs(stored).max()
    other = load_model(llama.it)
    with torch.no_grad():
        for block in other.parts.blocks:
            block.mlp.down_proj.weight.mul_(-3)
    with pytest.raises(LakeError, match=r"gives other values .* rounded by [\d.]+ %, which may be too coarse"):
        replay_whole(other, open_start(coarse, "llama-it", "native", 1))


# --- interrupted, in parts, layer by layer -----------------------------------------------------------------------------


def test_interrupted_ranks_and_layers_end_with_the_same_record(tmp_path, llama, monkeypatch):
    def made(folder: str, **options) -> dict[str, bytes]:
        layout = tiny.capture(tmp_path / folder, llama, tiny.BARE, variants=("it",), profile=INT8, **options)
        return tiny.tree(layout.root / "captures")

    whole = made("whole")
    assert len([name for name in whole if "resid/c/" in name]) > 3
    written: list[int] = []

    def interrupted(*put) -> None:
        written.append(put[0])
        if len(written) == 3:
            raise KeyboardInterrupt
        original(*put)

    original = run.ShardWriter.put
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.ShardWriter, "put", interrupted)
        made("killed")
    assert any(".progress/shard-" in name for name in tiny.tree(tmp_path / "killed/captures"))
    assert made("killed") == whole
    made("ranks", rank=Rank(1, 2))
    assert made("ranks", rank=Rank(0, 2)) == whole
    assert made("layers", by_layer=True) == whole


def test_another_precision_is_another_capture(tmp_path, coarse, llama, exact):
    def again(layout, **more):
        return tiny.capture(layout.root, llama, tiny.NATIVE, variants=("it",), **more)

    with pytest.raises(
        LakeError, match=r"sealed without mlp_out in full precision \(it is rounded to fp8\), resid in full"
    ):
        again(coarse)
    with pytest.raises(LakeError, match=r"sealed without mlp_out in int8 precision \(it is rounded to fp8\); a sealed"):
        again(coarse, profile=INT8)
    again(coarse, profile=MIXED)
    again(exact, profile=MIXED)  # more than was asked for is there
    tiny.capture(tmp_path / "half", llama, tiny.NATIVE, variants=("it",), profile=INT8, rank=Rank(1, 2))
    with pytest.raises(LakeError, match=r"another configuration is there \(precision differ\)"):
        tiny.capture(tmp_path / "half", llama, tiny.NATIVE, variants=("it",), rank=Rank(1, 2))


# --- what is said ------------------------------------------------------------------------------------------------------


def test_answers_and_lists_say_it(coarse, exact, capsys):
    path = find_capture(coarse, "llama-it", "native")
    note = rounding_note(read_manifest(path))
    error = read_manifest(path)["rounding"]["resid"]["relative"]
    assert note.startswith(f"capture llama-it/{path.stem} is rounded: mlp_out as fp8 (relative error ")
    assert f"resid as int8 (relative error {100 * max(error):.2g} % at boundary {np.argmax(error)} at most)" in note
    assert note in answer(coarse, find("exp16"), "llama").sentence
    assert "rounded" not in answer(exact, find("exp16"), "llama").sentence
    main.app(["show", "llama-it/native", "--lake", str(coarse.root)], standalone_mode=False)
    assert note in " ".join(capsys.readouterr().out.split())
    remark.cache_clear()  # said once a process
    main.app(
        ["sql", "SELECT count(*) FROM lens WHERE model = 'llama-it'", "--lake", str(coarse.root)], standalone_mode=False
    )
    assert f"warning: {note}" in capsys.readouterr().err
    listed = list_captures(coarse)
    assert set(listed["warning"]) == {"rounded (mlp_out fp8, resid int8): `actlake show` says more"}
    assert "warning" not in list_captures(exact)
    assert ("size", f"{open_it(coarse).n_tokens} tokens, float32, rounded: mlp_out fp8, resid int8") in citation_lines(
        citation(coarse, path)
    )


def test_a_note_names_the_layer_where_much_became_zero(coarse):
    manifest = json.loads(json.dumps(open_it(coarse).manifest))
    manifest["rounding"]["resid"]["zeroed"][2] = 0.63
    assert "where 63 % at boundary 2 of its values became 0 beside much larger ones: fp8 keeps them" in rounding_note(
        manifest
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("rounding"),
        lambda record: record["rounding"]["resid"]["relative"].pop(),
        lambda record: record.pop("precision"),
        lambda record: record["precision"].update(topk_logit="int8"),
    ],
)
def test_a_manifest_whose_errors_do_not_fit_is_damaged(coarse, tmp_path, spoil):
    path = tmp_path / "copy.zarr"
    record = json.loads(json.dumps(open_it(coarse).manifest))
    spoil(record)
    path.mkdir()
    (path / "manifest.json").write_bytes(json_bytes(sealed({k: v for k, v in record.items() if k != "record_sha256"})))
    with pytest.raises(CorruptError, match=r"rounding: found .*, the rest of it says .the error of each layer"):
        read_manifest(path)


def test_words():
    assert precision_of("int8", ("resid", "attn_entropy", "router")) == {"resid": "int8"}
    assert precision_of("resid=fp8, z=int8", ("resid", "mlp_out", "z")) == {"resid": "fp8", "z": "int8"}
    with pytest.raises(LakeError, match=r"^precision 'int4': expected int8 or fp8, or SITE=int8,\.\.\.$"):
        precision_of("int4", ("resid",))
    with pytest.raises(LakeError, match=r"^precision of 'logits': of what is kept, resid can be rounded$"):
        precision_of("logits=int8", ("resid", "router"))


def test_a_bad_word_on_the_command_line(tmp_path, command_line):
    where = ("--lake", str(tmp_path / "lake"))
    code, _, said = command_line("capture", "pocket", "--limit", "1", "--precision", "int4", *where)
    assert code == 2 and said.strip().endswith("precision 'int4': expected int8 or fp8, or SITE=int8,...")


def test_a_catalog_says_it(tmp_path):
    text = "profiles:\n  small: {{sites: [resid, mlp_out, attn_entropy], precision: {}}}\n"
    for said, expected in (
        ("fp8", {"resid": "fp8", "mlp_out": "fp8"}),
        ("{resid: int8}", {"resid": "int8"}),
    ):
        (tmp_path / "catalog.yaml").write_text(text.format(said))
        assert load_catalog(tmp_path / "catalog.yaml").profile("small").precision == expected
    for said, complaint in (
        ("int4", r"2: profile small, precision is 'int4', expected one of int8, fp8"),
        ("{resid: 8}", r"2: profile small, precision, resid is '8', expected one of int8, fp8"),
        ("{attn_entropy: int8}", r"has no setting 'attn_entropy'; known are resid, mlp_out"),
    ):
        (tmp_path / "catalog.yaml").write_text(text.format(said))
        with pytest.raises(LakeError, match=complaint):
            load_catalog(tmp_path / "catalog.yaml")
    assert not any(profile.precision for profile in load_catalog().profiles.values())


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_plans_expect_less(llama, stored):
    def on_disk(precision: str | None) -> int:
        (found,) = forecast(
            llama, [tiny.BARE], tiny.prompt_set(), [tiny.FULL], ("it",), Options(dtype=stored, precision=precision)
        )
        return found.size.stored

    assert on_disk("fp8") < on_disk("int8") < on_disk("resid=int8") < on_disk(None)
    assert module.GRIDS.keys() == set(WORDS)
