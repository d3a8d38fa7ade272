"""The head's logits of chosen tokens, and the sizes of random changes against the real ones."""

import torch
from actlake.analyze.lens.head import Head
from actlake.analyze.residual import operators
from hypothesis import given
from hypothesis import strategies as st


@given(seed=st.integers(0, 2**16), tokens=st.integers(1, 5), read=st.integers(1, 4))
def test_chosen_logits_are_those_of_the_head(seed, tokens, read):
    rng = torch.Generator().manual_seed(seed)
    head = Head(
        torch.randn(11, 8, generator=rng),
        torch.randn(8, generator=rng),
        bias=torch.randn(11, generator=rng),
        softcap=5.0,
    )
    x = torch.randn(tokens, 8, generator=rng)
    ids = torch.randint(0, 11, (tokens, read), generator=rng)
    assert torch.allclose(head.logits_of(x, ids), head.logits(x).gather(1, ids), atol=1e-5)


@given(seed=st.integers(0, 2**16), alpha=st.floats(-5, 5))
def test_random_changes_match_the_real_one_in_size(seed, alpha):
    rng = torch.Generator().manual_seed(seed)
    m, x, delta, random = (torch.randn(3, 12, generator=rng, dtype=torch.float64) for _ in range(4))
    d, u = (torch.nn.functional.normalize(vector, dim=0) for vector in (x[0], random[0]))
    change, true = operators.scale_matched(m, d, u, alpha) - m, operators.scale(m, d, alpha) - m
    assert torch.allclose(change.norm(dim=-1), true.norm(dim=-1)) and torch.allclose(change, (change @ u)[:, None] * u)
    like = operators.random_like(delta, x, u)
    towards = torch.nn.functional.normalize(x, dim=-1)
    assert torch.allclose((like * towards).sum(-1), (delta * towards).sum(-1))
    assert torch.allclose(like.norm(dim=-1), delta.norm(dim=-1))
    assert torch.allclose(operators.scale(m, d, 0.0) @ d, torch.zeros(3, dtype=torch.float64))
