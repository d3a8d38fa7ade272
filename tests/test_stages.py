"""The packaged chain of four stages: captured in one command, each model read once, answered in another; values pinned."""

from pathlib import Path

import pytest
from actlake.lake import Lake
from actlake.store.core.catalog import PACKAGED, load_catalog

STAGES = ("pocket-pt", "pocket-sft", "pocket-it", "pocket-dpo")


def test_the_catalog_has_chains_of_stages_and_of_training_steps() -> None:
    catalog = load_catalog(PACKAGED)
    assert catalog.chains["pocket_stages"] == STAGES
    assert catalog.training["pythia_160m_steps"] == (0, 512, 4000, 32000, 143000)
    assert [catalog.models[name].revision for name in catalog.chains["pythia_160m_steps"]] == [
        f"step{step}" for step in catalog.training["pythia_160m_steps"]
    ]
    folders = {name: catalog.models[name].path for name in STAGES}
    tokenizers = {name: (folder / "tokenizer.json").read_bytes() for name, folder in folders.items() if folder}
    assert set(tokenizers) == set(STAGES) and len(set(tokenizers.values())) == 1
    assert all(sum(file.stat().st_size for file in folder.iterdir()) < 7e6 for folder in folders.values() if folder)


# Convergence gap of each stage over the base, in nats, and the mean JS on the same answers over all layers.
GAPS = {"pocket-sft": 0.060738, "pocket-it": 0.215382, "pocket-dpo": 0.197112}
JS = {"pocket-sft": 0.205469, "pocket-it": 0.297040, "pocket-dpo": 0.298480}


@pytest.mark.sweep
def test_the_packaged_stages(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", create=True, device="cpu")
    lines = (PACKAGED.parent / "prompts" / "pocket.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:12]), encoding="utf-8")
    prompts = str(tmp_path / "few.jsonl")
    lake.capture("pocket_stages", streams=["native", "teacher"], prompts=prompts, max_new_tokens=12, dtype="float32")
    captures = lake.captures
    assert len(captures) == len(captures[["model", "stream"]].drop_duplicates())  # each once
    assert sorted(captures["model"].value_counts().items()) == sorted(
        zip(STAGES, (4, 2, 2, 1), strict=True)
    )  # its own answers, its successor's, and the base those of all
    gap, js = (lake.run(row, chain="pocket_stages", probes=False) for row in ("L2", "exp16"))
    assert _by_stage(gap.table, "cg_raw", "it - pt") == pytest.approx(GAPS, rel=1e-3)
    assert _by_stage(js.table, "js_ac_full") == pytest.approx(JS, rel=1e-3)
    assert gap.sentence.startswith("From pocket-pt to pocket-dpo") and "after pocket-sft" in gap.sentence


def _by_stage(table, measure: str, variant: str = "") -> dict[str, float]:
    mine = table[(table["measure"] == measure) & (table["compared"] == "base")]
    mine = mine[mine["variant"] == variant] if variant else mine
    return dict(zip(mine["stage"], mine["estimate"], strict=True))
