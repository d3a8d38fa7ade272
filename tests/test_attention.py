"""Attention entropies against Hugging Face's eager attention, prompt by prompt, and as a variable of a capture."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from actlake.capture.model.load import load_model
from actlake.capture.run.ranks import Rank
from actlake.capture.run.reforward import reforward
from actlake.lake import Lake
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.errors import LakeError
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PROFILE = replace(tiny.FULL, sites=("resid", "attn_entropy"))


@cache
def eager(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def reference(layout, pair, stored: Capture) -> np.ndarray:
    """Entropy in float64 of the last prompt token's row, each prompt run alone with eager attention."""
    stream, rows = read_stream(layout, stored.manifest["stream"]), []
    for tokens, start in zip(stream.tokens, stream.starts, strict=True):
        ids = torch.tensor(tokens[None].astype(np.int64))
        with torch.no_grad():
            found = eager(pair.it.path)(input_ids=ids, output_attentions=True, use_cache=False).attentions
        rows.append([torch.special.entr(a[0, :, start - 1].double()).sum(-1).numpy() for a in found])
    return np.asarray(rows)


@pytest.mark.parametrize("family", tiny.sampled("olmo2", "gemma3", "deepseek_v2", "cohere"))
def test_entropy_of_the_last_prompt_row(tmp_path, pairs, family):
    layout = tiny.capture(tmp_path / "lake", pairs(family), tiny.NATIVE, profile=PROFILE, variants=("it",))
    stored = Capture(find_capture(layout, f"{family}-it", "native"))
    found = stored.array("attn_entropy")[...]
    expected = reference(layout, pairs(family), stored)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
    assert (found >= 0).all() and found.std() > 0
    assert verify(layout, stored.path).ok
    opened = Lake(layout.root).dataset(f"{family}-it", "native")
    assert opened.attn_entropy.dims == ("prompt", "layer", "head") and "attn_entropy" in opened.data_vars
    assert ALL_ATTENTION_FUNCTIONS._local_mapping == {}  # the library's own kernel is back


def test_entropy_changes_no_other_value_and_ranks_agree(tmp_path, captured, llama):
    one = tiny.capture(tmp_path / "one", llama, tiny.NATIVE, profile=PROFILE, variants=("it",))
    for rank in (2, 0, 1):
        more = tiny.capture(
            tmp_path / "more", llama, tiny.NATIVE, profile=PROFILE, variants=("it",), rank=Rank(rank, 3)
        )
    assert tiny.tree(one.root / "captures") == tiny.tree(more.root / "captures")
    plain, stored = (Capture(find_capture(lake, "llama-it", "native")) for lake in (captured, one))
    assert np.array_equal(plain.array("resid")[:], stored.array("resid")[:])
    assert stored.manifest["per_prompt"] == ["attn_entropy"] and "per_prompt" not in plain.manifest


def test_entropy_alone(tmp_path, llama):
    """A profile that keeps nothing of a token is a capture like any other, and is run again as one."""
    alone = replace(tiny.FULL, sites=("attn_entropy",), logits="none", shard_tokens=None)
    layout = tiny.capture(tmp_path / "alone", llama, tiny.NATIVE, profile=alone, variants=("it",))
    both = tiny.capture(tmp_path / "both", llama, tiny.NATIVE, profile=PROFILE, variants=("it",))
    one, two = (Capture(find_capture(lake, "llama-it", "native")) for lake in (layout, both))
    assert np.array_equal(one.array("attn_entropy")[...], two.array("attn_entropy")[...])
    assert one.manifest["sizes"] == {} and verify(layout, one.path).ok
    model = load_model(llama.it)
    found = reforward(layout, model, one.path, 3)
    assert found.ok and found.exact and found.worst == {"attn_entropy": 0.0} and found.allowed["attn_entropy"] > 0
    with torch.no_grad():
        model.parts.attns[0].q_proj.weight.mul_(1.1)
    assert not reforward(layout, model, one.path, 3).ok


def test_sealed_without_entropy(tmp_path, llama):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.BARE, variants=("it",))
    with pytest.raises(LakeError, match="sealed without attn_entropy;"):
        tiny.capture(layout.root, llama, tiny.BARE, variants=("it",), profile=PROFILE)


def test_architecture_that_attends_in_its_own_way(tmp_path, llama):
    from actlake.capture.run.forward import row_entropies

    model = load_model(llama.it)
    model.hf.set_attn_implementation("eager")
    with (
        pytest.raises(LakeError, match="0 of 3 attention modules call the common kernel"),
        row_entropies(model, np.asarray([1])),
    ):
        model.hf(input_ids=torch.tensor([[5, 6]]))
