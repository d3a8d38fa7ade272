"""Kernels take arrays that must not be written: no copy, no warning, the same numbers, and nothing written."""

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.core.arrays import as_tensor
from actlake.analyze.lens.head import Head
from actlake.analyze.lens.logit_lens import lens, pair_lens
from actlake.analyze.lens.topk import churn
from actlake.analyze.residual.delta import delta
from actlake.analyze.residual.mechanism import choose, mlp_mechanism, writeout
from actlake.analyze.residual.ridge import Moments, kl_gradient
from actlake.analyze.tuned.shuffle_buffer import Shuffle

HEAD = tiny.head(8, 30)


def given() -> SimpleNamespace:
    """Arrays of each kind, the same at every call."""
    random = np.random.default_rng(0)
    return SimpleNamespace(
        resid=random.standard_normal((5, 4, 8)).astype(np.float32),
        mlp=random.standard_normal((5, 3, 8)).astype(np.float32),
        norm=random.standard_normal((3, 8)).astype(np.float32),
        ids=random.integers(0, 30, (5, 2)),
        target=random.integers(-1, 30, 5),
        mask=np.arange(30) != 7,
    )


def moments(a: Any) -> torch.Tensor:
    found = Moments(a.resid[0])
    found.add(a.resid, a.mlp[:, 0, :4])
    return found.xy


def logits(a: Any) -> torch.Tensor:
    head = Head.from_arrays({"unembed": a.norm, "norm_weight": a.resid[0, 0]}, {"norm_eps": 1e-6})
    return head.logits(torch.ones(1, 8))


KERNELS: dict[str, Callable[[Any], Any]] = {
    "lens": lambda a: lens(HEAD, a.resid, a.target, mask=a.mask),
    "pair_lens": lambda a: pair_lens(HEAD, HEAD, a.resid, a.resid * 2, mask=a.mask),
    "delta": lambda a: delta(a.resid, a.mlp, post_norm=(a.norm, 1e-6)),
    "writeout": lambda a: writeout(HEAD, a.resid, a.mlp, a.ids),
    "mechanism": lambda a: mlp_mechanism(HEAD, a.resid[:, 1:], a.mlp, a.target),
    "choose": lambda a: choose(HEAD, a.resid, a.ids, mask=a.mask),
    "churn": lambda a: churn(HEAD, a.resid),
    "kl_gradient": lambda a: kl_gradient(HEAD, a.resid),
    "moments": moments,
    "shuffle": lambda a: Shuffle([a.resid], 5).take(5),
    "head": logits,
}


@pytest.fixture
def strict() -> Iterator[None]:
    """Every warning is an error; torch gives its own each time, not once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(before)


@pytest.mark.parametrize("name", KERNELS)
def test_read_only_arrays_are_as_good_as_others(name, strict):
    expected, arrays = KERNELS[name](given()), given()
    for array in vars(arrays).values():
        array.flags.writeable = False
    torch.testing.assert_close(KERNELS[name](arrays), expected, rtol=0, atol=0, equal_nan=True)
    for array, before in zip(vars(arrays).values(), vars(given()).values(), strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.swapaxes(0, 1), lambda a: a[1:, ::2], lambda a: a[:0]])
def test_the_memory_is_shared_and_kept(view, strict):
    array = view(given().resid)
    array.flags.writeable = False
    place, expected = array.__array_interface__["data"][0], array.tolist()
    found = as_tensor(array)
    del array
    assert found.tolist() == expected and (found.data_ptr() == place or not found.numel())


def test_without_it_torch_warns(strict):
    array = given().resid
    array.flags.writeable = False
    with pytest.raises(UserWarning, match="not writable"):
        torch.as_tensor(array)
    tensor = torch.ones(3)
    assert as_tensor(tensor) is tensor and as_tensor([1, 2]).tolist() == [1, 2]
