"""A real browser for tests: headless Chromium, driven over its DevTools protocol; where there is none, tests are skipped."""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds: machines may be busy
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--mute-audio", "--remote-debugging-port=0"),
)


class Browser:
    """One page of a browser; `problems` are errors of its console and its policy."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop):
        self._socket, self._loop, self._count = socket, loop, 0
        self.problems: list[str] = []

    def _run(self, action: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(action, PATIENCE))

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        self._count += 1
        number = self._count

        async def ask() -> dict[str, Any]:
            await self._socket.send_json({"id": number, "method": method, "params": given})
            while True:
                found = json.loads((await self._socket.receive()).data)
                self._note(found)
                if found.get("id") == number:
                    assert "error" not in found, found
                    return found["result"]

        return self._run(ask())

    def _note(self, found: dict[str, Any]) -> None:
        if found.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(found["params"]["exceptionDetails"]))
        if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
            self.problems.append(found["params"]["entry"]["text"])
        if found.get("method") == "Runtime.consoleAPICalled" and found["params"]["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(str(found["params"]["args"]))

    def open(self, url: str, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        """Open an address and wait until the explorer shows a page."""
        self.size(width, height)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("typeof explorer === 'object' && explorer.shown > 0")

    def size(self, width: int, height: int) -> None:
        """Make the page so large."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def go(self, hash_: str) -> None:
        """Another page of the explorer."""
        before = self("explorer.shown")
        self(f"location.hash = {json.dumps(hash_)}")
        self.until(f"explorer.shown > {before}")

    def __call__(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self(expression):
            assert time.monotonic() < end, f"never true: {expression}; {self.problems}"
            time.sleep(0.03)

    def text(self, selector: str = "main") -> str:
        """What is written in an element."""
        return self(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click on an element, and let the page draw."""
        self(f"document.querySelector({json.dumps(selector)}).click()")
        self("new Promise(done => setTimeout(done, 60))")

    def key(self, key: str) -> None:
        """Press a key on the page."""
        self(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true}}))")
        self("new Promise(done => setTimeout(done, 60))")

    def picture(self, file: Path, whole: bool = False) -> Path:
        """A screenshot as PNG."""
        import base64

        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))
        return file


def program() -> str | None:
    """Where the browser is."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A running browser with one empty page; skips the test where there is none, or nothing to drive it with."""
    aiohttp = pytest.importorskip("aiohttp")
    name = program()
    if name is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "log"
        with open(log, "w") as said:
            process = subprocess.Popen(
                [name, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=said, stdout=subprocess.DEVNULL
            )
        loop = asyncio.new_event_loop()
        try:
            port, end = Path(profile) / "DevToolsActivePort", time.monotonic() + PATIENCE
            while not (port.exists() and len(port.read_text().split()) == 2):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.skip(f"the browser does not start here: {log.read_text()[-300:]}")
                time.sleep(0.05)
            address = f"http://127.0.0.1:{port.read_text().split()[0]}"

            async def connect() -> tuple[Any, Any]:
                session = aiohttp.ClientSession(trust_env=False)
                async with session.get(f"{address}/json/list") as answer:
                    pages = [page for page in await answer.json() if page["type"] == "page"]
                return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

            session, socket = loop.run_until_complete(connect())
            made = Browser(socket, loop)
            for domain in ("Page", "Runtime", "Log"):
                made.call(f"{domain}.enable")
            try:
                yield made
            finally:
                loop.run_until_complete(session.close())
        finally:
            process.terminate()
            process.wait(10)
            loop.close()
