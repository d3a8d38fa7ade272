"""Rows are answered as soon as they can be, probes trained last; what is to come is said before, and options leave it out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from actlake.capture.streams.prompts import canonical_bytes
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.queries.answer.answer import Answer, Refused
from actlake.queries.answer.asking import Asking
from actlake.queries.answer.ready import next_questions
from actlake.queries.engine import estimate
from actlake.queries.probes.training import Training
from actlake.queries.rows.registry import find
from actlake.store.artifacts.streams import write_prompts
from actlake.store.core import progress
from actlake.store.core.errors import LakeError
from actlake.store.core.progress import words
from actlake.store.format.paths import Layout
from test_graft_rows import catalog
from test_observed_rows import texts
from typer.testing import CliRunner

run = CliRunner(env={"COLUMNS": "200"}).invoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Path]:
    """A lake with native and teacher captures of 24 prompts and no table, and the catalog of its pair."""
    root = tmp_path_factory.mktemp("asking")
    pair = tiny.make_pair(root / "pair", "llama")
    streams = [replace(stream, max_new_tokens=12) for stream in (tiny.NATIVE, tiny.TEACHER)]
    asked = tiny.prompt_set(texts(24))
    layout = tiny.capture(root / "lake", pair, *streams, prompts=asked)
    write_prompts(layout, "tiny", canonical_bytes(asked.prompts))
    return layout, catalog(root, pair)


@pytest.fixture
def where(made: tuple[Layout, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shutil.copytree(made[0].root, tmp_path / "lake")
    monkeypatch.chdir(tmp_path)
    return ["--lake", str(tmp_path / "lake"), "--catalog", str(made[1])]


def ask(where: list[str], *rows: str, **options) -> Asking:
    return Asking(Layout.open(where[1]), [find(row) for row in rows], "llama", catalog=Path(where[3]), **options)


def test_a_row_that_needs_no_probes_is_answered_before_they_are_trained(where: list[str]) -> None:
    seen, probes = [], Path(where[1]) / "lenses"
    for found in ask(where, "L2", "tuned", "L1", "exp16"):
        assert isinstance(found, Answer)
        seen.append((found.query.id, bool(list(probes.glob("*/*.zarr")))))
    assert seen == [("L1", False), ("exp16", False), ("L2", True), ("tuned", True)]
    again = ask(where, "L2", "L1")
    assert [one.words for one in again.forecast()] == ["answered from what is there"] * 2
    assert [found.query.id for found in again] == ["L2", "L1"] and again.seconds < 1


def test_quick_rows_come_before_slow_ones(where: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"delta": 1.0, "lens": 30.0}
    monkeypatch.setattr(estimate, "_seconds", lambda kit, jobs: sum(cost.get(job.name, 0.0) for job in jobs))
    tables = Path(where[1]) / "tables"
    seen = [(found.query.id, (tables / "lens").exists()) for found in ask(where, "0G", "L1", probes=False)]
    assert seen == [("L1", False), ("0G", True)]


def test_without_probes_a_row_does_without_the_tuned_lens_or_is_refused(where: list[str], tmp_path: Path) -> None:
    asked = ask(where, "L2", "tuned", probes=False)
    assert [no.query.id for no in asked.refused] == ["tuned"]
    assert "training is switched off; `actlake fit-lens llama" in asked.refused[0].reason
    (found,) = asked
    assert "cg_raw" in set(found.table["measure"]) and "(without lens(tuned): probes of llama-" in found.sentence
    assert not (Path(where[1]) / "lenses").exists()
    done = run(app, ["run", "L1", "L2", "--no-probes", *where, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and done.output.index("L2 ·") < done.output.index("L1 ·")  # whose table is not there yet
    lake = Lake(where[1], catalog=Path(where[3]))
    assert "without lens(tuned)" in lake.run("L2", probes=False).sentence
    with pytest.raises(LakeError, match="training is switched off"):
        lake.run("tuned", pair="llama", probes=False)


def test_ctrl_c_while_probes_are_trained_leaves_the_tuned_lens_out(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Training) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "finish", stop)
    done = run(app, ["run", "L1", "L2", "tuned", *where, "--out", str(tmp_path / "out"), "--lock", "l.lock"])
    assert done.exit_code == 130, done.output
    assert {path.stem for path in (tmp_path / "out").glob("*.csv")} == {"L1-llama", "L2-llama"}
    assert "rows that can do without the tuned lens are answered without it" in done.output
    assert "without lens(tuned): training was stopped" in " ".join(done.output.split())
    assert [row["row"] for row in json.loads((tmp_path / "l.lock").read_text())["rows"]] == ["L1", "L2"]


def test_what_takes_long_is_said_beforehand(where: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    said: list[str] = []
    ask(where, "L1", "L2", "tuned", "exp12").announce(said.append)
    assert said[0].startswith("computing ") and "delta" in said[0] and said[0].endswith(" on cpu, a few seconds")
    assert said[1].startswith("generating 69 texts under 3 conditions, at most 828 tokens on cpu, ")
    assert said[1].endswith("after all that reads captures; --no-generate, or generate=False, leaves exp12 out")
    assert said[2].startswith("L2, tuned: training probes for the tuned lens of llama-it, llama-pt on cpu, ")
    assert said[2].endswith("--no-probes, probes=False, or Ctrl-C then, leaves the tuned lens out of L2 and tuned out")
    assert not (Path(where[1]) / "tables").exists()


def test_a_dry_run_says_what_each_row_takes_and_writes_nothing(where: list[str], tmp_path: Path) -> None:
    before = tiny.tree(Path(where[1]))
    done = run(app, ["run", "--all", "--dry-run", *where])
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.output.splitlines() if line.strip()}
    assert said["L1"] == "to compute: delta for 3 captures, a few seconds"  # native, and the teacher's beside
    assert "to train: probes for the tuned lens of llama-it, llama-pt" in said["L2"]
    assert "to generate: 69 texts under 3 conditions, at most 828 tokens" in said["exp12"]
    assert said["exp20"].startswith("can't be answered: ") and "actlake capture llama --stream raw" in said["exp20"]
    assert "texts under" in said["in"] and "probes for" in said["in"]
    assert tiny.tree(Path(where[1])) == before and not (tmp_path / "answers").exists()
    found = json.loads(run(app, ["run", "L1", "exp20", "--dry-run", "--json", *where]).output)
    assert found["rows"]["L1"]["tables"] == ["delta"] and found["rows"]["exp20"]["refused"]
    assert not found["rows"]["L1"]["refused"] and found["together"]["texts"] == 0


@pytest.mark.sweep
def test_rows_that_cant_be_answered_are_said_first_and_once_for_each_reason(where: list[str], tmp_path: Path) -> None:
    done = run(app, ["run", "--all", "--no-generate", "--no-probes", *where, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].endswith("rows can't be answered:")
    assert len([line for line in lines if "on stream 'raw'" in line]) == 1
    assert any(line.startswith("exp20, exp21, exp23 ") for line in lines)
    assert done.output.index("exp20, exp21") < done.output.index("Over the final 20 %")  # L1's sentence


def test_reasons_are_grouped() -> None:
    asking = Asking.__new__(Asking)
    asking.refused = [Refused(find(row), reason) for row, reason in (("L1", "a"), ("L2", "b"), ("0G", "a"))]
    assert asking.reasons() == [("L1, 0G", "a"), ("L2", "b")] and asking.reasons(1) == [("L2", "b"), ("0G", "a")]
    asking.refused = [Refused(find(row), f"{row}: a") for row in ("L1", "L2")]  # a reason that names its row itself
    assert asking.reasons() == [("L1, L2", "a")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "a few seconds"), (12, "about 10 s"), (52, "about 50 s"), (57, "about 1 min"), (840, "about 14 min"), (9000, "about 2.5 h")],
)  # fmt: skip
def test_times_in_words(seconds: float, text: str) -> None:
    assert words(seconds) == text


def test_rows_that_are_offered_after_a_capture_can_be_answered(tmp_path: Path, llama) -> None:
    """Six prompts without attention entropies: L8, L9 and the regressions of exp10 need more."""
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, tiny.TEACHER)
    file = catalog(tmp_path, llama)
    offered = next_questions(layout, ["llama"], file)[0].rpartition("of these captures: ")[2].rstrip(")").split(", ")
    assert {"L1", "L2", "exp16"} <= set(offered) and not {"L8", "L9", "exp10"} & set(offered)
    assert not Asking(layout, [find(row) for row in offered], "llama", catalog=file).refused
