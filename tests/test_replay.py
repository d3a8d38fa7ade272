"""Replay without edits gives back what is stored, from any boundary and for each family; only the late part is loaded."""

import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import tiny
import torch
from actlake.capture.edit.edits import Zero
from actlake.capture.edit.replay import load_late, load_mlps, replay, replay_whole
from actlake.capture.edit.start import borrowed, open_start
from actlake.capture.model.load import load_model
from actlake.capture.model.partial import load_donor, load_suffix
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import Catalog, ModelSpec, PairSpec, StreamSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.testing import check_replay
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FAMILIES = tiny.sampled("llama_tied", "gemma3_wrapper", "gpt_neox", "deepseek_v2")
BLOCK = re.compile(r"(?:layers|h)\.(\d+)\.")


def catalog(pair: PairSpec) -> Catalog:
    return tiny.catalog_of(pair)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory, pairs) -> Callable[[str], Layout]:
    """Family -> a lake with the it captured on its raw stream, in padded batches."""
    root = tmp_path_factory.mktemp("lakes")
    return cache(lambda family: tiny.capture(root / family, pairs(family), tiny.RAW, variants=("it",)))


def stored(layout: Layout, model: str, stream: str = "raw") -> Capture:
    return Capture(find_capture(layout, model, stream))


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def check_identity(layout: Layout, model: Any, boundary: int) -> None:
    check_replay(layout, model, "raw", boundary)


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_is_bit_exact(lakes, pairs, family):
    layout, pair = lakes(family), pairs(family)
    for boundary in range(3):
        check_identity(layout, load_late(layout, f"{family}-it", boundary, catalog(pair)), boundary)


@pytest.mark.parametrize("family", ["llama", "gemma3_wrapper", "gpt2", "deepseek_v2"])
def test_one_model_serves_all_later_boundaries(lakes, pairs, family):
    whole, late = load_model(pairs(family).it), load_late(lakes(family), f"{family}-it", 1, catalog(pairs(family)))
    for boundary in range(3):
        check_identity(lakes(family), whole, boundary)
    for boundary in (2, 1):
        check_identity(lakes(family), late, boundary)
    with pytest.raises(LakeError, match="can't begin at boundary 0; what is loaded begins at 1 to 2"):
        replay_whole(late, open_start(lakes(family), f"{family}-it", "raw", 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_within_the_noise_floor(tmp_path, family):
    pair = tiny.make_pair(tmp_path / "pair", family, torch.bfloat16)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    capture = stored(layout, f"{family}-it")
    found = replay_whole(
        load_late(layout, f"{family}-it", 1, catalog(pair)), open_start(layout, f"{family}-it", "raw", 1)
    )
    for name, floor in capture.manifest["noise_floor"]["max_abs"].items():
        assert np.abs(found.arrays[name] - capture.array(name)[:][:, 1:]).max() <= floor
        assert np.unique(found.arrays[name]).size > 1000 and not np.any(found.arrays[name].view(np.uint32) & 0xFFFF)


def cut_checkpoint(folder: Path, target: Path, keep: Callable[[str], bool]) -> Path:
    """A copy of a checkpoint with some of its tensors only."""
    shutil.copytree(folder, target)
    tensors = {name: value for name, value in load_file(target / "model.safetensors").items() if keep(name)}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_tensor_is_read(tmp_path, pairs, family):
    spec = pairs(family).it
    whole = load_model(spec)
    tied = whole.hf.get_input_embeddings().weight is whole.hf.get_output_embeddings().weight

    def needed(name: str) -> bool:
        block = BLOCK.search(name)
        if "vision" in name or "projector" in name:
            return False
        return int(block[1]) >= 2 if block else tied or not re.search(r"embed_tokens|wte|embed_in", name)

    folder = cut_checkpoint(spec.path, tmp_path / "late", needed)
    late = load_suffix(tiny.spec(folder, f"{family}-it"), 2)
    # Too few weights are refused before anything is built; where the embedding is the head, most are there.
    with pytest.raises(
        LakeError,
        match="lacks .* weights" if tied and "wrapper" not in family else "asks for .* weights, the files hold",
    ):
        load_model(tiny.spec(folder, f"{family}-it"))
    parts = [whole.parts.blocks[2], whole.parts.norm, whole.parts.unembed]
    extra = (
        whole.hf.transformer.wpe.weight.numel() if family == "gpt2" else 0
    )  # read, though the residual has it already
    assert sum(p.numel() for p in late.hf.parameters()) == extra + sum(p.numel() for m in parts for p in m.parameters())
    assert late.parts.first == 2 and late.parts.placement == tiny.FAMILIES[family].placement
    assert torch.equal(late.head.unembed, whole.head.unembed)


@pytest.mark.parametrize("family", FAMILIES)
def test_donors_load_alone(tmp_path, pairs, family):
    spec = pairs(family).pt
    folder = cut_checkpoint(
        spec.path, tmp_path / "mlps", lambda name: bool(re.search(r"(layers|h)\.[12]\.mlp\.", name))
    )
    donor, hf = load_donor(tiny.spec(folder, f"{family}-pt"), (1, 2)), AutoModelForCausalLM.from_pretrained(spec.path)
    blocks = hf.get_submodule(tiny.FAMILIES[family].blocks)
    assert donor.name == f"{family}-pt" and list(donor.mlps) == [1, 2]
    for layer, mlp in donor.mlps.items():
        ours, theirs = mlp.state_dict(), blocks[layer].mlp.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_only_late_blocks_run(lakes, pairs):
    layout, counts = lakes("llama"), [0, 0, 0]
    model = load_model(pairs("llama").it)
    for layer, mlp in enumerate(model.parts.mlps):
        mlp.register_forward_hook(lambda *_, layer=layer: counts.__setitem__(layer, counts[layer] + 1))
    start = open_start(layout, "llama-it", "raw", 2)
    replay_whole(model, start)
    assert counts == [0, 0, len(start.plan)]


def test_chosen_tokens_and_prompts(lakes, pairs):
    layout = lakes("llama")
    model, start = (
        load_late(layout, "llama-it", 1, catalog(pairs("llama"))),
        open_start(layout, "llama-it", "raw", 1),
    )
    whole = replay_whole(model, start, keep=("resid", "mlp_out"), logits="full")
    continuation = stored(layout, "llama-it").array("step")[:] >= 0
    some = replay_whole(
        model, start, keep=("resid",), logits="full", tokens=continuation, boundaries=(1, 3), prompts={4, 1}
    )
    prompt = np.repeat(np.arange(6), np.diff(start.offset))
    expected = np.flatnonzero(continuation & np.isin(prompt, [1, 4]))
    assert some.prompts == [1, 4] and np.array_equal(some.tokens, expected) and len(expected) > 2
    assert np.array_equal(some.arrays["resid"], whole.arrays["resid"][expected][:, [0, 2]])
    assert np.abs(some.arrays["logits"] - whole.arrays["logits"][expected]).max() < 1e-6
    assert set(some.arrays) == {"resid", "logits"}
    pieces = list(replay(model, start, prompts={start.plan[1][0]}))
    assert [piece.prompts for piece in pieces] == [start.plan[1][:1]]  # the other batch did not run
    assert set(replay_whole(model, start, keep=("attn_out",), logits="none").arrays) == {"attn_out"}


def test_first_tokens_only(lakes, pairs):
    """What follows a token can't change it, so shortened prompts give the same values but for rounding."""
    layout = lakes("gemma3")
    model, start = (
        load_late(layout, "gemma3-it", 2, catalog(pairs("gemma3"))),
        open_start(layout, "gemma3-it", "raw", 2),
    )
    short = replace(start, lengths=np.maximum(1, start.lengths // 2))
    whole, found = replay_whole(model, start), replay_whole(model, short)
    assert len(found.tokens) == short.lengths.sum() < len(whole.tokens)
    assert np.abs(found.arrays["resid"] - whole.arrays["resid"][found.tokens]).max() < 1e-5


def test_pieces_follow_the_plan_and_are_read_ahead(lakes, pairs, monkeypatch):
    layout, read = lakes("llama"), []
    start = open_start(layout, "llama-it", "raw", 2)
    states = start.states

    class Watched:
        def __getitem__(self, tokens: slice) -> np.ndarray:
            read.append(threading.current_thread())
            return states[tokens]

    pieces = replay(load_suffix(pairs("llama").it, 2), replace(start, states=Watched()))
    first = next(pieces)
    assert first.prompts == start.plan[0]
    assert [piece.prompts for piece in pieces] == start.plan[1:]
    assert threading.main_thread() not in read[1:]  # the very first tells the width


def test_replays_of_one_model_in_turn(lakes, pairs):
    layout, model = lakes("llama"), load_model(pairs("llama").it)
    starts = [open_start(layout, "llama-it", "raw", boundary) for boundary in (1, 2)]
    for one, two in zip(replay(model, starts[0]), replay(model, starts[1]), strict=True):
        assert not any("forward" in vars(block) for block in model.parts.blocks)  # between batches the model is whole
        assert same_bits(np.ascontiguousarray(one.arrays["resid"][:, 1:]), two.arrays["resid"])


def test_weights_from_the_lake(tmp_path, llama):
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, variants=("it",), with_weights=True)
    check_identity(layout, load_late(layout, "llama-it", 1), 1)
    assert list(load_mlps(layout, "llama-it", (0, 2)).mlps) == [0, 1]


def test_gguf(tmp_path):
    ggufs = pytest.importorskip("ggufs")
    _, file = ggufs.make_gguf(tmp_path)
    pair = PairSpec("quantised", None, ModelSpec("quantised-it", tmp_path, None, None, file.name), {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    late = load_late(layout, "quantised-it", 1, catalog(pair))
    check_identity(layout, late, 1)
    assert late.dtype == torch.bfloat16 and not list(late.parts.blocks[0].parameters())
    donor = load_mlps(layout, "quantised-it", (1, 2), catalog(pair))
    assert torch.equal(donor.mlps[1].up_proj.weight, late.parts.mlps[1].up_proj.weight)


def test_boundary_that_is_not_stored(tmp_path, llama):
    profile = replace(tiny.FULL, boundaries=(0, "last"))
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, variants=("it",), profile=profile)
    with pytest.raises(LakeError) as caught:
        open_start(layout, "llama-it", "raw", 2)
    assert re.search(
        r"boundary 2 is not stored in this capture \(it has 0, 3\).*`actlake capture llama-it --stream raw --prompts tiny"
        r" --profile full --lake OTHER` keeps all",
        str(caught.value),
    )


def test_capture_of_some_positions(tmp_path, lakes):
    import zarr

    shutil.copytree(lakes("llama").root, tmp_path / "lake")
    layout = Layout.open(tmp_path / "lake")
    path = find_capture(layout, "llama-it", "raw")
    zarr.open_group(path, mode="r+")["position"][3] += 1
    mutate.again(layout.root, path / "position/c/0")  # somebody's who writes the hashes, too
    with pytest.raises(LakeError, match="holds only some positions; a replay needs the residual of all"):
        open_start(layout, "llama-it", "raw", 1)


def test_streams_that_disagree(captured, tmp_path, llama):
    pt, it = (open_start(captured, f"llama-{variant}", "native", 1) for variant in ("pt", "it"))
    with pytest.raises(LakeError, match=r"prompt 0 has other tokens than in .* from position 1 on"):
        borrowed(pt, it)
    shared = tiny.capture(tmp_path / "lake", llama, StreamSpec("shared", "raw", "it", 6))
    pt, it = (open_start(shared, f"llama-{variant}", "shared", 1) for variant in ("pt", "it"))
    borrowed(pt, it)
    with pytest.raises(LakeError, match="has 5 prompts"):
        borrowed(pt, replace(it, lengths=it.lengths[:-1]))


def test_states_of_another_capture(tmp_path, llama):
    """Both read the bare prompts and then go their own ways; on the prompts one's states can begin the other's replay."""
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW)
    pt, it = (open_start(layout, f"llama-{variant}", "raw", 1) for variant in ("pt", "it"))
    lengths = [
        np.flatnonzero(steps == 0)[0] + 1
        for steps in np.split(stored(layout, "llama-pt").array("step")[:], pt.offset[1:-1])
    ]
    pt, it = replace(pt, lengths=np.array(lengths)), replace(it, lengths=np.array(lengths))
    assert not np.array_equal(pt.token_id, it.token_id)
    late = load_suffix(llama.pt, 1)
    found = replay_whole(late, replace(pt, states=borrowed(pt, it)), logits="full")
    expected = replay_whole(late, it, logits="full")  # the same cell, on the other capture's tokens
    assert len(found.tokens) == sum(lengths)
    assert all(np.array_equal(found.arrays[name], expected.arrays[name]) for name in ("resid", "logits"))


def test_few_boundaries_are_enough(tmp_path, llama):
    profile = replace(tiny.FULL, boundaries=(2, "last"))
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, variants=("it",), profile=profile)
    found = replay_whole(load_suffix(llama.it, 2), open_start(layout, "llama-it", "raw", 2))
    assert same_bits(found.arrays["resid"], stored(layout, "llama-it").array("resid")[:])


def test_missing_weights(lakes, pairs, tmp_path):
    layout = lakes("llama")
    for given, says in ((None, "no catalog was given"), (catalog(pairs("gpt2")), "catalog.yaml")):
        with pytest.raises(LakeError, match=f"model llama-it: no weights found; looked in .*weights and .*{says}"):
            load_late(layout, "llama-it", 1, given)
    hub = replace(pairs("llama").it, path=None, hub="nobody/nothing")
    with pytest.raises(LakeError, match="not on this machine; fetch them with `hf download nobody/nothing`"):
        load_late(layout, "llama-it", 1, catalog(replace(pairs("llama"), it=hub)))
    gone = replace(pairs("llama").it, path=tmp_path / "gone")
    with pytest.raises(LakeError, match=r"gone has no config\.json"):
        load_mlps(layout, "llama-it", (1, 3), catalog(replace(pairs("llama"), it=gone)))
    other = replace(pairs("llama"), it=replace(pairs("llama").pt, name="llama-it"))
    with pytest.raises(LakeError, match="its weights are not those that the lake's captures were made from"):
        load_late(layout, "llama-it", 1, catalog(other))


def test_incomplete_weights(tmp_path, pairs):
    folder = cut_checkpoint(pairs("llama").it.path, tmp_path / "cut", lambda name: "layers.2.mlp.up" not in name)
    for load in (lambda spec: load_suffix(spec, 1), lambda spec: load_donor(spec, (1, 2))):
        with pytest.raises(LakeError, match=r"lacks 1 weights .*layers\.2\.mlp\.up_proj"):
            load(tiny.spec(folder, "llama-it"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda model, start, spec: next(replay(model, start, prompts=(6,))),
            "no token is wanted; its prompts are 0 to 5",
        ),
        (lambda model, start, spec: next(replay(model, start, tokens=np.ones(3, bool))), "tokens marks 3 tokens"),
        (
            lambda model, start, spec: next(replay(load_suffix(spec, 2, dtype="bfloat16"), start)),
            "its residual has dtype float32, llama-it has dtype bfloat16",
        ),
        (
            lambda model, start, spec: next(replay(load_suffix(spec, 2, attention="eager"), start)),
            "its residual has attention sdpa, llama-it has attention eager",
        ),
        (lambda model, start, spec: load_suffix(spec, 3), "no block 3; it has blocks 0 to 2"),
        (lambda model, start, spec: load_donor(spec, range(2, 4)), "no block 3; it has blocks 0 to 2"),
        (lambda model, start, spec: load_donor(spec, ()), "no blocks named"),
        (lambda model, start, spec: next(replay(model, start, keep=("logits",))), "no site 'logits'"),
        (lambda model, start, spec: next(replay(model, start, logits="all")), "logits 'all'; expected topk"),
        (lambda model, start, spec: next(replay(model, start, boundaries=(0,))), "no boundary 0; expected 2 to 3"),
        (
            lambda model, start, spec: next(replay(model, replace(start, states=np.zeros((1, 8), np.float32)))),
            "its residual has width 8, llama-it has width 32",
        ),
    ],
)
def test_what_is_refused(lakes, pairs, call, says):
    start = open_start(lakes("llama"), "llama-it", "raw", 2)
    with pytest.raises(LakeError, match=re.escape(says)):
        call(load_suffix(pairs("llama").it, 2), start, pairs("llama").it)


@pytest.mark.parametrize("edits", [(), (Zero(blocks=(2,)),)], ids=["plain", "edited"])
def test_a_model_that_computes_otherwise_is_refused_before_it_is_used(lakes, pairs, edits):
    """With edits a batch is run without them first; the stored states of another capture are nobody's own to compare with."""
    layout, model = lakes("llama"), load_model(pairs("llama").it)
    start = open_start(layout, "llama-it", "raw", 1)
    with torch.no_grad():
        model.parts.mlps[2].up_proj.weight.mul_(1.01)
    with pytest.raises(
        LakeError, match=r"gives other values from boundary 1 on than are stored: .* differs by up to .*, allowed"
    ):
        replay_whole(model, start, edits)
    with torch.no_grad():
        model.parts.mlps[2].up_proj.weight.div_(1.01)
    replay_whole(model, start, edits)
