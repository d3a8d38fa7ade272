"""Which tests run when none are asked for: no slow ones, and of a sweep the sample that its test names."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import tiny

TESTS = """
import pytest
import tiny

@pytest.mark.parametrize("family", tiny.sampled("gpt2", "llama"))
def test_family(family): pass

@pytest.mark.slow
def test_slow(): pass

def test_usual(): pass
"""


def test_a_sample_has_the_families_that_are_named() -> None:
    found = {one.values[0]: [mark.name for mark in one.marks] for one in tiny.sampled("gpt2", "llama")}
    assert found == {name: [] if name in ("gpt2", "llama") else ["sweep"] for name in tiny.FAMILIES}
    with pytest.raises(AssertionError):
        tiny.sampled("gpt9")


@pytest.mark.parametrize("words", ["", "sweep", "slow"])
def test_what_is_asked_for_counts(words: str) -> None:
    config = SimpleNamespace(option=SimpleNamespace(markexpr=words))
    conftest.pytest_configure(config)
    assert config.option.markexpr == (words or "not slow and not sweep")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 3),
        *(
            pytest.param(words, count, marks=pytest.mark.sweep)
            for words, count in ((("-m", "sweep"), len(tiny.FAMILIES) - 2), (("-m", "slow"), 1))
        ),
    ],
    ids=str,
)
def test_the_normal_suite_and_a_sweep_are_all_there_is(tmp_path: Path, words: tuple[str, ...], count: int) -> None:
    folder = Path(__file__).parent
    (tmp_path / "test_some.py").write_text(TESTS)
    options = [
        "-c",
        folder.parent / "pyproject.toml",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
    ]
    command = [sys.executable, "-m", "pytest", tmp_path / "test_some.py", *options, "--collect-only", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert f"{count}/{2 + len(tiny.FAMILIES)} tests collected" in done.stdout, done.stdout + done.stderr
