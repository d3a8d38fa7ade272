"""Makes the sample lake that is packaged, models/sample/lake.zip: `python models/sample/make.py`, some minutes on a CPU.

Twelve prompts of the pocket pair, native and teacher streams, two residuals, tables, a tuned lens, texts of one sweep.
The same machine makes the same bytes; on another one a last digit of a value may differ, as of every capture.
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import actlake
import torch

ROWS = ("L1", "L2", "0A", "0B", "0J", "1A", "exp10", "exp14", "exp16", "exp19B")
SWEEP = "exp12"
KEPT = (4, 6)  # boundaries whose residuals are packaged; tables are made of all
LARGEST = 3_000_000
OUT = Path(__file__).parent / "lake.zip"


def main() -> None:
    """Make the lake in a temporary folder, and pack it."""
    torch.set_num_threads(1)  # sums in one order
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sample"
        lake = actlake.open(Path(folder) / "lake", create=True, device="cpu")
        lake.capture("pocket", ["native", "teacher"], limit=12, max_new_tokens=10)
        lake.run_all(ROWS, pair="pocket", generate=False, probes=False)
        lake.fit_lens("pocket/it", folds=1)
        lake.run(SWEEP, pair="pocket", probes=False)
        for table in ("lens", "delta", "commitment", "tokens"):
            lake.sql(f"SELECT count(*) FROM {table}")
        lake.push(str(root), actlake.Selection(sites=("resid",), boundaries=KEPT))
        assert all(report.ok for report in actlake.open(root).verify())
        data = packed(root)
    print(f"{len(data):,} bytes")
    if len(data) > LARGEST:
        sys.exit(f"larger than {LARGEST:,} bytes")
    OUT.write_bytes(data)


def packed(root: Path) -> bytes:
    """The lake as a zip file without times, and without the heads: they are in models/pocket already (page/sample.py)."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as stored:
        for file in sorted(root.rglob("*")):
            name = file.relative_to(root).as_posix()
            if not file.is_file() or any(part.startswith(".") for part in name.split("/")) or "/head.zarr/" in name:
                continue
            if name.endswith("/model.json"):
                head = root / name.replace("model.json", "head.zarr/zarr.json")
                attributes = json.loads(head.read_text())["attributes"]
                stored.writestr(_entry(name.replace("model.json", "head.json")), json.dumps(attributes, sort_keys=True))
            stored.writestr(
                _entry(name), file.read_bytes(), zipfile.ZIP_DEFLATED if name.endswith("json") else zipfile.ZIP_STORED
            )
    return sink.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


if __name__ == "__main__":
    main()
