"""A bad network in one process: a proxy before a web or S3 server that delays, cuts, shortens, falsifies and refuses."""

import http.client
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random

HOP = ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "expect")
KINDS = ("delay", "slow", "refuse", "busy", "lose", "cut", "short", "flip", "falsify")
Choose = Callable[[str, str], str | None]  # method and path of a request -> what to do to it


class Proxy:
    """Hands requests on to a server of this machine; `choose` says what goes wrong with each.

    delay: the answer comes late. slow: piece by piece. refuse, busy: HTTP 500 and 503, the server is not asked. lose: it is
    asked, and its answer lost. cut: the connection ends in the middle of the body. short: half a body that says it is all.
    flip: a byte of the body is another one, but for the listings of a bucket, which S3 gives no checksum (https does). falsify:
    a byte of what the client sends is.
    """

    def __init__(self, port: int, seed: int = 0):
        self.port, self.choose, self.done = port, (lambda method, path: None), list[tuple[str, str, str]]()
        self._rng, self._lock, proxy = Random(seed), threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError, socket.timeout):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def __getattr__(self, name: str) -> Callable[[], None]:
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return lambda: proxy._handle(self)

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args: object) -> None:
                """A client that hung up."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            kind = self.choose(request.command, request.path)
            if kind in ("cut", "short", "flip") and request.command != "GET" or kind == "falsify" and not body:
                kind = None
            if kind == "flip" and "list-type=" in request.path:
                kind = None
            if kind:
                self.done.append((kind, request.command, request.path))
        if kind in ("refuse", "busy"):
            self._answer(request, 500 if kind == "refuse" else 503, [], b"")
            return
        if kind == "delay":
            time.sleep(0.4)
        if kind == "falsify":
            body = self._flipped(body)
        status, headers, data = self._ask(request, body)
        if kind == "lose":
            request.close_connection = True
            return
        if kind == "flip":
            data = self._flipped(data)
        self._answer(request, status, headers, data, kind or "")

    def _flipped(self, data: bytes) -> bytes:
        at = self._rng.randrange(len(data)) if data else 0
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :] if data else data

    def _ask(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer; 503 while it is away."""
        try:
            server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            server.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in HOP:
                    server.putheader(name, value)
            if body or request.command in ("PUT", "POST"):
                server.putheader("Content-Length", str(len(body)))
            server.endheaders(body or None)
            answer = server.getresponse()
            data = answer.read()
            server.close()
            length = [("Content-Length", answer.headers["Content-Length"])] if request.command == "HEAD" else []
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP]
            return answer.status, kept + [pair for pair in length if pair[1]], data
        except (OSError, http.client.HTTPException):
            return 503, [], b""

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        kind: str = "",
    ) -> None:
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        half = data[: len(data) // 2]
        if request.command != "HEAD" and status not in (204, 304):
            request.send_header("Content-Length", str(len(half if kind == "short" else data)))
        request.end_headers()
        if kind == "slow":
            for start in range(0, len(data), step := max(len(data) // 8, 1)):
                request.wfile.write(data[start : start + step])
                time.sleep(0.02)
        else:
            request.wfile.write(half if kind in ("cut", "short") else data)
        if kind == "cut":
            request.wfile.flush()
            request.close_connection = True


@contextmanager
def bad_network(port: int, seed: int = 0) -> Iterator[Proxy]:
    """A proxy before a server while the block runs; it does no harm until `choose` is set."""
    proxy = Proxy(port, seed)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join(20)
