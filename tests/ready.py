"""Processes that start at once: forked from one that has imported torch, transformers and the commands, which takes seconds.

What a test says of a process holds for one that is forked too, but for how it starts: tests of imports, of the environment
that libraries read when they are imported, and of installed commands start Python itself.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = (
    *("torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *(
        "transformers.models.llama.modeling_llama",
        "transformers.generation",
        "transformers.tokenization_utils_tokenizers",
    ),
    *("actlake.cli.main", "actlake.cli.make", "actlake.cli.answers", "actlake.capture.run.capture", "actlake.lake"),
    *("actlake.queries.answer.asking", "actlake.queries.makers", "distributed", "distributed.nanny"),
)


def start() -> None:
    """Start the process that others are forked from, dask's workers among them where they are forked so."""
    CONTEXT.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def _be(words: list[str], folder: str, environment: dict[str, str], ends: list[Connection]) -> None:
    """Become `python WORDS`, with these ends of pipes as standard input, output and error."""
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin = os.fdopen(0, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, *rest = words
    sys.path.insert(0, folder if kind in ("-m", "-c") else str(Path(kind).parent))
    sys.argv = rest if kind == "-m" else ["-c", *rest[1:]] if kind == "-c" else words
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__ | {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


class Process:
    """`python WORDS` (a file, -m MODULE or -c CODE first), with pipes of text, as subprocess.Popen has them."""

    def __init__(self, *words: object, cwd: Path | None = None, env: dict[str, str] | None = None):
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(3)]  # (reading, writing)
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        arguments = ([str(word) for word in words], str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        start()
        self._process = CONTEXT.Process(target=_be, args=(*arguments, theirs))
        self._process.start()
        for end in theirs:
            end.close()
        self.stdin: IO[str] = os.fdopen(os.dup(pipes[0][1].fileno()), "w")
        self.stdout: IO[str] = os.fdopen(os.dup(pipes[1][0].fileno()))
        self.stderr: IO[str] = os.fdopen(os.dup(pipes[2][0].fileno()))
        for end in (pipes[0][1], pipes[1][0], pipes[2][0]):
            end.close()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """What it ended with: minus the signal's number when it was killed, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its input, wait for its end, and return what it said and what else there was of it to read."""
        said = ["", ""]

        def read(number: int, pipe: IO[str]) -> None:
            said[number] = pipe.read()

        readers = [threading.Thread(target=read, args=each) for each in enumerate((self.stdout, self.stderr))]
        for reader in readers:
            reader.start()
        self.stdin.close()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said[0], said[1]


def run(*words: object, timeout: float | None = 900, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python WORDS` to its end."""
    process = Process(*words, **options)
    try:
        out, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess([str(word) for word in words], process.wait(), out, errors)
