"""Packages that come with an extra of actlake: reading a lake, SQL and figures do without them."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import LakeError

# Package -> the extra that brings it.
EXTRAS = {
    "torch": "capture",
    "transformers": "capture",
    "safetensors": "capture",
    "huggingface_hub": "hub",
    "accelerate": "capture",
    "gguf": "gguf",
    "distributed": "cluster",
    "openai": "judge",
    "intake": "intake",
}


@contextmanager
def needs() -> Iterator[None]:
    """Inside the block, or in a function decorated by it, a missing package of an extra is a LakeError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise LakeError(
            f"this needs the package {package}, which is not installed",
            repair=f"pip install 'actlake[{EXTRAS[package]}]'",
        ) from error
