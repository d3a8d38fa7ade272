"""The packaged sample lake: small, whole, unpacked once, answered without torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import actlake
import pytest
from actlake.page import sample

PACKED = Path(sample.__file__).parent.parent / "models" / "sample" / "lake.zip"
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Without())
import actlake
lake = actlake.sample()
answer = lake.run("L2")
print(answer.sentence)
print(len(lake.captures), lake.sql("SELECT count(DISTINCT prompt_id) FROM lens").df().iloc[0, 0])
print(lake.dataset("pocket/it", "native").resid.sel(boundary=6).isnull().values.sum())
"""


def test_it_is_small_and_verifies() -> None:
    assert PACKED.stat().st_size <= 3_000_000
    lake = actlake.sample()
    assert all(report.ok for report in lake.verify()), [report.problems for report in lake.verify()]
    assert set(lake.captures["model"]) == {"pocket-pt", "pocket-it"} and len(lake.captures) == 3
    assert len(lake.prompts) == 12 and len(lake.lenses("pocket/it")) == 1
    assert lake.sql("SELECT count(*) FROM outputs").df().iloc[0, 0] == 36  # three conditions of exp12


def test_l2_is_answered_without_torch(tmp_path: Path) -> None:
    environment = {**os.environ, "ACTLAKE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "IT" in lines[0] and lines[1:] == ["3 12", "0"]
    assert len([*tmp_path.glob("sample-*/lake.json")]) == 1


def test_it_has_a_name_on_the_command_line(tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command_line("sql", "SELECT count(*) AS n FROM tokens", "--lake", "sample", "--json")
    assert code == 0 and '"n"' in out, err
    # Its residuals are some of the layers, so that no lens can be trained: the row does without.
    code, out, err = command_line("run", "L2", "--lake", "sample", "--out", str(tmp_path))
    assert code == 0 and "without lens(tuned)" in " ".join(out.split()), err


def test_a_lake_of_ones_own_called_sample_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    actlake.open("sample", create=True)
    assert (tmp_path / "sample" / "lake.json").exists() and not len(actlake.open("sample").captures)
