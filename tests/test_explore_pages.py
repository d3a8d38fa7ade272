"""The explorer's pages in a real browser: from a disk, from a web server, from its own server."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import browser as browsers
import numpy as np
import pytest
import tiny
from actlake.explore.server import ExplorerServer
from actlake.lake import Lake
from actlake.store.format.paths import Layout
from test_explore import HOSTILE

WIDTHS = (390, 1300)
KEYS = (
    "view",
    "set",
    "q",
    "number",
    "category",
    "row",
    "pair",
    "direction",
    "layer",
    "metric",
    "sweep",
    "condition",
    "id",
    "at",
)
PAGES = ("lake", "prompts", "prompt", "texts", "directions", "rows", "sql")


@pytest.fixture(scope="module")
def page() -> Iterator[browsers.Browser]:
    with browsers.browser() as found:
        yield found


@pytest.fixture(autouse=True)
def no_problems(page: browsers.Browser) -> Iterator[None]:
    """Nothing is written to the console, and the policy stops nothing."""
    page.problems.clear()
    yield
    assert not page.problems


@pytest.fixture(scope="module")
def lake(captured: Layout) -> Lake:
    return Lake(captured.root, device="cpu")


@pytest.fixture(scope="module")
def site(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lake.explore(tmp_path_factory.mktemp("site") / "site")


@pytest.fixture(scope="module")
def served(lake: Lake) -> Iterator[ExplorerServer]:
    found = lake.explore()
    yield found
    found.close()


@pytest.fixture(scope="module")
def web(site: Path) -> Iterator[str]:
    """The static site behind Python's plain web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    server.shutdown()
    server.server_close()


def test_every_page_opens_from_everywhere(page: browsers.Browser, site: Path, web: str, served: ExplorerServer) -> None:
    for address in (site.as_uri(), web, served.url):
        page.open(address)
        for name in page("[...document.querySelectorAll('#pages a')].map(link => link.dataset.page)") + ["prompt"]:
            page.go(f"#{name}")
            assert page("document.querySelector('h1').innerText.length") > 0, (address, name)
            assert "can't" not in page.text() and "undefined" not in page.text() and "[object" not in page.text(), name


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways(page: browsers.Browser, site: Path, width: int) -> None:
    page.open(site.as_uri(), width)
    for name in ("lake", "prompts", "prompt?id=p1&tokens=all", "prompt?id=p1&show=difference", *PAGES[3:]):
        page.go(f"#{name}")
        assert page("document.documentElement.scrollWidth") <= width, name
        wide = page(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .map, pre, .tokens, svg, .list, .asked')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert not wide, (name, wide)


def test_numbers_on_the_page_are_those_of_sql(page: browsers.Browser, lake_copy: Layout) -> None:
    lake = Lake(lake_copy.root, device="cpu")
    wanted = lake.sql(
        "SELECT model, position, layer, kl_final_layer, entropy, p_target FROM lens WHERE prompt_id = 'p1' AND lens = 'raw' AND"
        " stream LIKE 'native%' ORDER BY ALL"
    ).df()
    server = lake.explore()
    try:
        page.open(f"{server.url}#prompt?id=p1&tokens=all&view=llama/native/tiny")
        import io

        import pandas as pd

        text = page("explorer.pageOf('prompt').table()")
        found = pd.read_csv(io.StringIO(text)).sort_values(["model", "position", "layer"])
        assert len(found) == len(wanted)
        for name in ("kl_final_layer", "entropy", "p_target"):
            assert np.allclose(found[name], wanted[name], rtol=4e-5, atol=1e-7, equal_nan=True), name
        page.go("#prompt?id=p1&view=llama/native/tiny&at=it.5&layer=1&tokens=all")
        row = wanted[(wanted["model"] == "llama-it") & (wanted["position"] == 5) & (wanted["layer"] == 1)].iloc[0]
        shown = page("[...document.querySelectorAll('.cell:last-child dd')].map(cell => parseFloat(cell.innerText))")
        assert np.allclose(shown[:2], [row["kl_final_layer"], row["entropy"]], rtol=1e-3)
    finally:
        server.close()


def test_the_address_restores_what_was_seen(page: browsers.Browser, site: Path) -> None:
    page.open(f"{site.as_uri()}#prompt?id=p1")
    page.key("d")
    page("(() => { const map = document.querySelector('.map'); map.focus(); for (const key of ['ArrowRight', 'ArrowDown'])"
         " map.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})); })()")  # fmt: skip
    page(
        "[...document.querySelectorAll('select')].find(box => box.getAttribute('aria-label') === 'Colour').value = 'entropy'"
    )
    page(
        "[...document.querySelectorAll('select')].find(box => box.getAttribute('aria-label') === 'Colour').dispatchEvent(new Event('change'))"
    )
    page.until("document.querySelector('.keyed').innerText.includes('entropy')")
    address, text = page("location.href"), page.text()
    assert "show=difference" in address and "colour=entropy" in address and "at=" in address and "IT − PT" in text
    page.open(address)
    assert page.text() == text
    page.open(f"{site.as_uri()}#prompts?q=the+mat&number=answer+tokens+%C2%B7+llama-it+%C2%B7+native&sort=up")
    assert page("document.querySelector('input[type=search]').value") == "the mat"
    assert page.text("#count") == "2 of 6 prompts" and page("[...document.querySelectorAll('.item .id')].length") == 2


def test_keys_search_and_brushes(page: browsers.Browser, site: Path) -> None:
    page.open(f"{site.as_uri()}#prompts")
    assert page.text("#count") == "6 of 6 prompts"
    page(
        "(() => { const box = document.querySelector('input[type=search]'); box.value = 'rain'; box.dispatchEvent(new Event('input')); })()"
    )
    assert page.text("#count") == "1 of 6 prompts" and "q=rain" in page("location.hash")
    page.go("#prompts?number=prompt+tokens+%C2%B7+llama-it+%C2%B7+native&low=20&high=1000")
    assert page.text("#count").startswith(("1", "2", "3", "4", "5"))
    before = page("explorer.shown")
    page.key("j")
    page.key("Enter")
    page.until(f"explorer.shown > {before}")
    assert page("location.hash").startswith("#prompt?")
    first = page.text("h1")
    page.key("j")
    page.until(f"document.querySelector('h1').innerText !== {json.dumps(first)}")


def test_a_hostile_lake_stays_text(page: browsers.Browser, llama: Any, tmp_path: Path) -> None:
    """Ids, categories, texts and addresses that would be markup or code run nothing, break no layout and stay on the page."""
    rows = [(text, text, f"the cat {text}") for text in HOSTILE]
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, prompts=tiny.prompt_set(rows))
    Lake(layout.root, device="cpu").sql("SELECT * FROM lens")
    address = Lake(layout.root, device="cpu").explore(tmp_path / "site").as_uri()
    page.open(address, 390)
    page("window.alert = () => { window.hit = true; }")
    hashes = [
        f"#prompt?{urlencode({'id': text, 'tokens': 'all', 'show': show})}"
        for text in HOSTILE
        for show in ("both", "difference")
    ]
    hashes += [f"#{name}?{urlencode(dict.fromkeys(KEYS, HOSTILE[0]))}" for name in PAGES if name != "prompt"]
    for hash_ in ["#lake", "#prompts", *hashes, "#prompts?number=__proto__&sort=up", "#constructor", f"#{HOSTILE[0]}"]:
        page.go(hash_)
        assert page("document.querySelectorAll('main img, main script, main iframe').length") == 0, hash_
        assert page("window.hit === undefined && location.pathname.endsWith('index.html')"), hash_
        assert page("document.documentElement.scrollWidth") <= 390, hash_
    page.go(f"#prompt?{urlencode({'id': HOSTILE[0]})}")
    assert page.text("h1") == HOSTILE[0]


def test_dark_and_files(page: browsers.Browser, site: Path) -> None:
    page.open(f"{site.as_uri()}#prompt?id=p3", dark=True)
    assert page("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    page.click("#theme")
    assert page("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page("localStorage.clear()")
    page("explorer.save = (name, blob) => { window.saved = [name, blob]; }")
    for button, kind in (("SVG", "image/svg+xml"), ("CSV", "text/csv"), ("PNG", "image/png")):
        page(
            f"window.saved = null; [...document.querySelectorAll('button')].find(one => one.innerText === '{button}').click()"
        )
        page.until("window.saved !== null")
        assert page("window.saved[1].type") == kind and page("window.saved[1].size") > 500
        assert page("window.saved[0]").startswith("p3-raw-kl_final_layer.")
