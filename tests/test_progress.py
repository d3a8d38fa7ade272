"""Progress: bars in a terminal and in notebooks, elsewhere a line a minute with what is done and left; silent when told to be."""

import threading
import time

import pytest
from actlake.store.core import progress
from actlake.store.core.progress import ERRORS, bar, say


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ERRORS), "is_terminal", False)
    monkeypatch.delenv("ACTLAKE_PROGRESS", raising=False)


def work() -> None:
    with bar("lens pocket", 1000) as first:
        for _ in range(6):
            time.sleep(0.05)
            first.advance(100)


def test_without_a_terminal_a_line_says_what_is_done_and_left(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("ACTLAKE_PROGRESS", "0.1")
    work()
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("lens pocket: ") and " of 1,000 tokens (" in line for line in lines)
    assert lines[-1].endswith("a few seconds left")
    assert progress.LINE_SECONDS == 60


def test_a_short_task_says_nothing_and_leaves_no_thread(capsys) -> None:
    before = threading.active_count()
    work()
    assert capsys.readouterr() == ("", "") and threading.active_count() == before


@pytest.mark.parametrize("word", ["off", "0", "OFF"])
def test_it_can_be_silenced(word: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("ACTLAKE_PROGRESS", word)
    work()
    say("computing lens")
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_bytes_and_one_that_goes_on_from_before() -> None:
    with bar("fetch", 10_000_000, "bytes") as fetching:
        fetching.advance(9_000_000)  # was there already: says nothing of the speed
        task = fetching._progress.tasks[0]
        assert progress.status(task) == "fetch: 9.0 MB of 10.0 MB (90 %)"
        time.sleep(0.02)
        fetching.advance(10)
        assert "left" in progress.status(fetching._progress.tasks[0])


def test_a_notebook_gets_a_bar_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown: list[str] = []

    class Handle:
        def update(self, content) -> None:
            shown.append(content.data)

    monkeypatch.setattr(display, "display", lambda *content, display_id: Handle())
    monkeypatch.setattr(ERRORS, "is_jupyter", True)
    work()
    assert "<progress max='1000' value='600'></progress> lens pocket: 600 of 1,000 tokens (60 %)" in shown[-1]
