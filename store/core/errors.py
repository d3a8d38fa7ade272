"""The one exception a user is meant to read."""

from collections.abc import Callable, Sequence

# What repairs a file of a capture, or of what is read like one.
RESTORE = (
    "restore the file (`actlake pull URL --check` takes it from a copy of the lake), or delete the folder it belongs to and run"
    " the same `actlake capture` again"
)


# What mends a file of a lake on another machine.
KEEPER = "nothing there is to be deleted: whoever keeps that lake can restore the file (`actlake push --check` from a good copy)"
# Rewrite a message: what it says of the mirror of a remote lake it is to say of the lake.
REWORD: list[Callable[[str], str]] = []


class LakeError(Exception):
    """A mistake or a broken store, told in one line: what, where, found against expected, what to do.

    The command line prints the message and exits with code 2; Python callers get it as it is.
    """

    def __init__(self, message: object = ""):
        message = str(message)
        for reword in REWORD:
            message = reword(message)
        super().__init__(message)


class CorruptError(LakeError):
    """Stored bytes do not match what was recorded when they were written."""


class SqlError(LakeError):
    """A mistake in SQL; `lines` is DuckDB's own message, whose last line points at the place."""

    def __init__(self, message: str, lines: Sequence[str] = ()):
        super().__init__(message)
        self.lines = list(lines)
