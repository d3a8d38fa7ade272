"""Processes of `ready` are what they say: forked with everything loaded, and otherwise like those of subprocess."""

import signal

import pytest
import ready


def test_everything_is_loaded_before_the_fork() -> None:
    code = f"import sys; print([name for name in {ready.PRELOADED} if name not in sys.modules])"
    done = ready.run("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_words_folder_environment_and_streams(tmp_path) -> None:
    (tmp_path / "said.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ, sys.stdin.read())\nsys.exit(3)"
    )
    process = ready.Process(tmp_path / "said.py", "a", "b c", cwd=tmp_path, env={"ONLY": "this"})
    process.stdin.write("typed")
    out, errors = process.communicate(60)
    assert out == f"['a', 'b c'] {tmp_path} environ({{'ONLY': 'this'}}) typed\n" and errors == ""
    assert process.returncode == process.poll() == process.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals_end_it(number: int) -> None:
    process = ready.Process("-c", "import time; print('there', flush=True); time.sleep(600)")
    assert process.stdout.readline() == "there\n" and process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == -number


def test_an_error_shows_its_traceback() -> None:
    done = ready.run("-c", "1 / 0")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
