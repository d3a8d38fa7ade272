"""The command line: parse, call, print."""

import errno
import os
import sys
from typing import Annotated

import typer
from rich.markup import escape

from ..store.core.errors import LakeError, SqlError, needs
from ..store.core.progress import Terminal
from ..store.core.version import __version__
from .adding import adding
from .ask import questions
from .make import making
from .options import JsonOption, Where, grouped
from .printing import line, print_json
from .share import sharing
from .texts import writing

# What the system says of a folder or file that is taken, not to be written, or full.
PLACES = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
}

app = typer.Typer(
    help="An activation lake: capture pretrained and instruction-tuned models once, then ask every question of the store.",
    epilog="Start with `actlake demo`. Every command explains itself with --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for part in (making, writing, adding, questions, sharing):
    app.add_typer(part)


@app.command(epilog="Example: `actlake doctor --lake lake`")
@grouped
def doctor(where: Where, as_json: JsonOption = False) -> None:
    """Versions, devices, disk, catalog and lake, one line each."""
    from .doctor import doctor_lines

    found = doctor_lines(where.lake, where.catalog)
    if as_json:
        return print_json([{"what": name, "finding": value} for name, value in found])
    for name, value in found:
        line(f"{name:12} {value}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        line(f"actlake {__version__}")
        raise typer.Exit()


def main() -> None:
    """Run a command; a user's mistake is one line on standard error and exit code 2."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network it would print each of its retries
    try:
        with needs():
            app(standalone_mode=True)
    except LakeError as error:
        if isinstance(error, SqlError) and len(error.lines) > 1:  # the last points at the place
            Terminal(stderr=True, soft_wrap=True).print(
                "[red]error:[/] SQL: " + escape("\n".join(error.lines)), highlight=False
            )
            sys.exit(2)
        Terminal(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False
        )
        sys.exit(2)
    except OSError as error:  # a place that is named and can't be used; what else goes wrong is no mistake of a user's
        if error.errno not in PLACES or error.filename is None:
            raise
        Terminal(stderr=True, soft_wrap=True).print(
            f"[red]error:[/] {escape(str(error.filename))}: {error.strerror}; name another place, or make this one usable",
            highlight=False,
        )
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C
            Terminal(stderr=True).print("stopped; what is written stays: the same command continues from there")
        raise
