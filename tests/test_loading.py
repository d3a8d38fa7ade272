"""How checkpoints load: the kernel and the dtype that run are those of the record."""

from pathlib import Path

import pytest
import tiny
from actlake.capture.describe import describe, lines
from actlake.capture.model import load_model
from actlake.capture.replay import load_late, loaded_as
from actlake.store.captures import Capture, find_capture
from actlake.store.catalog import PairSpec
from test_replay import catalog, check_identity

NO_SDPA = {
    "gemma2": tiny.Family("Gemma2Config", {**tiny.GEMMA3, "attn_logit_softcapping": 2.0}),
    "gpt_oss": tiny.Family(
        "GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}
    ),
}


@pytest.mark.parametrize("family", NO_SDPA)
def test_a_class_without_sdpa_runs_eager_and_says_so(tmp_path: Path, monkeypatch, family: str) -> None:
    """The capture's provenance has the kernel that ran, and a replay with it gives what is stored, bit for bit."""
    monkeypatch.setitem(tiny.FAMILIES, family, NO_SDPA[family])
    pair = PairSpec(family, None, tiny.spec(tiny.make_model(tmp_path / "it", family), family, "it"), {})
    found = describe(load_model(pair.it))
    assert found["attention_kernel"] == "eager"
    assert dict(lines(found))["attention"].endswith("; eager (its own code): this class has no sdpa")
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    path = find_capture(layout, f"{family}/it", "raw")
    options = loaded_as(Capture(path).manifest["provenance"], path)
    assert options == {"dtype": "float32", "attention": "eager"}
    check_identity(layout, load_late(layout, f"{family}/it", 1, catalog(pair), **options), 1)
