"""The explorer: a static site of a lake written, and its pages opened in headless Chromium from the local server and from disk.

Beside the lake a made one: 1,400 prompts, of which one of 512 tokens through 34 layers is opened. Times are medians of five.
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import helpers  # noqa: F401
import numpy as np
from actlake.explore import lists
from actlake.explore.packing import packed, script
from actlake.explore.site import own_files
from actlake.explore.source import ExplorerSource
from actlake.lake import Lake
from actlake.store.core.progress import Estimate
from browser import Browser, browser
from measure import Row, main

TOKENS, LAYERS, PROMPTS, WORDS = 512, 35, 1400, 12000
TIMES = 5
SCROLL = """(async () => {
    const map = document.querySelector('.map'), found = [];
    let last = performance.now();
    for (let i = 0; i < 60; i++) {
        map.scrollLeft += 90;
        await new Promise(done => requestAnimationFrame(done));
        found.push(performance.now() - last);
        last = performance.now();
    }
    return found.sort((a, b) => a - b)[57];
})()"""


def made(folder: Path, lake: Lake) -> int:
    """A site of random numbers in the sizes of a 4B model; the bytes of one prompt."""
    generator = np.random.default_rng(0)
    for name, data in own_files():
        (folder / name).write_bytes(data)
    ids = [f"prompt-{at:04}" for at in range(PROMPTS)]
    listed = {"name": "made", "ids": ids, "categories": ["FACT"] * PROMPTS, "texts": ["what is it? " * 16] * PROMPTS}
    numbers = [{"label": f"n{at}", "unit": "", "meaning": "", "table": "t", "column": "c"} for at in range(40)]
    value = packed({**listed, "numbers": numbers}, {"numbers": generator.random((40, PROMPTS), np.float32)})
    files = {"prompts/0": value, "index": lists.index(ExplorerSource(lake.layout, "cpu"), server=False)}
    shape = (LAYERS, TOKENS)
    step = np.where(np.arange(TOKENS) < 100, -1, np.arange(TOKENS) - 100)
    for number in (0, 1):
        arrays: dict[str, Any] = {
            "id": (np.arange(TOKENS), "u4"),
            "step": (step, "i2"),
            "flags": (2 * (step > 0), "u1"),
        }
        for name in ("kl_final_layer", "entropy", "p_target", "cos_final"):
            arrays[f"raw.{name}"] = generator.exponential(2, shape).astype(np.float32)
        arrays["raw.rank_target"] = generator.integers(1, 5000, shape)
        arrays["raw.top"] = generator.integers(0, WORDS, (5, *shape))
        arrays["raw.p"] = generator.random((5, *shape), np.float32)
        arrays["block_cos"] = generator.normal(0, 0.3, shape).astype(np.float32)
        arrays["word"] = generator.integers(0, WORDS, TOKENS)
        about = {
            "tokens": TOKENS,
            "start": 100,
            "words": [f" word{at}" for at in range(WORDS)],
            "layers": [*range(-1, LAYERS - 1)],
        }
        files[f"cells/{number}/0"] = packed({**about, "lenses": ["raw"], "notes": []}, arrays)
    steps = {"step": (step[step >= 0], "i2")}
    pair = {
        name: generator.random((LAYERS, int((step >= 0).sum())), np.float32) for name in ("js", "kl_pt_it", "kl_it_pt")
    }
    files["pair/0/0"] = packed({"layers": [*range(-1, LAYERS - 1)], "notes": []}, {**steps, **pair})
    for name, data in files.items():
        file = folder / "data" / f"{name}.js"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(script(name, data))
    return sum((folder / "data" / f"{name}.js").stat().st_size for name in ("cells/0/0", "cells/1/0", "pair/0/0"))


def opened(page: Browser, url: str) -> float:
    """Milliseconds from the beginning of a navigation until the page has drawn itself."""
    page.call("Network.clearBrowserCache")
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=url)
    page.until("typeof explorer === 'object' && explorer.shown > 0")
    return float(page("new Promise(done => requestAnimationFrame(() => done(explorer.times.first)))"))


def turned(page: Browser, hash_: str) -> float:
    """Milliseconds until another page of the explorer has drawn itself."""
    return float(
        page(
            f"(async () => {{ const before = explorer.shown, start = performance.now(); location.hash = {hash_!r};"
            " while (explorer.shown === before) await new Promise(done => setTimeout(done, 2));"
            " await new Promise(done => requestAnimationFrame(done)); return performance.now() - start; })()"
        )
    )


def first_view(page: Browser, url: str) -> float:
    """Milliseconds until the page of a lake can be read."""
    return several(lambda _: opened(page, f"{url}#lake"))


def several(action: Callable[[int], float]) -> float:
    return median(action(at) for at in range(TIMES))


def figure(what: str, measured: float, unit: str, limit: float = math.nan) -> Row:
    """A figure, held to be no more than `limit` where there is one."""
    return Row(what, measured, limit, unit, "<= 1" if limit == limit else "")


def run(lake: str | None) -> list[Row]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory() as scratch, browser() as page:
        if lake is None:
            subprocess.run(
                [sys.executable, "-m", "actlake", "demo"], cwd=scratch, check=True, stdout=subprocess.DEVNULL
            )
        return measured(Lake(lake or Path(scratch) / "lake"), Path(scratch), page)


def measured(lake: Lake, scratch: Path, page: Browser) -> list[Row]:
    """The rows of a lake, and of a made prompt."""
    rows, plans = list[Row](), list[Estimate]()
    page.call("Network.enable")
    started, busy = time.perf_counter(), time.process_time()
    site = lake.explore(scratch / "site", show=plans.append)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    size, plan = sum(file.stat().st_size for file in site.parent.rglob("*") if file.is_file()), plans[0]
    prompts = plan.counts["prompts"]
    rows += [
        figure(f"static site of {prompts} prompts", seconds, "s", 60),
        figure("CPU time of that", busy, "s"),
        figure("its size", size / 1e6, "MB", 40),
        figure("bytes a prompt", size / prompts / 1e3, "kB"),
        figure("size said before over size", plan.bytes / size, ""),
    ]
    ids, server = lake.prompts["id"].tolist(), lake.explore()
    try:
        for name, url in (("local server", server.url), ("file://", site.as_uri())):
            rows += [
                figure(f"{name}: first view", first_view(page, url), "ms", 1500),
                figure(f"{name}: list of prompts", turned(page, "#prompts"), "ms"),
                figure(f"{name}: a prompt", several(lambda at: turned(page, f"#prompt?id={ids[at]}")), "ms", 500),
            ]
    finally:
        server.close()
    large = scratch / "large"
    large.mkdir()
    bytes_of_one = made(large, lake)
    page.open((large / "index.html").as_uri())
    rows += [
        figure("made: list of 1,400 prompts", turned(page, "#prompts"), "ms"),
        figure("made: a prompt, 512 tokens x 35 layers x 2", turned(page, "#prompt?id=prompt-0000"), "ms", 1000),
        figure("made: the difference", turned(page, "#prompt?id=prompt-0000&show=difference"), "ms", 1000),
        figure("made: bytes of a prompt of both models", bytes_of_one / 1e3, "kB"),
    ]
    page.go("#prompt?id=prompt-0000&tokens=all")
    rows.append(figure("made: scrolling a heat map, 95 % of frames", float(page(SCROLL)), "ms", 50))
    return rows


if __name__ == "__main__":
    option = "[default: what `actlake demo` makes]"
    main("explore", run, __doc__, lambda parser: parser.add_argument("--lake", help=option))
