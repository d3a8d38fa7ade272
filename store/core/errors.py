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
    """A mistake or a broken store, told in one line: what, where, found against expected, what to do.

    The command line prints the message and exits with code 2; Python callers get it as it is.
    """

    def __init__(self, message: object = ""):
        super().__init__(_reworded(str(message)))


class CorruptError(LakeError):
    """Stored bytes do not match what was recorded when they were written."""


class SqlError(LakeError):
    """A mistake in SQL; `lines` is DuckDB's own message, whose last line points at the place."""

    def __init__(self, message: str, lines: Sequence[str] = ()):
        super().__init__(message)
        self.lines = list(lines)


def _reworded(message: str) -> str:
    """A message about a file that was read of a remote lake as one about the lake, which nobody is asked to delete from."""
    for root, address in REWORD.items():
        if root in message:
            message = message.replace(root, address)
            if re.search(r"\b(delete|rm|restore)\b", message):
                problem = re.split(r"[;:,] (?=[^;]*\b(?:delete|rm|restore)\b)", message, maxsplit=1)[0]
                fresh = f"`rm -r {shlex.quote(root)}` lets it be fetched anew"
                return f"{problem}; {KEEPER}; if only its copy here is damaged, {fresh}"
    return message
