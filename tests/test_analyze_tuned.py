"""Tuned-lens training against autograd in float64, plain update loops and torch's own modules; its feed and its split."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from actlake.analyze.lens import tuned_lens
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import Block, lens
from actlake.analyze.lens.tuned_lens import Objective, Probes, Trainer, train
from actlake.analyze.tuned.folds import fold_of
from actlake.analyze.tuned.least_squares import least_squares
from actlake.analyze.tuned.recipes import Adam, Recipe, Ridge, Sgd, family_scale
from actlake.analyze.tuned.shuffle_buffer import Shuffle
from distances import kl
from hypothesis import given
from hypothesis import strategies as st
from test_analyze_lens import HEADS, assert_same, make_head, make_resid, reference, reference_logits

QUICK = Adam(batch=16, steps=40, check_every=10, peak=1e-2)
OURS = Ridge(batch=16, steps=40, check_every=10, patience=40)


def make_probes(seed: int, layers: int, width: int) -> Probes:
    r = torch.Generator().manual_seed(seed)
    eye = Probes.identity(layers, width)
    return Probes(
        eye.weight + 0.3 * torch.randn(layers, width, width, generator=r), torch.randn(layers, width, generator=r)
    )


def make_mixed(seed: int, tokens: int, boundaries: int) -> np.ndarray:
    """Residuals of which every boundary is another linear map of the last one: what probes are there to undo."""
    r = np.random.default_rng(seed)
    last = r.standard_normal((tokens, 12))
    maps = [np.eye(12) + 0.2 * r.standard_normal((12, 12)) for _ in range(boundaries - 1)]
    return np.stack([*(last @ m + 0.1 for m in maps), last], axis=1).astype(np.float32)


def translated(probes: Probes, resid: np.ndarray) -> np.ndarray:
    """T_l(h) = W h + b token by token in float64; the last boundary as it is."""
    out = resid.astype(np.float64)
    for row in out:
        for layer in range(len(probes.bias)):
            row[layer] = probes.weight[layer].double().numpy() @ row[layer] + probes.bias[layer].double().numpy()
    return out


def run(recipe: Recipe, rows: np.ndarray, head: Head) -> Trainer:
    """A whole run on rows that fit the buffer, held-out rows apart."""
    trainer = Trainer(Objective(head), rows.shape[1], recipe)
    train([(trainer, Shuffle([rows[16:]], len(rows), 0), rows[:16])])
    return trainer


# --- the lens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_every_column_of_the_tuned_lens_matches_float64(options: dict) -> None:
    head, resid, probes = make_head(1, **options), make_resid(2, 23, 5), make_probes(3, 4, 12)
    target = np.random.default_rng(3).integers(-1, head.vocab, 23)
    got = lens(head, resid, target, probes=probes, block=Block(rows=37, tile=10, buffer=1 << 20))
    assert_same(got, reference(head, translated(probes, resid), target), atol=1e-4)


def test_identity_probes_are_the_raw_lens_and_the_last_boundary_is_shared() -> None:
    head, resid, target = make_head(1), make_resid(2, 9, 4), np.full(9, -1)
    raw = lens(head, resid, target)
    assert_same(lens(head, resid, target, probes=Probes.identity(3, 12)), raw, atol=1e-6)
    tuned_lens = lens(head, resid, target, probes=make_probes(1, 3, 12))
    assert not np.allclose(tuned_lens["entropy"][:, 0], raw["entropy"][:, 0], atol=1e-2)
    assert np.allclose(tuned_lens["entropy"][:, -1], raw["entropy"][:, -1], atol=1e-6)
    assert np.all(tuned_lens["kl_final_layer"][:, -1] < 1e-6)


def test_probes_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="probes of 3 boundaries of width 12"):
        lens(make_head(1), make_resid(2, 9, 5), np.full(9, -1), probes=Probes.identity(3, 12))
    with pytest.raises(ValueError, match="do not fit"):
        Probes(torch.zeros(3, 4, 4), torch.zeros(3, 5))


# --- one step --------------------------------------------------------------------------------------------------------


def reference_loss(head: Head, resid: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mean KL(p_L || p_l) of each layer, float64, differentiable."""
    h = torch.einsum("nld,led->nle", resid[:, :-1], weight) + bias
    final, layers = (reference_logits(head, x).log_softmax(-1) for x in (resid[:, -1:], h))
    return (
        torch.nn.functional.kl_div(layers, final.expand_as(layers), reduction="none", log_target=True).sum(-1).mean(0)
    )


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rows", [512, 7])
def test_gradient_is_that_of_float64_autograd(options: dict, rows: int) -> None:
    head, resid = make_head(1, **options), make_resid(2, 23, 4)
    probes = make_probes(5, 3, 12)
    trainer = Trainer(Objective(head), 4, Sgd(batch=23))
    trainer.objective.rows = rows  # more rows than fit at once are added up
    with torch.no_grad():
        for layer in range(3):
            trainer.weight[layer].copy_(probes.weight[layer])
            trainer.bias[layer].copy_(probes.bias[layer])
    trainer.add(resid)
    weight, bias = (t.double().requires_grad_() for t in (probes.weight, probes.bias))
    loss = reference_loss(head, torch.from_numpy(resid).double(), weight, bias)
    loss.sum().backward()
    assert np.allclose(trainer.measure(resid), loss.detach().numpy(), atol=1e-5)
    for layer in range(3):
        assert torch.allclose(trainer.weight[layer].grad.double() / 23, weight.grad[layer], atol=2e-5)
        assert torch.allclose(trainer.bias[layer].grad.double() / 23, bias.grad[layer], atol=2e-5)


def test_sgd_is_the_published_update() -> None:
    # METHODS 3.2, written as it stands: clip per probe, v = mu v + g, step lr (g + mu v), lr falls linearly.
    head, resid = make_head(1), make_mixed(2, 64, 3)
    resid[:, 1] = 0.8 * resid[:, -1] + 0.2 * resid[:, 1]  # near its goal: a gradient that is not clipped
    trainer = Trainer(Objective(head), 3, Sgd(batch=16, scale=0.5), steps=4)
    weight, bias = (t.double() for t in dataclasses.astuple(Probes.identity(2, 12)))
    velocity = [torch.zeros(2, 12, 13, dtype=torch.float64)]
    norms = []
    for step in range(4):
        batch = resid[16 * step : 16 * step + 16]
        trainer.add(batch)
        trainer.step()
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        reference_loss(head, torch.from_numpy(batch).double(), w, b).sum().backward()
        g = torch.cat([w.grad, b.grad[..., None]], -1)
        norm = g.flatten(1).norm(dim=1)
        norms += norm.tolist()
        g = g * (1 / norm).clamp_max(1)[:, None, None]
        velocity[0] = g if step == 0 else 0.9 * velocity[0] + g
        move = 0.5 * (1 - 0.9) * (1 - step / 4) * (g + 0.9 * velocity[0])
        weight, bias = weight - move[..., :-1], bias - move[..., -1]
    assert min(norms) < 1 < max(norms)  # both sides of the clip are exercised
    assert torch.allclose(torch.stack(trainer.weight).double(), weight, atol=1e-4)
    assert torch.allclose(torch.stack(trainer.bias).double(), bias, atol=1e-4)


def test_adam_is_the_published_update() -> None:
    head, resid = make_head(1, softcap=5.0), make_resid(2, 60, 3)
    recipe = Adam(batch=3, steps=20)
    trainer = Trainer(Objective(head), 3, recipe)
    linear = [torch.nn.Linear(12, 12).double() for _ in range(2)]
    for layer in linear:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW([p for layer in linear for p in layer.parameters()], lr=1e-3, weight_decay=1e-3)
    for step in range(20):
        batch = resid[3 * step : 3 * step + 3]
        trainer.add(batch)
        trainer.step()
        w, b = (torch.stack([getattr(layer, name) for layer in linear]) for name in ("weight", "bias"))
        optimizer.zero_grad()
        reference_loss(head, torch.from_numpy(batch).double(), w, b).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 if step < 1 else 5e-4 * (1 + np.cos(np.pi * (step - 1) / 19))
        optimizer.step()
    for layer in range(2):
        assert torch.allclose(trainer.weight[layer].double(), linear[layer].weight, atol=1e-4)


def test_rates_and_scales_of_the_recipes() -> None:
    assert Sgd().record() | {"clip": 1.0} == {
        "name": "sgd", "batch": 262_144, "steps": 250, "clip": 1.0, "check_every": 50, "patience": 1_000, "scale": 1.0, "momentum": 0.9,
    }  # fmt: skip
    assert [round(Sgd(scale=0.25).rate(step, 250), 6) for step in (0, 125, 249)] == [0.025, 0.0125, 0.0001]
    rates = [Adam().rate(step, 100) for step in range(100)]
    assert max(rates) == 1e-3 == rates[5] and rates[0] < rates[4] < 1e-3 and rates[-1] < 1e-5
    assert Ridge().record() == {
        "name": "ridge", "batch": 64, "steps": 500, "clip": None, "check_every": 8, "patience": 1, "peak": 0.12, "decay": 0.0,
        "warmup": 0.05, "look": 192, "least_gain": 0.005, "start_ridges": [0.3, 0.1, 0.03],
    }  # fmt: skip
    assert [Ridge().tokens(*size) // 64 for size in ((1073, 192), (10, 192), (10**6, 192))] == [56, 24, 500]
    assert Adam().tokens(10, 192) == 64 * 500
    assert [
        family_scale(name)
        for name in ("Gemma3ForCausalLM", "Qwen3ForCausalLM", "DeepseekV2ForCausalLM", "LlamaForCausalLM")
    ] == [0.25, 0.5, 0.5, 1.0]
    with pytest.raises(ValueError, match="batch is 0"):
        Adam(batch=0)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [QUICK, Sgd(batch=32, steps=40, check_every=10), OURS], ids=["adam", "sgd", "ridge"])
def test_training_lowers_the_held_out_kl_of_every_layer(recipe: Recipe) -> None:
    trainer = run(recipe, make_mixed(2, 216, 4), make_head(1))
    raw, best = np.array(trainer.curve[0]["held_out"]), trainer.best_kl
    assert np.all(best < 0.9 * raw) and trainer.curve[-1]["step"] == 40
    # What is kept is what was best, on an independent computation.
    found = lens(make_head(1), make_mixed(2, 216, 4)[:16], np.full(16, -1), probes=trainer.best)
    assert np.allclose(found["kl_final_layer"][:, :-1].mean(0), best, atol=1e-5)


@pytest.mark.parametrize("recipe", [QUICK, Sgd(batch=32, steps=40, check_every=10), OURS], ids=["adam", "sgd", "ridge"])
@pytest.mark.parametrize("stop", [1, 10, 17, 39])
def test_a_resumed_run_ends_in_the_same_bits(recipe: Recipe, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, head = make_mixed(2, 216, 4), make_head(1)
    whole = run(recipe, rows, head)

    class Killed(Exception):
        pass

    first, kept = Trainer(Objective(head), 4, recipe), {}

    def save() -> None:
        kept.update(first.state(), curve=json.dumps(first.curve))
        if first.done == stop:
            raise Killed

    monkeypatch.setattr(tuned_lens, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        train([(first, Shuffle([rows[16:]], 200, 0), rows[:16])], save=save)
    second, curve = Trainer(Objective(head), 4, recipe), json.loads(kept.pop("curve"))
    second.restore(kept, curve)
    train([(second, Shuffle([rows[16:]], 200, 0), rows[:16])])
    assert torch.equal(second.best.weight, whole.best.weight) and torch.equal(second.best.bias, whole.best.bias)
    assert second.curve == whole.curve and second.seen == whole.seen


def test_least_squares_is_where_the_weighted_sum_is_least() -> None:
    r = np.random.default_rng(0)
    x, y = (torch.from_numpy(r.standard_normal((50, 6)) * r.uniform(0.5, 5, (50, 1)) + 1).float() for _ in range(2))
    weight, bias = (t.double().requires_grad_() for t in least_squares(x, y, 0.3))
    share = 1 / y.double().square().sum(1)
    share /= share.sum()
    variance = share @ (x.double() - share @ x.double()).square() / 1.0
    loss = share @ (x.double() @ weight.T + bias - y.double()).square().sum(1)
    loss = loss + 0.3 * variance.mean() * (weight - torch.eye(6, dtype=torch.float64)).square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-5 and bias.grad.abs().max() < 1e-5
    assert torch.allclose(least_squares(x, y, 1e9)[0], torch.eye(6), atol=1e-6)


def test_ridge_starts_at_the_best_of_its_maps_and_keeps_the_raw_lens_where_that_is_better() -> None:
    rows, head = make_mixed(2, 216, 4), make_head(1)
    rows[:, 1] = rows[:, -1]
    trainer, feed = Trainer(Objective(head), 4, OURS), Shuffle([rows[16:]], 200, 0)
    trainer.check(rows[:16])
    trainer.start(feed, rows[:16])
    looks = np.array([line["held_out"] for line in trainer.curve])
    assert [line.get("ridge") for line in trainer.curve] == [None, *OURS.start_ridges]
    assert np.array_equal(trainer.best_kl, looks.min(0)) and looks[0, 1] < 1e-6
    assert torch.equal(trainer.weight[1], torch.eye(12)) and not trainer.stale.any()
    tried = [
        least_squares(*(torch.from_numpy(rows[16:, at]) for at in (0, -1)), ridge)[0] for ridge in OURS.start_ridges
    ]
    assert any(torch.equal(trainer.weight[0], weight) for weight in tried)
    size = np.linalg.norm(rows[16:, -1]) / np.linalg.norm(rows[16:, 2])
    assert trainer.speed[2] == pytest.approx(size / 12, rel=1e-5)


def test_ridge_does_as_well_as_adam_in_a_fifth_of_its_rows() -> None:
    rows, head = make_mixed(2, 1016, 4), make_head(1)
    few, many = Ridge(batch=16, steps=20, check_every=10), Adam(batch=16, steps=100, check_every=10, peak=1e-2)
    ours, theirs = run(few, rows, head), run(many, rows, head)
    assert ours.seen == theirs.seen / 5 and np.all(ours.best_kl <= theirs.best_kl)


def test_patience_stops_each_probe_on_its_own() -> None:
    rows, head = make_mixed(2, 216, 4), make_head(1)
    rows[:, 1] = rows[:, -1]  # this boundary is perfect as it is: every step makes it worse
    trainer = run(dataclasses.replace(QUICK, patience=2), rows, head)
    assert trainer.curve[0]["held_out"][1] < 1e-6
    assert torch.equal(trainer.best.weight[1], torch.eye(12))
    trained = [line["train"][1] is not None for line in trainer.curve]
    assert trained[:3] == [False, True, True] and not any(trained[4:])
    assert trainer.best_kl[0] < trainer.curve[0]["held_out"][0]


def test_runs_in_turn_are_each_what_they_are_alone() -> None:
    rows, head = make_mixed(2, 216, 4), make_head(1)
    objective, heard = Objective(head), []
    recipes = [QUICK, Sgd(batch=32, steps=15, check_every=10)]
    trainers = [Trainer(objective, 4, recipe) for recipe in recipes]
    feeds = [Shuffle([rows[16:]], len(rows), 0) for _ in recipes]
    best = train([(t, f, rows[:16]) for t, f in zip(trainers, feeds, strict=True)], progress=heard.append)
    for found, recipe in zip(best, recipes, strict=True):
        assert torch.equal(found.weight, run(recipe, rows, head).best.weight)
    assert sum(heard) == 40 * 16 + 15 * 32


def test_a_stream_that_ends_early_is_used_up() -> None:
    rows, head = make_resid(2, 100, 3), make_head(1)
    trainer = Trainer(Objective(head), 3, dataclasses.replace(QUICK, steps=1000))
    train([(trainer, Shuffle(np.array_split(rows, 5), 32, 0), rows[:8])])
    assert (trainer.seen, trainer.done) == (100, 7)  # six batches of 16 and what was left
    assert trainer.curve[-1]["step"] == 7


def test_bad_numbers_are_refused() -> None:
    rows = make_resid(2, 20, 3)
    rows[3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Trainer(Objective(make_head(1)), 3, QUICK).check(rows)
    with pytest.raises(ValueError, match="1 boundaries"):
        Trainer(Objective(make_head(1)), 1, QUICK)


def test_kl_of_close_distributions_keeps_its_digits() -> None:
    head, resid = make_head(4, 5003, 64, 6.0), make_resid(5, 40, 3, 64)
    resid[:, 0] = resid[:, -1] * (1 + 1e-3 * np.random.default_rng(0).standard_normal(resid[:, -1].shape)).astype(
        np.float32
    )
    logp = reference_logits(head, resid).log_softmax(-1)
    expected = kl(logp[:, -1:], logp[:, :-1]).mean(0).numpy()
    assert np.allclose(Trainer(Objective(head), 3, QUICK).measure(resid), expected, atol=1e-5) and expected[0] < 0.01


# --- feed and split --------------------------------------------------------------------------------------------------


def drawn(feed: Shuffle, sizes: list[int]) -> list[list[int]]:
    return [feed.take(size).flatten().int().tolist() for size in sizes]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    capacity=st.integers(1, 60),
    size=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_every_row_is_drawn_once_an_epoch(lengths: list[int], capacity: int, size: int, seed: int) -> None:
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    blocks = np.split(rows, np.cumsum(lengths)[:-1])
    feed = Shuffle(blocks, capacity, seed)
    assert feed.whole == (capacity >= len(rows))
    epochs = 3 if feed.whole else 1
    flat = [row for part in drawn(feed, [size] * (epochs * len(rows) // size + 2)) for row in part]
    for epoch in range(epochs):
        part = flat[epoch * len(rows) : (epoch + 1) * len(rows)]
        assert sorted(part) == list(range(len(rows)))
    assert feed.whole or not len(feed.take(1))
    again = Shuffle(blocks, capacity, seed)
    again.skip(size)
    assert drawn(again, [size]) == [flat[size : 2 * size]]


def test_rows_of_a_stream_are_mixed_over_half_the_buffer() -> None:
    feed = Shuffle(np.arange(4000, dtype=np.float32)[:, None].reshape(-1, 50, 1), 400, 0)
    order = np.array(drawn(feed, [4000])[0])
    assert 100 < np.abs(order - np.arange(4000)).mean() < 1000
    assert np.corrcoef(order[:-1], order[1:])[0, 1] < 0.99


def test_bfloat16_keeps_widened_values_and_empty_blocks_are_refused() -> None:
    rows = torch.randn(30, 4).bfloat16().float().numpy()
    assert torch.equal(Shuffle([rows], 30, 1, torch.bfloat16).take(30).float(), Shuffle([rows], 30, 1).take(30))
    with pytest.raises(ValueError, match="no rows"):
        Shuffle([rows[:0]], 30, 1)


@pytest.mark.parametrize("folds", [1, 2, 5])
def test_split_depends_on_the_id_alone(folds: int) -> None:
    names = [f"p{i}" for i in range(5000)]
    split = fold_of(names, folds)
    share = np.bincount(split + 1, minlength=folds + 1)[1:] / 5000
    assert np.allclose(share, 0.2 if folds == 1 else 1 / folds, atol=0.02)
    assert split.min() == (-1 if folds == 1 else 0) and split.max() == folds - 1
    order = np.random.default_rng(0).permutation(5000)
    assert np.array_equal(fold_of([names[i] for i in order], folds), split[order])


def test_split_of_probes_that_lakes_hold_is_kept() -> None:
    names = [f"p{i}" for i in range(20)]
    assert (fold_of(names, 1) == 0).nonzero()[0].tolist() == [0, 7, 9, 11, 17]
    assert fold_of([*names[:6], "p-ü"], 2).tolist() == [0, 1, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="folds: 0"):
        fold_of(names, 0)
