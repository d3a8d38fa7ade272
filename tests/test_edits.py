"""Edits against full forwards of the untouched Hugging Face models with hooks written here; each no-op is one, bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.residual.directions import matched_units, random_units, rotated_units
from actlake.capture.edit.edits import (
    Edit,
    Graft,
    Inject,
    Matched,
    RandomGraft,
    Scale,
    Skip,
    Zero,
    edited,
)
from actlake.capture.edit.replay import load_late, load_mlps, replay_whole
from actlake.capture.edit.start import ReplayStart, open_start
from actlake.capture.model.load import Model, load_model
from actlake.capture.model.partial import Donor, load_donor
from actlake.store.captures.reader import Capture
from actlake.store.core.catalog import StreamSpec
from actlake.store.core.errors import LakeError
from torch import Tensor
from transformers import AutoModelForCausalLM

FAMILIES = tiny.sampled("llama", "gemma3", "gpt_neox", "deepseek_v2")
SHARED = StreamSpec("shared", "raw", "it", 6)  # both models on the same tokens
WIDTH = tiny.SIZES["hidden_size"]
UNITS = random_units((1, 2), WIDTH)
OTHERS = matched_units((1, 2), WIDTH)
TOLERANCE = 1e-4


@dataclass
class Scene:
    """A family's pair: replays of the pt from boundary 1, and both Hugging Face models to compare with."""

    late: Model
    starts: dict[str, ReplayStart]
    captures: dict[str, Capture]
    donor: Donor
    own: Donor
    hf: dict[str, Any]
    blocks: dict[str, Any]
    step: np.ndarray

    @property
    def sequences(self) -> list[np.ndarray]:
        start = self.starts["pt"]
        return np.split(start.token_id, start.offset[1:-1])

    @cached_property
    def plain(self) -> np.ndarray:
        """Logits of the pt without any edit."""
        return direct(self, lambda *_: [])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, pairs) -> Callable[[str], Scene]:
    root = tmp_path_factory.mktemp("scenes")

    @cache
    def scene(family: str) -> Scene:
        pair = pairs(family)
        layout = tiny.capture(root / family, pair, SHARED)
        catalog = tiny.catalog_of(pair)
        starts = {v: open_start(layout, f"{family}-{v}", "shared", 1) for v in ("pt", "it")}
        captures = {v: Capture(start.path) for v, start in starts.items()}
        hf = {v: AutoModelForCausalLM.from_pretrained(pair.model(v).path, attn_implementation="sdpa") for v in starts}
        return Scene(
            load_late(layout, f"{family}-pt", 1, catalog),
            starts,
            captures,
            load_mlps(layout, f"{family}-it", (1, 3), catalog),
            load_mlps(layout, f"{family}-pt", (1, 3), catalog),
            hf,
            {v: model.eval().get_submodule(tiny.FAMILIES[family].blocks) for v, model in hf.items()},
            captures["pt"].array("step")[:],
        )

    return scene


Reference = Callable[[Scene, int, slice], list[Any]]


@torch.no_grad()
def direct(scene: Scene, hooks: Reference, variant: str = "pt") -> np.ndarray:
    """Logits [tokens, V] of whole forwards, each prompt alone, with the hooks that `hooks` registers for a prompt's tokens."""
    found, start = [], scene.starts["pt"]
    for prompt, tokens in enumerate(scene.sequences):
        at = int(start.offset[prompt])
        handles = hooks(scene, prompt, slice(at, at + len(tokens)))
        found.append(
            scene.hf[variant](input_ids=torch.tensor(tokens[None].astype(np.int64)), use_cache=False).logits[0]
        )
        for handle in handles:
            handle.remove()
    return torch.cat(found).numpy()


def on(module: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A hook that puts change(output, input) in place of a module's output."""

    def hook(_module: Any, args: tuple, kwargs: dict, value: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (change(value[0], given), *value[1:]) if isinstance(value, tuple) else change(value, given)

    return module.register_forward_hook(hook, with_kwargs=True)


def attention(block: Any) -> Any:
    return next(m for name, m in block.named_children() if name in ("self_attn", "attn", "attention"))


def vector(units: dict[int, np.ndarray], layer: int) -> Tensor:
    return torch.from_numpy(units[layer]).float()


def outputs(pick: Callable[[Any], Any], change: Callable[[Tensor, int], Tensor], layers: Any = (1, 2)) -> Reference:
    """Hooks on the modules that `pick` finds in some blocks."""
    return lambda scene, prompt, at: [
        on(pick(scene.blocks["pt"][layer]), lambda m, _x, layer=layer: change(m, layer)) for layer in layers
    ]


def mlp(block: Any) -> Any:
    return block.mlp


def scaled(alpha: float) -> Callable[[Tensor, int], Tensor]:
    def change(m: Tensor, layer: int) -> Tensor:
        d = vector(UNITS, layer)
        return m - (1 - alpha) * torch.outer(m[0] @ d, d)[None]

    return change


def matched(alpha: float) -> Callable[[Tensor, int], Tensor]:
    def change(m: Tensor, layer: int) -> Tensor:
        out, d, u = m.clone(), vector(UNITS, layer), vector(OTHERS, layer)
        for row in out[0]:
            s = abs(float(row @ d)) / max(abs(float(row @ u)), 1e-8)
            row -= (1 - alpha) * s * (row @ u) * u
        return out

    return change


def grafted(scene: Scene, prompt: int, at: slice) -> list[Any]:
    return [on(scene.blocks["pt"][layer].mlp, lambda _m, x, b=scene.blocks["it"][layer]: b.mlp(x)) for layer in (1, 2)]


def randomly(scene: Scene, prompt: int, at: slice) -> list[Any]:
    """exp19B: the change has delta's component along x, and delta's norm across it in a random direction."""

    def change(m: Tensor, x: Tensor, layer: int) -> Tensor:
        random = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3 + 7919 * layer))
        out, theirs = m.clone(), scene.blocks["it"][layer].mlp(x)
        for row, donor, given in zip(out[0], theirs[0], x[0], strict=True):
            delta, e = donor - row, given / given.norm()
            across = random - (random @ e) * e
            size = torch.sqrt(delta @ delta - (delta @ e) ** 2)
            row += (delta @ e) * e + size * across / across.norm()
        return out

    return [on(scene.blocks["pt"][layer].mlp, lambda m, x, layer=layer: change(m, x, layer)) for layer in (1, 2)]


def states(scene: Scene, variant: str, boundary: int) -> np.ndarray:
    """What leaves block boundary-1 of the untouched model, prompt by prompt; [tokens, d]."""
    seen: list[Tensor] = []
    block = scene.blocks[variant][boundary - 1]
    direct(scene, lambda s, p, at: [on(block, lambda h, _x: seen.append(h[0]) or h)], variant)
    return torch.cat(seen).numpy()


def resid(scene: Scene, boundary: int, variant: str = "it") -> np.ndarray:
    return scene.captures[variant].array("resid")[:, boundary]


CASES: dict[str, tuple[Callable[[Scene], list[Edit]], Callable[[Scene], Reference]]] = {
    "graft": (lambda s: [Graft(s.donor)], lambda s: grafted),
    "random graft": (lambda s: [RandomGraft(s.donor, seed=3)], lambda s: randomly),
    "scale mlp": (lambda s: [Scale(UNITS, 3.0)], lambda s: outputs(mlp, scaled(3.0))),
    "remove from block": (lambda s: [Scale(UNITS, 0.0, site="block")], lambda s: outputs(lambda b: b, scaled(0.0))),
    "scale attn": (lambda s: [Scale(UNITS, -2.0, site="attn")], lambda s: outputs(attention, scaled(-2.0))),
    "matched": (lambda s: [Matched(UNITS, 2.0)], lambda s: outputs(mlp, matched(2.0))),
    "inject": (
        lambda s: [Inject(UNITS, 0.7, site="block")],
        lambda s: outputs(lambda b: b, lambda h, layer: h + 0.7 * vector(UNITS, layer)),
    ),
    "inject by norm": (
        lambda s: [Inject(UNITS, -0.5, relative=True)],
        lambda s: outputs(mlp, lambda m, layer: m - 0.5 * m.norm(dim=-1)[..., None] * vector(UNITS, layer)),
    ),
    "skip": (
        lambda s: [Zero(blocks=(2,)), Zero(blocks=(2,), site="attn")],
        lambda s: (
            lambda *a: outputs(mlp, lambda m, _: 0 * m, (2,))(*a) + outputs(attention, lambda m, _: 0 * m, (2,))(*a)
        ),
    ),
    "graft, then scale": (
        lambda s: [Graft(s.donor), Scale(UNITS, 3.0)],
        lambda s: lambda *a: grafted(*a) + outputs(mlp, scaled(3.0))(*a),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_edit_against_hooks_on_the_untouched_models(scenes, family, case):
    scene = scenes(family)
    edits, hooks = CASES[case]
    found = replay_whole(scene.late, scene.starts["pt"], edits(scene), keep=("resid",), logits="full")
    expected = direct(scene, hooks(scene))
    assert np.abs(found.arrays["logits"] - expected).max() < TOLERANCE
    assert np.abs(expected - scene.plain).max() > 100 * TOLERANCE  # it is an edit


NOOPS: dict[str, tuple[type, Callable[[Scene], Edit]]] = {
    "alpha = 1": (Scale, lambda s: Scale(UNITS, 1.0)),
    "alpha = 1, block": (Scale, lambda s: Scale(UNITS, 1.0, site="block")),
    "alpha = 1, attn": (Scale, lambda s: Scale(UNITS, 1.0, site="attn")),
    "alpha = 1, matched": (Matched, lambda s: Matched(UNITS, 1.0)),
    "no blocks, skipped": (Skip, lambda s: Skip()),
    "beta = 0": (Inject, lambda s: Inject(UNITS, 0.0)),
    "beta = 0, by norm": (Inject, lambda s: Inject(UNITS, 0.0, relative=True, site="block")),
    "no blocks": (Zero, lambda s: Zero()),
    "the host's own MLPs as donor": (Graft, lambda s: Graft(s.own)),
    "the host's own MLPs as donor, random": (RandomGraft, lambda s: RandomGraft(s.own)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_noops_change_no_bit(scenes, family):
    scene = scenes(family)
    kept = scene.captures["pt"]
    for name, (kind, make) in NOOPS.items():
        assert name.startswith(kind.noop)
        found = replay_whole(scene.late, scene.starts["pt"], [make(scene)]).arrays
        for array in ("resid", "mlp_out"):
            expected = kept.array(array)[:][:, 1:]
            assert np.array_equal(found[array].view(np.uint32), expected.view(np.uint32)), (name, array)
        assert all(
            np.array_equal(found[array], kept.array(array)[:]) for array in ("topk_id", "topk_logit", "logsumexp")
        )


def test_every_edit_has_a_noop_that_is_tested():
    def kinds(of: type) -> set[type]:
        return {of, *(kind for below in of.__subclasses__() for kind in kinds(below))}

    assert {kind for kind, _ in NOOPS.values()} == {kind for kind in kinds(Edit) if not kind.__abstractmethods__}


def test_noops_in_bfloat16(tmp_path):
    pair = tiny.make_pair(tmp_path / "pair", "gemma3", torch.bfloat16)
    layout = tiny.capture(tmp_path / "lake", pair, SHARED, variants=("it", "pt"))
    catalog = tiny.catalog_of(pair)
    late, start = load_late(layout, "gemma3-pt", 1, catalog), open_start(layout, "gemma3-pt", "shared", 1)
    own = load_mlps(layout, "gemma3-pt", (1, 3), catalog)
    plain = replay_whole(late, start).arrays
    for edit in (Scale(UNITS, 1.0), Inject(UNITS, 0.0), Graft(own), RandomGraft(own)):
        found = replay_whole(late, start, [edit]).arrays
        assert all(np.array_equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_four_cells_of_upstream_and_late(scenes, pairs, family):
    """exp23: the late blocks of either model on the stored states of either, read out by both heads."""
    scene = scenes(family)
    models = {"pt": scene.late, "it": load_model(pairs(family).it)}
    rows = scene.starts["pt"].offset[1:] - 1
    cells = np.zeros((2, 2, 2, len(rows)))
    expected = np.zeros_like(cells)
    t_it, t_pt = 7, 9
    for i, upstream in enumerate(("pt", "it")):
        state = states(scene, upstream, 1)
        for j, late in enumerate(("pt", "it")):
            last = np.zeros(len(scene.starts["pt"].token_id), bool)
            last[rows] = True
            piece = replay_whole(
                models[late], scene.starts[upstream], keep=("resid",), logits="none", boundaries=(3,), tokens=last
            )
            assert np.array_equal(piece.tokens, rows)
            if upstream == late:
                assert np.array_equal(piece.arrays["resid"][:, 0], resid(scene, 3, late)[rows])
            block, final = scene.blocks[late][0], []

            def overwrite(s: Scene, p: int, at: slice, block=block, state=state) -> list[Any]:
                return [on(block, lambda _h, _x: torch.from_numpy(state[at])[None])]

            keep = on(scene.blocks[late][2], lambda h, _x, final=final: final.append(h[0, -1]) or h)
            direct(scene, overwrite, late)
            keep.remove()
            for k, readout in enumerate(("pt", "it")):
                z = models[readout].head.logits(torch.from_numpy(piece.arrays["resid"][:, 0]))
                cells[i, j, k] = (z[:, t_it] - z[:, t_pt]).numpy()
                model = load_model(pairs(family).model(readout))
                with torch.no_grad():
                    z = model.logits(torch.stack(final))
                expected[i, j, k] = (z[:, t_it] - z[:, t_pt]).numpy()
    assert np.abs(cells - expected).max() < TOLERANCE
    interaction = (cells[1, 1] - cells[1, 0]) - (cells[0, 1] - cells[0, 0])
    assert np.abs(interaction).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma3_wrapper", "gpt2"])
def test_edits_of_a_whole_model(scenes, pairs, family):
    """Without a replay, as free generation uses them: the same edits give the same tokens as hooks of our own."""
    scene, model = scenes(family), load_model(pairs(family).pt)
    donor = load_donor(pairs(family).it, (1, 2))
    ids = torch.tensor(scene.sequences[1][None].astype(np.int64))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tiny.PAD}
    plain = model.hf.generate(ids, **options)
    with edited(model, [Graft(donor), Scale(UNITS, 3.0)]):
        found = model.hf.generate(ids, **options)
    handles = grafted(scene, 1, slice(0, 0)) + outputs(mlp, scaled(3.0))(scene, 1, slice(0, 0))
    expected = scene.hf["pt"].generate(ids, **options)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, expected)
    assert torch.equal(model.hf.generate(ids, **options), plain) and not torch.equal(found, plain)


def test_edits_leave_nothing_behind_when_the_model_fails(scenes):
    scene = scenes("llama")
    mlps = scene.late.parts.mlps[1:]
    with pytest.raises(RuntimeError, match="stop"), edited(scene.late, [Graft(scene.donor), Scale(UNITS, 2.0)]):
        assert all("forward" in vars(mlp) and mlp._forward_hooks for mlp in mlps)
        raise RuntimeError("stop")
    assert not any("forward" in vars(mlp) or mlp._forward_hooks for mlp in mlps)


def test_random_directions():
    rng = np.random.default_rng(42)
    for layer, unit in random_units((20, 21), 8).items():
        drawn = rng.standard_normal(8)
        assert np.allclose(unit, drawn / np.sqrt((drawn**2).sum())), layer
    drawn = torch.randn(8, generator=torch.Generator().manual_seed(5 + 7919 * 3)).double()
    assert np.allclose(matched_units((3,), 8, 5)[3], (drawn / drawn.norm()).numpy())
    units = random_units((4, 9), 16)
    rotated = rotated_units({layer: 2.5 * unit for layer, unit in units.items()})
    for layer, unit in rotated.items():
        assert abs(unit @ units[layer]) < 1e-12 and abs(np.linalg.norm(unit) - 1) < 1e-12
        drawn = torch.randn(16, generator=torch.Generator().manual_seed(42 + 1031 * layer + 999_983)).double().numpy()
        assert np.linalg.matrix_rank(np.stack([unit, units[layer], drawn]), tol=1e-6) == 2


def test_states_are_laid_out_as_the_batch_is():
    given = np.arange(12, dtype=np.float32).reshape(6, 2)
    start = ReplayStart(Path("x"), {}, 1, given, np.arange(6), np.array([0, 2, 6]), np.array([2, 3]))
    assert start.spans([1, 0]) == [(2, 5), (0, 2)]
    padded = start.padded(start.spans([1, 0]))
    assert np.array_equal(padded[0], given[2:5]) and np.array_equal(padded[1, :2], given[:2])
    assert padded.shape == (2, 3, 2) and padded.dtype == np.float32 and not padded[1, 2:].any()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda s: Scale(random_units((0,), WIDTH), 2.0), "edit Scale of llama-pt: block 0 is outside the blocks that run, 1 to 2"),
        (lambda s: Zero(blocks=(3,)), "edit Zero of llama-pt: block 3 is outside"),
        (lambda s: Graft(s.donor, (1, 5)), "edit Graft of llama-pt: block 5 is outside"),
        (lambda s: Graft(Donor("llama-it", {1: s.donor.mlps[1]}), (1, 2)), "donor llama-it: no MLP of block 2 is loaded, only of 1"),
        (lambda s: Scale(UNITS, 2.0, site="norm"), "unknown site 'norm'; expected one of mlp, attn, block"),
        (lambda s: Scale({1: 2 * UNITS[1]}, 2.0), "the direction of block 1 has shape .32,. and norm 2, expected one vector"),
        (lambda s: Scale({1: np.full(WIDTH, np.nan)}, 2.0), "norm nan"),
    ],
)  # fmt: skip
def test_what_is_refused(scenes, edit, says):
    scene = scenes("llama")
    with pytest.raises(LakeError, match=says):
        replay_whole(scene.late, scene.starts["pt"], [edit(scene)])


def test_donor_of_another_shape(scenes, tmp_path):
    scene = scenes("llama")
    for sizes, says in (
        ({"intermediate_size": 48}, r"\(48, 32\) on cpu, expected .*\(64, 32\)"),
        ({"hidden_size": 64}, r"\(64, 64\)"),
    ):
        donor = load_donor(tiny.spec(tiny.make_model(tmp_path / says, **sizes), "wide-it"), (1, 2))
        with pytest.raises(LakeError, match=f"donor wide-it: the MLP of block 1 doesn't fit into llama-pt: .*{says}"):
            replay_whole(scene.late, scene.starts["pt"], [Graft(donor)])
    narrow = load_donor(scene.late.spec, (1, 2), dtype="bfloat16")
    with pytest.raises(LakeError, match=r"torch\.bfloat16 .* expected torch\.float32"):
        replay_whole(scene.late, scene.starts["pt"], [Graft(narrow)])
