"""The lean profile: columns computed during the capture are those computed later from a full one; few residuals are kept."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from actlake.lake import Lake
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.catalog import load_catalog
from actlake.store.core.errors import LakeError
from actlake.store.core.schema import scalars
from actlake.store.core.specs import default_windows, resolve_boundaries

LEAN = replace(tiny.FULL, name="lean", sites=("resid",), boundaries=(0, "late", "last"), scalars=("lens", "delta"))
KEYS = ["variant", "lens", "prompt", "token", "layer"]


@pytest.fixture(scope="module")
def lean(tmp_path_factory, pairs):
    return tiny.capture(
        tmp_path_factory.mktemp("lean") / "lake", pairs("llama"), tiny.NATIVE, tiny.TEACHER, profile=LEAN
    )


def table(layout, name: str):
    frame = Lake(layout.root).sql(f"SELECT * FROM {name}").df()
    return frame.sort_values([key for key in KEYS if key in frame]).reset_index(drop=True)


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2", "gpt_neox", "deepseek_v2"])
@pytest.mark.parametrize("name", ["lens", "delta"])
def test_tables_equal_those_of_a_full_capture(tmp_path, pairs, family, name):
    full = tiny.capture(tmp_path / "full", pairs(family), tiny.RAW, variants=("it",))
    small = tiny.capture(tmp_path / "lean", pairs(family), tiny.RAW, variants=("it",), profile=LEAN)
    one, two = table(full, name), table(small, name)
    assert len(one) == len(two) > 0 and list(one.columns) == list(two.columns)
    for column in one.columns:
        if one[column].dtype.kind == "f":
            assert np.allclose(one[column], two[column], rtol=1e-5, atol=1e-5, equal_nan=True), column
            assert one[column].notna().any()
        else:
            assert one[column].equals(two[column]), column


def test_kept_residuals_are_those_of_a_full_capture(lean, captured):
    one, two = (Capture(find_capture(layout, "llama-it", "native")) for layout in (captured, lean))
    kept = two.array("boundary")[:].tolist()
    assert kept == [0, default_windows(3)["late"][0], 3] == [0, 2, 3] and two.manifest["boundaries"] == kept
    assert np.array_equal(one.array("resid")[:][:, kept], two.array("resid")[:])
    assert np.array_equal(one.array("topk_logit")[:], two.array("topk_logit")[:])
    assert "mlp_out" not in two.group and two.manifest["noise_floor"]["max_abs"].keys() == {"resid"}
    assert two.array("lens_layer")[:].tolist() == [-1, 0, 1, 2]
    assert verify(lean, two.path).ok


def test_scalars_of_a_narrow_model_are_float32(tmp_path, pairs):
    """Residuals and logits of a bfloat16 model are widened, what is computed from them is not, and verify knows."""
    layout = tiny.capture(tmp_path / "lake", pairs("llama"), tiny.RAW, variants=("it",), profile=LEAN, dtype="bfloat16")
    stored = Capture(find_capture(layout, "llama-it", "raw"))
    assert verify(layout, stored.path).problems == []
    for name in stored.manifest["sizes"]:
        attrs = dict(stored.array(name).array.attrs)
        assert ("lossless_cast" in attrs) == (name in ("resid", "topk_logit")), name
    assert np.any(stored.array("lens_entropy")[:].view(np.uint32) & 0xFFFF)
    units = {name: dict(stored.array(name).array.attrs).get("units") for name in stored.manifest["sizes"]}
    assert {name for name, unit in units.items() if unit == "nats"} == {
        "topk_logit", "logsumexp", "lens_kl_layer_final", "lens_kl_final_layer", "lens_js_next", "lens_entropy"
    }  # fmt: skip
    assert units["resid"] == units["lens_cos_final"] == units["delta_mlp_norm"] == "1" and units["lens_top1"] is None


def test_rows_are_answered_from_scalars(lean, captured):
    one, two = (Lake(layout.root).run("L2").table for layout in (captured, lean))
    # A lean capture keeps too few residuals for a tuned lens, so that L2 answers with the raw one alone.
    one = one[one["lens"].isna() | (one["lens"] == "raw")]
    one = one[~one["measure"].str.contains("tuned")].reset_index(drop=True)
    assert len(one) == len(two) > 0 and not two["measure"].str.contains("tuned").any()
    for column in ("estimate", "n"):
        assert np.allclose(one[column].astype(float), two[column].astype(float), atol=1e-4, equal_nan=True), column


def test_what_needs_all_residuals_says_so(lean):
    with pytest.raises(
        LakeError, match=r"table pair_lens needs the residual at every boundary, this capture kept fewer"
    ):
        Lake(lean.root).run("exp16")


def test_a_full_capture_serves_a_lean_request_and_not_the_other_way(tmp_path, lean, pairs):
    before = tiny.tree(lean.root)
    with pytest.raises(
        LakeError, match=r"sealed without mlp_out, boundary 1; a sealed capture never changes: use another lake"
    ):
        tiny.capture(lean.root, pairs("llama"), tiny.NATIVE)
    full = replace(tiny.FULL, sites=("resid",))
    with pytest.raises(LakeError, match=r"sealed without boundary 1;"):
        tiny.capture(lean.root, pairs("llama"), tiny.NATIVE, profile=replace(full, boundaries=(0, 1)))
    assert tiny.tree(lean.root) == before
    layout = tiny.capture(tmp_path / "full", pairs("llama"), tiny.NATIVE, profile=full)
    before = tiny.tree(layout.root)
    tiny.capture(layout.root, pairs("llama"), tiny.NATIVE, profile=LEAN)
    assert tiny.tree(layout.root) == before
    few = replace(full, boundaries=(0, 3))
    layout = tiny.capture(tmp_path / "few", pairs("llama"), tiny.NATIVE, profile=few)
    with pytest.raises(LakeError, match=r"sealed without .*lens scalars, delta scalars"):
        tiny.capture(layout.root, pairs("llama"), tiny.NATIVE, profile=LEAN)


def test_attention_outputs_can_be_kept(tmp_path, pairs):
    profile = replace(tiny.FULL, sites=("resid", "attn_out", "mlp_out"), logits="none")
    stored = Capture(
        find_capture(
            tiny.capture(tmp_path / "lake", pairs("llama"), tiny.RAW, variants=("it",), profile=profile),
            "llama-it",
            "raw",
        )
    )
    resid, attention, mlp = (stored.array(name)[:] for name in ("resid", "attn_out", "mlp_out"))
    assert attention.shape == mlp.shape and "topk_id" not in stored.group
    # A pre-norm block adds its attention and its MLP output to the residual.
    assert np.allclose(resid[:, :-1] + attention + mlp, resid[:, 1:], atol=1e-5)


def test_boundaries_by_name_and_number():
    profile = load_catalog().profile("lean")
    assert resolve_boundaries(profile, 34, {}) == (0, 10, 20, 34)
    assert resolve_boundaries(profile, 34, {"late": (25, 34)}) == (0, 10, 25, 34)
    assert resolve_boundaries(tiny.FULL, 3, {}) == (0, 1, 2, 3)
    with pytest.raises(LakeError, match="no boundary 'end'; expected a number or one of last, early, mid, late"):
        resolve_boundaries(replace(profile, boundaries=("end",)), 34, {})
    with pytest.raises(LakeError, match="boundary 35, the model's boundaries end at 34"):
        resolve_boundaries(replace(profile, boundaries=(35,)), 34, {})


def test_every_column_of_the_tables_has_a_variable():
    assert scalars("lens")["kl_final_layer"] == "lens_kl_final_layer" and len(scalars("lens")) == 8
    assert len(scalars("delta")) == 4
