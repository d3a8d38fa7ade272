"""Lengths of MLP outputs along gradients of the lens, against float64 autograd on logits written out."""

import numpy as np
import pytest
import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.residual.mechanism import COLUMNS, mlp_mechanism
from hypothesis import given
from hypothesis import strategies as st

D, VOCAB, LAYERS = 6, 11, 3


def made(seed: int, tokens: int = 5, **head: object) -> tuple[Head, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight, scale = (torch.tensor(rng.normal(size=size), dtype=torch.float32) for size in ((VOCAB, D), D))
    resid, mlp = rng.normal(size=(2, tokens, LAYERS, D)).astype(np.float32)
    return Head(weight, scale, **head), resid, mlp, rng.integers(-1, VOCAB, tokens)


def logits(head: Head, h: torch.Tensor) -> torch.Tensor:
    x = h - h.mean() if head.norm == "layer" else h
    x = x / (x.square().mean() + head.eps).sqrt() * head.norm_weight.double()
    z = head.unembed.double() @ x * head.logit_scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


@given(st.integers(0, 999), st.sampled_from([{}, {"softcap": 2.0}, {"norm": "layer", "logit_scale": 0.5}]))
def test_projections_are_those_of_autograd(seed: int, options: dict) -> None:
    head, resid, mlp, target = made(seed, **options)
    found = mlp_mechanism(head, resid, mlp, target)
    for t in range(len(target)):
        final = logits(head, torch.tensor(resid[t, -1], dtype=torch.float64)).log_softmax(-1)
        for layer in range(LAYERS):
            u = torch.tensor(mlp[t, layer], dtype=torch.float64)

            def gradient(value, t=t, layer=layer):
                h = torch.tensor(resid[t, layer], dtype=torch.float64, requires_grad=True)
                value(logits(head, h)).backward()
                return h.grad / h.grad.norm()

            top = gradient(lambda z: z.max())
            expected = {"anti_top1": -u @ top, "top1_cos": u @ top / u.norm()}
            if target[t] >= 0:
                teacher = gradient(lambda z, k=int(target[t]): z[k])
                expected |= {"support_teacher": u @ teacher, "teacher_cos": u @ teacher / u.norm()}
            if layer < LAYERS - 1:
                kl = gradient(lambda z, p=final: (p.exp() * (p - z.log_softmax(-1))).sum())
                along = u @ kl
                expected |= {"anti_kl": along, "kl_cos": along / u.norm(), "kl_rest": (u - along * kl).norm()}
            for name in COLUMNS:
                if name in expected:
                    assert found[name][t, layer] == pytest.approx(float(expected[name]), abs=2e-3), name
                else:
                    assert np.isnan(found[name][t, layer]), name


def test_shapes_are_checked() -> None:
    head, resid, mlp, target = made(0)
    with pytest.raises(ValueError, match="expected twice"):
        mlp_mechanism(head, resid, mlp[:, 1:], target)
    with pytest.raises(ValueError, match="target has shape"):
        mlp_mechanism(head, resid, mlp, target[1:])
