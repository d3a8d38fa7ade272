"""The device: the best one that is here unless one is named; what is recorded and said is the one that computed."""

import subprocess
import sys
from pathlib import Path

import actlake
import pytest
import tiny
import torch
from actlake.analyze.core import device
from actlake.capture.model.load import load_model
from actlake.capture.run.ranks import Rank
from actlake.cli.doctor import doctor_lines
from actlake.queries.engine.context import Context
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.errors import LakeError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with so many GPUs of NVIDIA, and Apple's or not."""

    def build(cuda: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        device.devices.cache_clear()

    yield build
    device.devices.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(0, False, "cpu"), (0, True, "mps"), (1, False, "cuda"), (2, True, "cuda")]
)
def test_auto_is_the_best_that_is_here(machine, lake, cuda: int, mps: bool, best: str) -> None:
    machine(cuda, mps)
    assert device.pick() == device.pick("auto") == Context(lake).device == best
    assert device.pick("cpu") == "cpu"


def test_a_device_that_is_not_here_is_named_with_those_that_are(machine) -> None:
    machine(2, False)
    assert [device.pick(name) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda:0", "cuda:1"]
    for name, here in (("cuda:2", "cuda, cuda:1, cpu"), ("mps", "cuda, cuda:1, cpu")):
        with pytest.raises(LakeError, match=rf"device '{name}' is not here; devices here: {here} \(`actlake doctor`\)"):
            device.pick(name)
    machine(0, False)
    with pytest.raises(LakeError, match="devices here: cpu"):
        device.pick("cuda")
    with pytest.raises(LakeError, match="expected cpu, cuda"):
        device.pick("gpu")


def test_ranks_share_the_gpus_of_a_machine(machine) -> None:
    machine(2, False)
    assert [Rank(place, 4, place, "").device("auto") for place in range(4)] == ["cuda:0", "cuda:1"] * 2
    machine(0, False)
    assert Rank(1, 4, 1, "").device("auto") == "auto"


def test_a_capture_says_and_records_the_device(tmp_path: Path, llama, capfd, machine) -> None:
    layout = tiny.capture(tmp_path / "lake", llama, tiny.BARE)
    assert "weights, on cpu" in " ".join(capfd.readouterr().err.split())
    path = find_capture(layout, "llama-it", "bare")
    assert Capture(path).manifest["provenance"]["device"] == "cpu"
    with pytest.raises(LakeError, match="devices here: cpu"):
        load_model(llama.it, "cuda")
    with pytest.raises(LakeError, match="devices here: cpu"):
        actlake.open(layout.root, device="cuda").sql("SELECT count(*) FROM lens")


def test_doctor_names_the_device_of_auto(tmp_path: Path) -> None:
    assert dict(doctor_lines(str(tmp_path), None))["devices"].endswith("--device auto is cpu")


def test_modules_of_kernels_need_no_import_of_their_own() -> None:
    code = (
        "import sys, actlake; print('torch' in sys.modules); import actlake.analyze.tuned.folds; actlake.analyze.tuned.folds.fold_of; print(callable(actlake.analyze.lazy.lens),"
        " 'lens' in dir(actlake.analyze), hasattr(actlake.analyze, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "False"]
