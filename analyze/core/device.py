"""Which device computes: the one that was named, or with `auto` the best of this machine."""

from functools import cache

from ...store.core.errors import LakeError

AUTO = "auto"


@cache
def devices() -> tuple[str, ...]:
    """Names of this machine's devices, the best first: cuda (cuda:1 ...), mps, cpu."""
    import torch  # imports in seconds, which a question answered from tables does not need

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return (*["cuda", *(f"cuda:{place}" for place in range(1, count))][: max(count, 0)], *mps, "cpu")


def pick(name: str = AUTO) -> str:
    """The device of this name; `auto` is cuda where there is one, else mps, else cpu.

    LakeError for a name that is no device, and for a device that this machine lacks.
    """
    if name == AUTO:
        try:
            return devices()[0]
        except ModuleNotFoundError:  # without torch
            return "cpu"
    if name == "cpu":
        return name
    import torch

    try:
        kind = torch.device(name)
    except RuntimeError as error:
        raise LakeError(f"device {name!r}: expected cpu, cuda, cuda:1, mps ... or auto") from error
    here = {str(torch.device(known)) for known in devices()} | ({"cuda:0"} if "cuda" in devices() else set())
    if kind.type in ("cuda", "mps", "xpu") and str(kind) not in here:
        raise LakeError(f"device {name!r} is not here; devices here: {', '.join(devices())} (`actlake doctor`)")
    return name
