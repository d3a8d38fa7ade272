"""The capture and the lens on one GPU, with models of the size they are for: Gemma-3-4B's and Llama-3.1-8B's shapes.

Random weights in bfloat16 are made on the device: no checkpoint, no network. Each model is read from one stream of
random tokens (prompts of 64 to 256, 24,000 in all, fewer where the disk is slow):

  bare forward   the batches of actlake's own plan, logits of the last position only
  staged         the same, every residual and MLP output copied to pinned host memory by plain hooks, nothing written
  raw write      as many bytes as the capture stores, written by a few threads and flushed
  encoding       the codec alone on all cores, over as many chunks as the capture has
  capture        actlake's whole capture, flushed, hashed, sealed; target: 1.10 of the larger of bare forward and raw write

The lens (all columns but JS) is held against the fastest matrix product of its arithmetic: float32, TF32, bfloat16
(its preview).

The GPU machine needs torch, transformers and xarray; actlake's other requirements can be carried as wheels:

  pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
      --platform manylinux2014_x86_64 -d wheels \\
      zarr==3.1.6 numcodecs==0.16.6 donfig google-crc32c dask locket partd duckdb
  python benchmarks/gpu.py --wheels wheels

`--wheels` installs them into a temporary folder for this run: pip install --no-index --no-deps --target FOLDER wheels/*.
About 5 minutes, 80 GB of device memory are plenty, 40 GB of disk. `--dry-run` takes tiny models and the CPU.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from measure import Row, main

ROOT = Path(__file__).parent.parent


def options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install these wheels for this run")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, to see that everything runs")


def make_importable(wheels: Path | None, site: Path) -> None:
    """Install the wheels into `site`, and have `import actlake` find this checkout there when it is not installed."""
    if wheels:
        files = [str(file) for file in sorted(wheels.glob("*.whl"))]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*command, *files], check=True)
    (site / "actlake").symlink_to(ROOT)
    sys.path.append(str(site))


def run(wheels: Path | None, dry_run: bool) -> list[Row]:
    """All rows of this benchmark."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as actlake's command does: threads that wait don't spin for long
    with ExitStack() as stack:
        make_importable(wheels, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="actlake-site-"))))
        try:
            import device  # only now can its own imports be found
        except ModuleNotFoundError as error:
            raise SystemExit(f"{error.name} is missing here: carry it with --wheels, see --help") from error
        return device.rows(dry_run)


if __name__ == "__main__":
    main("gpu", run, __doc__, options)
