"""The scripts of docs/CLUSTER.md, run as they stand, by torchrun itself and by a stand-in for srun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from actlake.store.captures.reader import list_captures
from actlake.store.format.paths import Layout

DOCS = Path(__file__).parent.parent / "docs"
SCRIPTS = [DOCS / "torchrun-capture.sh", *sorted((DOCS / "slurm").glob("*.sbatch"))]
SRUN = """#!/bin/bash
# As srun starts a job of two tasks.
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" &
  tasks="${tasks:-} $!"
done
trap 'kill $tasks 2>/dev/null' TERM
status=0
for task in $tasks; do wait "$task" || status=$?; done
exit $status
"""


@pytest.fixture
def run(tmp_path, llama):
    """Runs a script with a catalog of the tiny pair, and the commands that it calls on the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    modules = {"actlake": "actlake", "dask": "dask", "torchrun": "torch.distributed.run"}
    texts = {name: f'#!/bin/bash\nexec {sys.executable} -m {module} "$@"\n' for name, module in modules.items()}
    for name, text in {**texts, "srun": SRUN}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    variants = "".join(f"    {v}: {{path: {llama.model(v).path}}}\n" for v in ("pt", "it"))
    (tmp_path / "catalog.yaml").write_text(f"pairs:\n  llama:\n{variants}")
    (tmp_path / "prompts.csv").write_text("id,text\n" + "".join(f"{n},{text}\n" for n, _, text in tiny.TEXTS[:3]))
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "ACTLAKE_DEVICE": "cpu"}

    def script(*words: object) -> str:
        done = subprocess.run(
            ["bash", *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return script


CAPTURE = ("--stream", "raw", "--prompts", "prompts.csv", "--max-new-tokens", 4, "--batch", 1)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_their_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) and script.name in (DOCS / "CLUSTER.md").read_text()


@pytest.mark.sweep  # a dozen commands, each in processes of its own, as a cluster starts them
def test_capture_and_analyse_under_slurm(run, tmp_path):
    run(SCRIPTS[2], "llama", "lake", *CAPTURE)
    assert list_captures(Layout.open(tmp_path / "lake"))["sealed"].tolist() == [True, True]
    said = run(SCRIPTS[1], "lake", "exp20", "--out", "answers")
    assert "exp20" in said and (tmp_path / "answers" / "exp20-llama.csv").exists()
    assert not list(tmp_path.glob("scheduler-*"))


@pytest.mark.sweep
def test_capture_under_torchrun(run, tmp_path):
    run(SCRIPTS[0], 2, "llama", "lake", *CAPTURE)
    assert list_captures(Layout.open(tmp_path / "lake"))["sealed"].tolist() == [True, True]
