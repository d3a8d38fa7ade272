"""The explorer's local server: the page, its data files, and one question in SQL at a time; read-only.

It listens on 127.0.0.1 and answers only below a path of 32 random letters, and only requests that name it as their host: a
page of another site knows neither, and a name that is turned to 127.0.0.1 is refused. It reads no file but the explorer's own.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pandas as pd

from ..store.core.errors import LakeError
from ..store.core.progress import remark
from .cells import has_kernels
from .packing import plain
from .site import ExplorerSite, own_files

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
QUESTION = 1 << 16  # bytes of a statement
ROWS = 1000  # of an answer that are shown
SECONDS = 120.0  # that a question may take
KEPT = 256  # data files kept in memory

Ask = Callable[[str, int, float], pd.DataFrame]  # a statement, most rows, most seconds


def _told(value: Any) -> Any:
    """A value of an answer for the page: what is no number there, or one of more digits than JavaScript counts, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return str(value) if isinstance(value, int) and abs(value) > 2**53 else plain(value)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ExplorerServer

    def do_GET(self) -> None:
        """A file of the page, or a data file."""
        if not self._allowed():
            return
        name = self.path.partition("?")[0].removeprefix(self.server.path)
        try:
            kind, data = self.server.file(name or "index.html")
        except LakeError as error:
            return self._send(HTTPStatus.NOT_FOUND, f"{error}\n".encode(), "text/plain; charset=utf-8")
        except Exception as error:  # a browser takes silence for a server that is gone
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}\n".encode(), "text/plain")
            raise
        self._send(HTTPStatus.OK, data, kind)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """One SELECT, as JSON {"sql": ...}; answered with columns and rows, or the error."""
        if not self._allowed(origin=True):
            return
        length = self.headers.get("Content-Length", "")
        if self.path != f"{self.server.path}sql" or not length.isdigit() or int(length) > QUESTION:
            return self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")
        try:
            asked = json.loads(self.rfile.read(int(length)))
            found: dict[str, Any] = self.server.answer(str(asked["sql"]))
        except (ValueError, KeyError, TypeError):
            found = {"error": 'expected JSON {"sql": "SELECT ..."}'}
        self._send(HTTPStatus.OK, json.dumps(found).encode(), "application/json")

    def _allowed(self, origin: bool = False) -> bool:
        """Whether a request comes from this server's own page."""
        hosts = self.server.hosts
        own = self.headers.get_all("Host", []) in [[host] for host in hosts]
        from_here = self.headers.get("Origin") in (None, *(f"http://{host}" for host in hosts))
        if origin:
            from_here = from_here and self.headers.get("Content-Type") == "application/json"
        begin = self.path[: len(self.server.path)]
        if own and from_here and secrets.compare_digest(begin.encode(), self.server.path.encode()):
            return True
        self.close_connection = True  # a body that was not read must not be taken for the next request
        self._send(HTTPStatus.FORBIDDEN, b"this is not the explorer's address\n", "text/plain")
        return False

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def version_string(self) -> str:
        """Do not tell which Python answers."""
        return "actlake"


class ExplorerServer(ThreadingHTTPServer):
    """Hands out one site; `url` is what to open, with the token in it."""

    daemon_threads = True
    _thread: threading.Thread

    def __init__(self, site: ExplorerSite, ask: Ask, port: int = 0):
        self.site, self._ask = site, ask
        self.path = f"/{secrets.token_urlsafe(24)}/"
        self._own = dict(own_files())
        self._busy = threading.Lock()  # the site reads one file at a time
        self._data = lru_cache(maxsize=KEPT)(site.data)
        super().__init__(("127.0.0.1", port), _Handler)
        number = self.server_address[1]
        self.hosts = (f"127.0.0.1:{number}", f"localhost:{number}")

    @classmethod
    def start(cls, site: ExplorerSite, ask: Ask, port: int = 0) -> ExplorerServer:
        """A server that answers in the background; LakeError for a port that is taken."""
        try:
            server = cls(site, ask, port)
        except (OSError, OverflowError) as error:
            raise LakeError(f"127.0.0.1:{port}: can't listen there ({error}); choose another --port") from error
        server._thread = threading.Thread(target=server.serve_forever, daemon=True)
        server._thread.start()
        threading.Thread(target=server._get_ready, daemon=True).start()
        return server

    def _get_ready(self) -> None:
        """Make what is looked at first, and load what takes seconds to load, while a browser opens."""
        with suppress(LakeError):
            for name in ("index", "prompts/0"):
                self.file(f"data/{name}.js")
        has_kernels()

    def wait(self) -> None:
        """Until the server is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()

    def __repr__(self) -> str:
        return f"explorer at {self.url}"

    def _repr_html_(self) -> str:
        return f"explorer at <a href='{self.url}' target='_blank'>{self.url}</a>"

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{self.hosts[0]}{self.path}"

    def file(self, name: str) -> tuple[str, bytes]:
        """Type and bytes of a file; LakeError for one that is not the explorer's."""
        kind = KINDS.get(name.rpartition(".")[2])
        if name in self._own and kind:
            return kind, self._own[name]
        if not (name.startswith("data/") and name.endswith(".js")):
            raise LakeError("the explorer has no such file")
        with self._busy:
            return KINDS["js"], self._data(name.removeprefix("data/").removesuffix(".js"))

    def answer(self, sql: str) -> dict[str, Any]:
        """What a SELECT gives: columns with types, the first rows, whether there are more; or the error."""
        try:
            found = self._ask(sql, ROWS + 1, SECONDS)
        except LakeError as error:
            return {"error": str(error)}
        shown = found.head(ROWS)
        rows = [[_told(value) for value in row] for row in shown.astype(object).itertuples(index=False)]
        return {"columns": list(map(str, found.columns)), "rows": rows, "more": len(found) > ROWS}

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no error of the server's; anything else is said once."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            remark(f"explorer: {type(error).__name__}: {error}; please report it")
