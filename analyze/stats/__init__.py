"""Intervals over prompts, ranks and effects of doses."""

from ..core.exports import on_demand

_NAMES = {
    "Interval": "bootstrap",
    "Sample": "bootstrap",
    "Quantity": "bootstrap",
    "intervals": "bootstrap",
    "rank_correlation": "bootstrap",
    "cohens_d": "bootstrap",
    "kappa": "bootstrap",
    "effect_size": "effects",
    "dose_correlation": "effects",
}
__all__ = list(_NAMES)
__getattr__ = on_demand(__name__, _NAMES)
