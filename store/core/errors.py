"""The one exception a user is meant to read."""

import re
import shlex
from collections.abc import Sequence

# What repairs a file of a capture, or of what is read like one.
RESTORE = (
    "restore the file (`actlake pull URL --check` takes it from a copy of the lake), or delete the folder it belongs to and run"
    " the same `actlake capture` again"
)


# What mends a file of a lake on another machine.
KEEPER = "nothing there is to be deleted: whoever keeps that lake can restore the file (`actlake push --check` from a good copy)"
REWORD: dict[str, str] = {}  # folders that hold what was read of a remote lake -> its address, for messages


class LakeError(Exception):
    """A mistake or a broken store: `problem` (what and where), what was `expected` and `found`, and the `repair`.

    All are text, empty where they say nothing. `str(error)` is one line of them; the command line prints it and exits with
    code 2, Python callers get the error as it is.
    """

    def __init__(self, problem: object = "", *, expected: object = "", found: object = "", repair: str = ""):
        parts = [str(problem), str(expected), str(found), repair]
        self.problem, self.expected, self.found, self.repair = _reworded(parts)
        super().__init__(self.problem)

    def __str__(self) -> str:
        compared = [f"expected {self.expected}"] if self.expected else []
        compared += [f"found {self.found}"] if self.found else []
        line = f"{self.problem}: {', '.join(compared)}" if compared else self.problem
        return f"{line}; {self.repair}" if self.repair else line

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.__dict__)


def _again(kind: type[LakeError], state: dict[str, object]) -> LakeError:
    """An error that came from another process, its messages as they were."""
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (error.problem,)
    return error


class CorruptError(LakeError):
    """Stored bytes do not match what was recorded when they were written."""


class SqlError(LakeError):
    """A mistake in SQL; `lines` is DuckDB's own message, whose last line points at the place."""

    def __init__(self, message: str, lines: Sequence[str] = ()):
        super().__init__(message)
        self.lines = list(lines)


def _reworded(parts: list[str]) -> list[str]:
    """Texts about a file that was read of a remote lake as ones about the lake, which nobody is asked to delete from."""
    for root, address in REWORD.items():
        if any(root in part for part in parts):
            parts = [part.replace(root, address) for part in parts]
            if any(re.search(r"\b(delete|rm|restore)\b", part) for part in parts):
                problem = re.split(r"[;:,] (?=[^;]*\b(?:delete|rm|restore)\b)", parts[0], maxsplit=1)[0]
                fresh = f"`rm -r {shlex.quote(root)}` lets it be fetched anew"
                return [problem, *parts[1:3], f"{KEEPER}; if only its copy here is damaged, {fresh}"]
    return parts
