"""Puts the helpers of the tests (tiny models, servers, mutators) within reach of the benchmarks that share them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))
