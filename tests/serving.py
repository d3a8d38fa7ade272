"""OpenAI-compatible servers for tests: the pocket model behind `transformers serve`, a door to it that fails on request, and a
stand-in for an engine that returns token ids."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

POCKET = Path(__file__).parent.parent / "models" / "pocket" / "it"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def pocket(log: Path) -> Iterator[str]:
    """The address of an OpenAI-compatible server of the pocket IT model, in a process that ends with the block."""
    port = free_port()
    run = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", run, "serve", POCKET.name, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=POCKET.parent,
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1).is_success:
                    break
            except httpx2.HTTPError:
                time.sleep(0.2)
        else:
            raise AssertionError(log.read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Door:
    """A server that answers the n-th request with the n-th of `failures`, and hands all others through to a real server.

    A failure is (status, headers, body), or seconds to sleep before hanging up; None hands a request through. So every
    answer that is not a failure comes from a model.
    """

    def __init__(self, behind: str, *failures: tuple[int, dict[str, str], str] | float | None):
        self.behind, self.failures = behind, list(failures)
        self.requests: list[tuple[float, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        door = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                door.answer(self)

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self.lock:
            number = len(self.requests)
            self.requests.append(
                (time.monotonic(), {name.lower(): text for name, text in request.headers.items()}, body)
            )
        failure = self.failures[number] if number < len(self.failures) else None
        if isinstance(failure, int | float):
            time.sleep(failure)
            return
        if failure is None:
            real = httpx2.post(f"{self.behind}/chat/completions", json=json.loads(body), timeout=60)
            failure = (real.status_code, {}, real.text)
        status, headers, text = failure
        data = text.encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Engine:
    """A stand-in for an engine's server: `answer` makes what is sent of a request's JSON body, a dict or (status, bytes).

    `asked` are the prompts in the order they came, `most` how many were under way at a time.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any] | tuple[int, bytes]]):
        self.asked: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with engine._lock:
                    engine.asked.append(body["prompt"])
                    engine.bodies.append(body)
                    engine.headers.append({name.lower(): text for name, text in self.headers.items()})
                    engine._now += 1
                    engine.most = max(engine.most, engine._now)
                found = answer(body) if self.path == "/v1/completions" else (404, b"nothing here")
                status, data = found if isinstance(found, tuple) else (200, json.dumps(found).encode())
                with engine._lock:
                    engine._now -= 1
                with suppress(ConnectionError):  # whoever asked may be gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
