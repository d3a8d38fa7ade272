"""What a benchmark ran on, in one line, and how busy the machine was with other work meanwhile."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "zarr", "numcodecs", "duckdb", "pyarrow", "numpy")
BUSY = 0.15  # cores taken by other processes, per core, above which ratios are not to be trusted


def cpu_model() -> str:
    """Name of the processor as the system tells it, or its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Main memory in GB (powers of 1000)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def describe() -> str:
    """Processor, cores, memory, system, Python and package versions; nothing that names the host."""
    parts = [
        cpu_model(),
        f"{cores()} cores",
        f"{memory_gb():.0f} GB",
        platform.system(),
        f"Python {platform.python_version()}",
    ]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def reset_peak_memory() -> None:
    """Let `peak_memory` start from what this process holds now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Peak resident memory of this process in bytes since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def load_average() -> float:
    """Processes running or waiting, averaged over the last minute."""
    return os.getloadavg()[0]


class Others:
    """Cores that other processes took since this object was made (Linux; NaN where it is unknown)."""

    def __init__(self) -> None:
        self._start = self._sample()

    @staticmethod
    def _sample() -> tuple[float, float, float]:
        """Seconds of wall clock, of CPU time used by the whole machine, and of CPU time used by us."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return time.perf_counter(), float("nan"), 0.0
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
        machine = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), machine, sum(os.times()[:4])

    def cores(self) -> float:
        """Mean number of cores in use by others."""
        wall, machine, own = (now - then for now, then in zip(self._sample(), self._start, strict=True))
        return max(0.0, (machine - own) / wall) if wall and machine == machine else float("nan")


def note(others: float) -> str:
    """One sentence on whether figures taken beside `others` busy cores mean anything."""
    if others != others:
        return "other load unknown: trust the ratios only if the machine was idle"
    if others > BUSY * cores():
        return f"other processes took {others:.2f} of {cores()} cores: NOT an idle machine, ratios are only indicative"
    return f"other processes took {others:.2f} of {cores()} cores: idle enough for the ratios to hold"


if __name__ == "__main__":
    print(describe())
