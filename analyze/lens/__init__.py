"""Lenses: a residual through the head, raw or by probes, without holding tokens x vocabulary."""

from ..core.exports import on_demand

_NAMES = {
    "lens": "logit_lens",
    "pair_lens": "logit_lens",
    "churn": "topk",
    "Head": "head",
    "Probes": "tuned_lens",
}
__all__ = list(_NAMES)
__getattr__ = on_demand(__name__, _NAMES)
