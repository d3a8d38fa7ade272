"""Errors that a user is meant to read, also for a missing package, and text without the secrets of a lake's address."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


# Package -> the extra that brings it.
EXTRAS = {
    "torch": "capture",
    "transformers": "capture",
    "safetensors": "capture",
    "huggingface_hub": "hub",
    "accelerate": "capture",
    "gguf": "gguf",
    "distributed": "cluster",
    "openai": "judge",
    "intake": "intake",
}


def check_limit(limit: int | None) -> None:
    """LakeError for a number of first prompts that leaves none."""
    if limit is not None and not isinstance(limit, int):
        raise LakeError("limit", expected="a whole number of prompts", found=repr(limit))
    if limit is not None and limit < 1:
        raise LakeError(f"a limit of {limit} leaves no prompts; give 1 or more")


@contextmanager
def needs() -> Iterator[None]:
    """Inside the block, or in a function decorated by it, a missing package of an extra is a LakeError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise LakeError(
            f"this needs the package {package}, which is not installed",
            repair=f"pip install 'actlake[{EXTRAS[package]}]'",
        ) from error


CHAIN = re.compile(r"(::)(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)  # fsspec's way to name a URL inside another
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY")
WITH_PORT = ("http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "smb")
SHORTEST = 8  # characters below which a variable's value is a word such as "false", and no secret


def redacted(url: object) -> str:
    """A path or URL without user, password, query string and fragment, for messages and records.

    A path without a scheme and a file:// URL stay as they are. A password may hold '/', as the keys of S3 do; the '@' of
    a revision (hf://datasets/NAME@REVISION) is none of a user's.
    """
    return "".join(_shown(part) for part in CHAIN.split(str(url)))


def _shown(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    if not slashes or scheme.lower() == "file":
        return url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, colon, after = authority.partition(":")
    port = after.isdigit() and scheme.lower() in WITH_PORT  # the secret of an S3 key may begin with digits and a '/'
    password = bool(colon) and not user.startswith("[") and not port
    if "@" in authority or password:
        _, _, tail = rest.partition("@")
        address = re.split(r"[?#]", tail, maxsplit=1)[0]
        # Behind a password the last '@' counts: a password that was not percent-encoded may hold some itself.
        rest = address.rpartition("@")[2] if password else address
    return scheme + slashes + re.split(r"[?#]", rest, maxsplit=1)[0]


def scrubbed(text: str) -> str:
    """A foreign error's text with its URLs as `redacted` tells them and the values of secret environment variables as ***."""
    for name, value in os.environ.items():
        if SECRET.search(name.upper()) and len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return URL.sub(lambda found: redacted(found[0]), text)
