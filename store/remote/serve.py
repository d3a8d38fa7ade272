"""A read-only web server for a lake that hands out parts of files, which many web servers do not.

Nothing outside the folder is read, whatever a request or a link says; nothing is written. Folders are listed, so that no
files.json is needed (and one that is there, which may be older than the lake, is not handed out).
"""

import re
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from .store import INDEX

BLOCK = 1 << 20  # bytes that are sent at a time
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD below the root of its server."""

    protocol_version = "HTTP/1.1"
    server: "LakeServer"

    def do_GET(self) -> None:
        """A file, a part of one, or the names in a folder."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """What GET would say, without the bytes."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = self.server.find(unquote(urlsplit(self.path).path))
        if path is None:
            return self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain", body)
        try:
            if path.is_dir():
                return self._send(HTTPStatus.OK, self.server.listing(path), "text/html; charset=utf-8", body)
            with open(path, "rb") as file:
                self._file(path, file, body)
        except OSError:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain", body)

    def _file(self, path: Path, file: BinaryIO, body: bool) -> None:
        found = path.stat()
        size, span = found.st_size, self.headers.get("Range", "")
        start, stop = 0, size
        if span:
            part = part_of(span, size)
            if part is None:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            start, stop = part
        self.send_response(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", formatdate(found.st_mtime, usegmt=True))
        self.send_header("ETag", f'"{found.st_mtime_ns:x}-{size:x}-{found.st_ino:x}"')
        self.end_headers()
        file.seek(start)
        left = stop - start if body else 0
        while left > 0 and (data := file.read(min(BLOCK, left))):
            self.wfile.write(data)
            left -= len(data)
        if left:  # the file became shorter: the client must not take what came for all of it
            self.close_connection = True

    def _send(self, status: HTTPStatus, data: bytes, kind: str, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


class LakeServer(ThreadingHTTPServer):
    """Serves the folder `root` at an address; `url` is what to open."""

    daemon_threads = True

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0):
        self.root = root.resolve()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the lake."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def find(self, name: str) -> Path | None:
        """The file or folder of a request; None where there is none, and for what is outside the lake."""
        if "\0" in name or "\\" in name:
            return None
        try:
            path = (self.root / name.lstrip("/")).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return None
        inside = path.is_relative_to(self.root) and (path.is_dir() or path.is_file())
        return path if inside and path != self.root / INDEX else None

    def listing(self, folder: Path) -> bytes:
        """The names in a folder as a page of links; links that lead out of the lake are left out."""
        there = [path for path in sorted(folder.iterdir()) if self.find(path.relative_to(self.root).as_posix())]
        names = [f"{path.name}/" if path.is_dir() else path.name for path in there]
        links = "".join(f'<a href="{quote(name)}">{escape(name)}</a><br>\n' for name in names)
        return f"<!doctype html><html><body>\n{links}</body></html>\n".encode()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error of the server's."""


def part_of(span: str, size: int) -> tuple[int, int] | None:
    """Start and stop of a Range header in a file of so many bytes; None for one that can't be had."""
    match = RANGE.fullmatch(span.strip())
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:
        return (max(0, size - int(match[2])), size) if int(match[2]) and size else None
    start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    return (start, stop) if start < stop else None
