"""The HTML page: self-contained, escaped, complete, and with numbers a reader can use."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import made
import numpy as np
import pandas as pd
import pytest
from actlake.queries.figures.page import Step, page
from actlake.queries.rows.numbers import count, interval, number, seconds

SENTENCES = ["Finding one.", "Finding two.", "Finding three."]
COMMANDS = ["actlake run L2 --pair pocket", 'actlake sql "SELECT 1 < 2"', "actlake report"]
CAPTURES = pd.DataFrame(
    {
        "model": ["pocket-pt", "pocket-it", "pocket-it"],
        "stream": ["native-pocket-1a2b3c4d", "native-pocket-5e6f7a8b", "teacher-pocket-99999999"],
        "prompts": [240, 240, 0],
        "tokens": [17234, 20001, 0],
        "bytes": [98_765_432, 1_000_000, 5],
        "sealed": [True, True, False],
        "path": "/somewhere/on/a/machine",
    }
)
STEPS = [Step("capture pocket-pt", 12.34, 98_765_432), Step("lens table", 0.4, 2048, True), Step("L2", 71.0)]


class Reader(HTMLParser):
    """Collects tags, attribute values and visible text, and checks that tags are closed in order."""

    void = frozenset(("meta", "img", "input"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.void:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def render(answers: list[Any], **changes: Any) -> str:
    given = {
        "title": "pocket: PT against IT",
        "sentences": SENTENCES,
        "steps": STEPS,
        "captures": CAPTURES,
        "next_commands": COMMANDS,
    }
    return page(answers, **{**given, **changes})


@pytest.fixture(scope="module")
def html() -> str:
    return render([made.l1(), made.l2(), made.exp16(), made.l2("gemma3_4b", 34)])


def test_one_file_without_network_whose_only_script_is_its_own(html: str):
    reader = Reader(html)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert not {"link", "iframe", "object", "embed", "base", "img"} & set(reader.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", html)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert script == resources.files("actlake.queries.figures").joinpath("page.js").read_text(encoding="utf-8")
    assert "innerHTML" not in script and "eval" not in script
    for _, name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#"))
        assert "default-src 'none'" in value or name != "content" or "policy" not in value.lower()
    assert sum((tag, name, value) == ("svg", "class", "figure") for tag, name, value in reader.attributes) == 4
    assert len(html.encode()) < 400_000


def test_contents_by_group_with_a_search_box(html: str):
    reader = Reader(html)
    links = [value for tag, name, value in reader.attributes if (tag, name) == ("a", "href")]
    ids = {value for _, name, value in reader.attributes if name == "id"}
    assert (
        links[:4] == ["#L1-pocket", "#L2-pocket", "#exp16-pocket", "#L2-gemma3_4b"]
        and {link[1:] for link in links} <= ids
    )
    assert "search" in ids and "Layers and lenses" in reader.text


def test_the_page_and_the_explorer_share_their_colours():
    files = ("actlake.queries.figures", "page.css"), ("actlake.explore", "web/explorer.css")
    page, explorer = (resources.files(package).joinpath(name).read_text(encoding="utf-8") for package, name in files)
    for block in re.findall(r"--paper[^}]*?--accent-wash: #\w+", page):
        assert block in explorer


def test_figures_say_what_is_seen(html: str):
    told = [value for tag, name, value in Reader(html).attributes if (tag, name) == ("svg", "aria-label")]
    assert len(told) == 4 and told[0].startswith("Figure of L1. δ-cosine of blocks (cosine) by layer: PT from")


def test_everything_is_there(html: str):
    text = Reader(html).text
    for part in [*SENTENCES, *COMMANDS, "L1 · δ-cosine of block updates · pocket"]:
        assert part in text
    for answer in (made.l1(), made.l2(), made.exp16()):
        assert set(answer.table["measure"]) <= set(text.split())
        assert re.sub(r"\s+", " ", answer.sql) in text and answer.query.source in text and answer.sentence in text
    assert text.index(SENTENCES[0]) < text.index(" final20 ") < text.index("( profile ,")
    assert "The PT/IT study has no published figure for pocket in this row" in text
    assert "The PT/IT study has no published figure for gemma3_4b" not in text


def test_numbers_of_the_table_and_published_ones_beside_them(html: str):
    text = Reader(html).text
    assert "0.910 [0.833, 0.987] published 1.008" in text
    assert "−0.245 [−0.259, −0.231]" in text
    assert "published 22.02" in text and "published 25.71" in text
    assert "All that is published for gemma3_4b in this row (23)" in text and "1,273,606" in text
    assert re.search(r"measure\s+PT\s+IT\s+IT − PT\s+unit\s", text) and "n = 240 prompts." in text
    assert "convergence gap, raw lens cg_raw" in text


def test_captures_steps_and_their_sums(html: str):
    text = Reader(html).text
    assert "native-pocket-1a2b3c4d 240 17,234 98.8 MB" in text
    assert "all 37,235 99.8 MB" in text
    assert "capture pocket-pt 12.3 s 98.8 MB" in text and "lens table 0.40 s 2.0 KB reused" in text
    assert "L2 1 min 11 s" in text and "all 1 min 24 s" in text
    assert "teacher-pocket-99999999" not in text and "/somewhere" not in text


def test_hostile_names_and_texts_stay_text():
    evil = "<script>alert(1)</script>"
    quote = "\"'><img src=x onerror=alert(1)>"
    rows = [
        *made.by_variant(evil, 1.0, 2.0, 0.1, layer=0),
        *made.by_variant(evil, 1.0, 2.0, 0.1, layer=1),
        made.row(quote, 1.0, 0.1, variant=evil, layer=pd.NA),
    ]
    answer = made.answer("L2", evil, rows)
    answer.sentence = answer.sql = evil + quote
    answer.streams = {"pt": quote, evil: evil}
    for field in ("id", "title", "source"):
        setattr(answer.query, field, evil + quote)
    answer.query.about = f"`{evil}` {quote} `"
    answer.published = pd.DataFrame(
        [{"row": evil, "model": evil, "quantity": quote, "value": 1.0, "low": np.nan, "high": np.nan, "source": evil}]
    )
    captures = CAPTURES.assign(model=evil, stream=quote)
    steps = [Step(evil, 1.0), Step(quote, 1.0)]
    text = render(
        [answer], title=evil, sentences=[evil, quote, evil], captures=captures, steps=steps, next_commands=[quote]
    )
    reader = Reader(text)
    assert reader.tags.count("script") == 1 and "img" not in reader.tags
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert evil in reader.text and "<img src=x" in reader.text


def test_help_text_shows_names_as_code(html: str):
    assert "<code>final20</code>: mean over layers" in html


def test_a_page_of_nothing_and_a_row_without_single_numbers():
    assert "Finding one." in Reader(render([], captures=CAPTURES.iloc[:0], steps=[])).text
    answer = made.exp16()
    answer.table = answer.table[answer.table["layer"].notna()]
    assert "in nats, by layer ( js , 6 rows, 240 prompts)" in Reader(render([answer])).text
    answer.table.loc[answer.table["layer"] == 2, ["estimate", "low", "high"]] = np.nan
    assert "undefined" in Reader(render([answer])).text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0.123, 0.101, 0.145), "0.123 [0.101, 0.145]"),
        ((-0.2694, -0.2801, -0.2599), "−0.269 [−0.280, −0.260]"),
        ((24.66, 24.612, 24.708), "24.660 [24.612, 24.708]"),
        ((1273606.2, 1270000, 1280000), "1,273,606 [1,270,000, 1,280,000]"),
        ((0.00012, -0.0211, 0.0213), "0.0001 [−0.0211, 0.0213]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        ((-0.00001, -0.02, 0.02), "0.0000 [−0.0200, 0.0200]"),
        ((1.5, np.nan, np.nan), "1.50"),
        ((np.nan, np.nan, np.nan), "undefined"),
    ],
)
def test_intervals_in_words(given: tuple[float, float, float], text: str):
    assert interval(*given) == text


def test_numbers_in_words():
    assert [number(v) for v in (0.5, -12.345, 12345.6, 0, np.inf, np.nan)] == [
        "0.500", "−12.3", "12,346", "0.000", "∞", "undefined",
    ]  # fmt: skip
    assert number(1.234e-9) == "1.23e−09"
    assert [seconds(v) for v in (-0.001, 0.416, 12.34, 59.96, 125)] == [
        "0.00 s",
        "0.42 s",
        "12.3 s",
        "1 min 00 s",
        "2 min 05 s",
    ]
    assert (count(1234567), count(np.nan)) == ("1,234,567", "")
