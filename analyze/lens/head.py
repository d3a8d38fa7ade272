"""The readout of a model: final norm, unembedding, soft cap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import as_tensor
from ..core.html import facts


@dataclass(frozen=True)
class Head:
    """What turns a residual into logits: norm, unembed, bias, scale, soft cap, in this order.

    unembed [V, d]; norm_weight [d], the effective multiplier (Gemma's 1 + w already added); norm_bias [d];
    bias [V]; float32 (`unembed` may be narrower). norm is "rms" or "layer". logit_scale multiplies
    the logits; softcap c bends them to c * tanh(z / c). ValueError, one line, when shapes do not fit together.
    Source: METHODS 0 and 3.1.
    """

    unembed: Tensor
    norm_weight: Tensor
    norm: str = "rms"
    eps: float = 1e-6
    norm_bias: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"head: norm is {self.norm!r}, expected 'rms' or 'layer'")
        if self.unembed.ndim != 2 or 0 in self.unembed.shape:
            raise ValueError(f"head: unembed has shape {tuple(self.unembed.shape)}, expected (vocab, d_model)")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"head: softcap is {self.softcap}, expected a positive number or None")
        for name, size in (("norm_weight", self.d_model), ("norm_bias", self.d_model), ("bias", self.vocab)):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (size,):
                raise ValueError(
                    f"head: {name} has shape {tuple(value.shape)}, expected ({size},) "
                    f"to fit unembed {tuple(self.unembed.shape)}"
                )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> Head:
        """The head stored in a lake's head.zarr.

        arrays: unembed [V, d], norm_weight [d], optionally norm_bias [d] and unembed_bias [V], any float dtype;
        attrs: norm, norm_eps, softcap, logit_scale, of which only norm_eps is required. ValueError when
        something required is missing.
        """
        missing = [k for k in ("unembed", "norm_weight") if k not in arrays]
        missing += [k for k in ("norm_eps",) if k not in attrs]
        if missing:
            raise ValueError(f"head: {', '.join(missing)} missing")
        softcap, scale = attrs.get("softcap"), attrs.get("logit_scale")
        return cls(
            unembed=_tensor(arrays["unembed"]),
            norm_weight=_tensor(arrays["norm_weight"]),
            norm=attrs.get("norm") or "rms",
            eps=float(attrs["norm_eps"]),
            norm_bias=_tensor(arrays["norm_bias"]) if "norm_bias" in arrays else None,
            bias=_tensor(arrays["unembed_bias"]) if "unembed_bias" in arrays else None,
            softcap=None if softcap is None else float(softcap),
            logit_scale=1.0 if scale is None else float(scale),
        )

    def __repr__(self) -> str:
        more = "".join([", bias" * (self.bias is not None), f", soft cap {self.softcap:g}" if self.softcap else ""])
        scale = f", logits x {self.logit_scale:g}" if self.logit_scale != 1 else ""
        return f"Head({self.vocab:,} tokens x {self.d_model:,}, {self.norm} norm{more}{scale})"

    def _repr_html_(self) -> str:
        return facts(
            "Head",
            {
                "tokens": f"{self.vocab:,}",
                "width": f"{self.d_model:,}",
                "norm": f"{self.norm}, eps {self.eps:g}",
                "bias": "yes" if self.bias is not None else "no",
                "soft cap": self.softcap or "none",
                "logit scale": self.logit_scale,
                "device": str(self.unembed.device),
            },
        )

    @property
    def vocab(self) -> int:
        """Number of logits, V."""
        return self.unembed.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual, d."""
        return self.unembed.shape[1]

    def first(self, vocab: int) -> Head:
        """The same head with the logits of the first `vocab` ids only; itself when it has no more."""
        if vocab >= self.vocab:
            return self
        return replace(self, unembed=self.unembed[:vocab], bias=None if self.bias is None else self.bias[:vocab])

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Head:
        """The same head on another device; `dtype` narrows the unembedding only (norms stay float32)."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device=device)

        return replace(
            self,
            unembed=self.unembed.to(device=device, dtype=dtype or self.unembed.dtype),
            norm_weight=self.norm_weight.to(device=device),
            norm_bias=move(self.norm_bias),
            bias=move(self.bias),
        )

    def normed(self, x: Tensor) -> Tensor:
        """The final norm of residuals [..., d], float32."""
        x = x.float()
        if self.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.norm_weight
        return x if self.norm_bias is None else x + self.norm_bias

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., V] of residuals [..., d], float32; materialised, so for small cases."""
        rows = self.normed(x).reshape(-1, self.d_model)
        return self.project(rows, 0, self.vocab).reshape(*x.shape[:-1], self.vocab)

    def project(self, h: Tensor, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Logits [n, stop - start] of the tokens start..stop for normed rows h [n, d], written into `out` if given."""
        tile = self.unembed[start:stop].T
        if out is None:
            out = (h.to(tile.dtype) @ tile).float()
        elif tile.dtype == torch.float32:
            torch.mm(h, tile, out=out)
        else:
            out.copy_(h.to(tile.dtype) @ tile)
        return self._finish(out, None if self.bias is None else self.bias[start:stop])

    def score(self, h: Tensor, token: Tensor) -> Tensor:
        """The logits [n, ...] of one token each for normed rows h [n, ..., d] and token int64 [n]."""
        z = torch.einsum("n...d,nd->n...", h, self.unembed[token].float())
        bias = None if self.bias is None else self.bias[token].view(-1, *[1] * (z.ndim - 1))
        return self._finish(z, bias)

    def logits_of(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits [T, K] of the tokens ids int64 [T, K] for residuals [T, d], float32; no other token is computed."""
        count = ids.shape[1]
        rows = self.normed(x).repeat_interleave(count, dim=0)
        return self.score(rows, ids.reshape(-1)).reshape(-1, count)

    def _finish(self, z: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            z += bias
        if self.logit_scale != 1.0:
            z *= self.logit_scale
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


def _tensor(array: np.ndarray) -> Tensor:
    return as_tensor(np.require(array, np.float32, "C"))
