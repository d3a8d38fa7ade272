"""The scripts of examples/training run on a lake of the embedded pair, and an SAE does not care where its batches come from."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import actlake
import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parent.parent / "examples" / "training"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pair's lake, of 40 prompts."""
    folder = tmp_path_factory.mktemp("training") / "lake"
    actlake.open(folder, create=True, device="cpu").capture("pocket", streams=["native", "teacher"], limit=40)
    return folder


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script as a module, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("common", None)


@pytest.mark.parametrize(
    ("name", "words", "low", "high"),
    [
        ("sae", ["--epochs", "4", "--batch", "256", "--latents", "256"], 0.1, 0.8),
        ("crosscoder", ["--epochs", "20", "--batch", "128", "--rate", "5e-3", "--sparsity", "1"], 0.1, 0.9),
        ("linear_probe", ["--epochs", "4", "--batch", "128"], 0.25, 1.0),
        ("mean_difference", ["--batch", "128"], 1.0, 1.0),
    ],
)
def test_a_script_trains_and_draws(
    script: Any, lake: Path, tmp_path: Path, capsys: Any, name: str, words: list[str], low: float, high: float
) -> None:
    found = script(name).main(["--lake", str(lake), "--out", str(tmp_path), *words])
    assert low <= found <= high
    assert "held out" in capsys.readouterr().out
    drawn = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
    assert drawn.shape[1] > 900 and (drawn < 200).mean() > 0.01


def test_an_sae_from_the_lake_is_as_good_as_one_from_memory(script: Any, lake: Path) -> None:
    opened, sae = actlake.open(lake), script("sae")
    about: dict[str, Any] = {"layer": 4, "batch": 128, "normalize": "center"}
    batches = opened.batches("pocket/it", "native", split="train", buffer=512, **about)
    held_out = list(opened.batches("pocket/it", "native", split="validation", **{**about, "batch": 32}))
    mean, factor = batches.scales[0]
    stored = opened.dataset("pocket/it", "native").resid.sel(boundary=5).values[batches.tokens]
    memory = torch.from_numpy((stored - mean) * factor)
    assert len(memory) > 2 * 512  # so that the buffer does not hold all of them

    class Shuffled:
        """All rows in memory, in a truly random order in each epoch."""

        random = torch.Generator().manual_seed(0)

        def __iter__(self) -> Any:
            yield from (
                SimpleNamespace(x=memory[at]) for at in torch.randperm(len(memory), generator=self.random).split(128)
            )

    lost = [
        sae.train(source, held_out, memory.shape[1], 256, 16, epochs=12, rate=2e-3, seed=0)[1]["held out"][-1][1]
        for source in (batches, Shuffled())
    ]
    assert lost[0] < 0.6 and abs(lost[0] / lost[1] - 1) < 0.01, lost


def test_a_mistake_is_told_in_a_line(script: Any, tmp_path: Path) -> None:
    common = script("common")
    with pytest.raises(SystemExit, match="error: no lake at"):
        common.run(lambda: actlake.open(tmp_path / "none"))
