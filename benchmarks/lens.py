"""The fused lens against the float32 GEMM peak of the same machine, and against the log-softmax one writes first.

Random residuals and a random unembedding (logit standard deviation 3) at SmolLM2-135M's width and vocabulary. All
rates are GFLOP/s of the one matrix product that the columns need (2 * d * V * tokens * boundaries), whatever else is
computed. Peak: the fastest of three square products and of the lens's own tile product, in the same round. `KL` has
no targets, so no ranks; `all` has targets and js_next. `raw + tuned` is both lenses of the same rows: counted are the
probes' products (2 * d * d * tokens for each boundary but the last) and the logits, the last boundary's once. The naive
version takes a layer at a time, materialises tokens x V log-probabilities and computes the same columns from them.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import CPU, lens, pair_lens
from actlake.analyze.lens.tuned_lens import Probes
from measure import Row, in_turn, main, median_ratio
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from distances import entropy, js, kl  # noqa: E402

WIDTH, VOCAB, BOUNDARIES, TOKENS = 576, 49152, 8, 384
REPEATS = 5
SQUARES = (1024, 2048, 3072)


def random_head(seed: int) -> Head:
    """A head whose logits have standard deviation 3."""
    generator = torch.Generator().manual_seed(seed)
    return Head(torch.randn(VOCAB, WIDTH, generator=generator) * 3 / WIDTH**0.5, torch.ones(WIDTH))


def naive(head: Head, resid: Tensor, target: Tensor | None, with_js: bool) -> dict[str, Tensor]:
    """The columns of `lens` from materialised log-probabilities, with the fewest passes plain torch needs for them."""
    final = head.logits(resid[:, -1]).log_softmax(-1)
    p_final, own_final = final.exp(), -entropy(final)
    columns: dict[str, list[Tensor]] = {}
    before = None
    for boundary in range(resid.shape[1]):
        logp = head.logits(resid[:, boundary]).log_softmax(-1)
        p = logp.exp()
        own = torch.linalg.vecdot(p, logp)
        values = {
            "kl_layer_final": own - torch.linalg.vecdot(p, final),
            "kl_final_layer": own_final - torch.linalg.vecdot(p_final, logp),
            "entropy": -own,
            "top1": logp.argmax(-1),
        }
        if target is not None:
            at = logp.gather(-1, target[:, None])
            values |= {"p_target": at[:, 0].exp(), "rank_target": 1 + (logp > at).sum(-1)}
        if with_js and before is not None:
            values["js_next"] = js(before, logp)
        before = logp
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(value, 1) for name, value in columns.items()}


def products(head: Head) -> dict[str, tuple[Callable[[], object], float]]:
    """Matrix products that set the peak: name -> (task, GFLOP)."""
    rows, tile = torch.randn(CPU.rows, WIDTH), torch.empty(CPU.rows, CPU.tile)

    def tiles() -> None:
        for start in range(0, VOCAB, CPU.tile):
            torch.mm(rows, head.unembed[start : start + CPU.tile].T, out=tile)

    def square(size: int) -> Callable[[], object]:
        a, c = torch.randn(size, size), torch.empty(size, size)
        return lambda: torch.mm(a, a, out=c)

    found = {f"square {size}": (square(size), 2 * size**3 / 1e9) for size in SQUARES}
    return found | {"tiles": (tiles, 2 * CPU.rows * WIDTH * VOCAB / 1e9)}


def run() -> list[Row]:
    """Check that fused and naive agree, then time all in turn."""
    head, other = random_head(1), random_head(2)
    rng = np.random.default_rng(0)
    resid = torch.from_numpy(np.cumsum(rng.standard_normal((TOKENS, BOUNDARIES, WIDTH), np.float32), axis=1))
    target, none = torch.from_numpy(rng.integers(0, VOCAB, TOKENS)), torch.full((TOKENS,), -1)
    few = slice(0, 16)
    want, got = naive(head, resid[few], target[few], True), lens(head, resid[few], target[few])
    worst = max(float(np.abs(got[k][:, : v.shape[1]] - v.numpy()).max()) for k, v in want.items() if k != "rank_target")
    assert worst < 1e-3 and np.allclose(got["kl_layer_final"], kl_reference(head, resid[few]), atol=1e-4)
    probes = Probes(torch.randn(BOUNDARIES - 1, WIDTH, WIDTH) / WIDTH**0.5, torch.randn(BOUNDARIES - 1, WIDTH))
    gemms = products(head)
    lenses: dict[str, Callable[[], object]] = {
        "KL": lambda: lens(head, resid, none, js_next=False),
        "KL + target": lambda: lens(head, resid, target, js_next=False),
        "all": lambda: lens(head, resid, target),
        "naive KL": lambda: naive(head, resid, None, False),
        "naive KL + target": lambda: naive(head, resid, target, False),
        "naive all": lambda: naive(head, resid, target, True),
        "raw + tuned": lambda: [lens(head, resid, none, js_next=False, probes=by) for by in (None, probes)],
        "pair": lambda: pair_lens(head, other, resid[:, ::2], resid[:, ::2]),
    }
    for task in lenses.values():
        task()
    seconds = in_turn({name: task for name, (task, _) in gemms.items()} | lenses, REPEATS)
    return rows(seconds, {name: flop for name, (_, flop) in gemms.items()})


def kl_reference(head: Head, resid: Tensor) -> np.ndarray:
    """KL(p_l || p_L) in float64."""
    double = (head.normed(resid).double() @ head.unembed.double().T).log_softmax(-1)
    return kl(double, double[:, -1:]).numpy()


def rows(seconds: dict[str, list[float]], flops: dict[str, float]) -> list[Row]:
    """Rates against the best product of the same round, and against the naive version."""
    work = dict.fromkeys(seconds, 2 * WIDTH * VOCAB * TOKENS * BOUNDARIES / 1e9)
    work["raw + tuned"] = 2 * WIDTH * TOKENS * (VOCAB * (2 * BOUNDARIES - 1) + WIDTH * (BOUNDARIES - 1)) / 1e9
    peak = [max(flops[name] / seconds[name][i] for name in flops) for i in range(REPEATS)]
    rate = {name: [work[name] / s for s in values] for name, values in seconds.items() if name not in flops}

    def row(what: str, name: str, limit: list[float], target: str = "", note: str = "") -> Row:
        measured = float(np.median(rate[name]))
        return Row(what, measured, measured / median_ratio(rate[name], limit), "GF/s", target, note)

    own = [flops["tiles"] / s for s in seconds["tiles"]]
    shape = f"{torch.get_num_threads()} threads, d = {WIDTH}, V = {VOCAB}, {TOKENS} tokens, {BOUNDARIES} boundaries"
    return [
        Row("its tile product against GEMM peak", float(np.median(own)), float(np.median(peak)), "GF/s", "", shape),
        row("lens, KL columns, against GEMM peak", "KL", peak, ">= 0.75"),
        row("lens, KL columns, against naive", "KL", rate["naive KL"], ">= 1.7"),
        row("lens, with ranks, against GEMM peak", "KL + target", peak),
        row("lens, with ranks, against naive", "KL + target", rate["naive KL + target"]),
        row("lens, all columns with JS, against GEMM peak", "all", peak),
        row("lens, all columns with JS, against naive", "all", rate["naive all"]),
        row("raw and tuned lens, KL columns, against GEMM peak", "raw + tuned", peak, ">= 0.7"),
        row("pair_lens against GEMM peak", "pair", peak, "", "two models at half the boundaries: as much product"),
    ]


if __name__ == "__main__":
    main("lens", run)
