"""What every command says with --help, word by word.

After a change of commands, options or their texts: `python tests/test_help.py --write`, then read the diff of tests/help.txt.
"""

import difflib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "help.txt"
# The width and the colours of help are found in the environment when the command line is imported: a process of its own.
FIXED = {"COLUMNS": "110", "TERMINAL_WIDTH": "110", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}


def commands(command: Any, name: str) -> dict[str, Any]:
    """`actlake run` -> its command, for all of them and for the groups."""
    found = {name: command}
    for part, below in sorted(getattr(command, "commands", {}).items()):
        found |= commands(below, f"{name} {part}")
    return found


def helps() -> str:
    """The help of all commands, one after the other, in a process of 110 columns and no colour."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "SYSTEMROOT") if name in os.environ}
    command = [sys.executable, __file__, "--print"]
    return subprocess.run(command, env=kept | FIXED, check=True, capture_output=True, encoding="utf-8").stdout


def here() -> str:
    """The same, as this process shows it."""
    import typer
    from actlake.cli.main import app
    from typer.testing import CliRunner

    parts = []
    for name in commands(typer.main.get_command(app), "actlake"):
        done = CliRunner(env=FIXED).invoke(app, [*name.split()[1:], "--help"], prog_name="actlake")
        assert done.exit_code == 0, (name, done.output)
        lines = [line.rstrip() for line in done.output.strip().splitlines()]
        parts.append(f"==== {name} --help\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def test_help_is_what_it_was() -> None:
    old, new = FILE.read_text(encoding="utf-8").splitlines(), helps().splitlines()
    diff = "\n".join(difflib.unified_diff(old, new, "tests/help.txt", "now", lineterm="", n=1))
    assert not diff, f"\n{diff}\nIf the change is meant: python tests/test_help.py --write"


def test_every_command_is_in_it_and_explains_itself() -> None:
    import typer
    from actlake.cli.main import app

    known = commands(typer.main.get_command(app), "actlake")
    assert [line[5:-7] for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("==== ")] == list(
        known
    )
    for name, command in known.items():
        assert command.help and command.help.strip(), name


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(here(), end="")
    elif sys.argv[1:] == ["--write"]:
        FILE.write_text(helps(), encoding="utf-8")
    else:
        sys.exit("python tests/test_help.py --write")
