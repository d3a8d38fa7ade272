"""docs/gallery: the figure of every row that a lake answers as SVG, and each page of the explorer as a screenshot.

    python benchmarks/gallery.py LAKE...            needs Chromium (apt-get install chromium); writes docs/gallery anew
    python benchmarks/gallery.py --more LAKE...     adds the rows that it lacks; all else stays

Nothing is computed into a lake: what none answers is not drawn. The explorer is that of the first lake.
"""

import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import helpers  # noqa: F401
from actlake.lake import Lake
from actlake.queries.answer.answer import Answer
from actlake.queries.answer.results import write_page
from actlake.queries.figures.kept import drawn
from actlake.queries.rows.registry import queries
from browser import Browser, browser
from PIL import Image

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
COLOURS = 96  # of a screenshot, so that it is small
# Pages of the explorer and what each shows.
PAGES = {
    "lake": "What the lake holds: models, captures with their citations, tables, questions.",
    "prompts": "All prompts, to search, to sort by any number of any table, and to brush in a histogram.",
    "prompt": "What each layer would say next at each token, PT beside IT, with the likeliest words in the cells.",
    "texts": "What a model wrote under each edit, with what differs from the reply without one marked.",
    "directions": "The words that a direction raises and lowers, and the tokens where it is strongest.",
    "rows": "The answers that need nothing new: sentence, numbers with intervals, figure, SQL.",
    "sql": "Any other question, with the columns beside it.",
}
ROWS = "## The rows"


def answered(lakes: list[Lake], there: Collection[str]) -> dict[str, Answer]:
    """The answer of every row that is not there and whose tables are, of the first lake that has them."""
    found: dict[str, Answer] = {}
    for lake in lakes:
        forecast = lake.ask(generate=False, probes=False).forecast()
        ready = [one.query.id for one in forecast if not one.refused and not one.work.parts()]
        asked = [row for row in ready if row not in found and row not in there]
        for each in lake.ask(asked, generate=False, probes=False).answers() if asked else ():
            if isinstance(each, Answer):
                found[each.query.id] = each
    return {row: found[row] for row in queries() if row in found}


def figures(found: dict[str, Answer], folder: Path) -> dict[str, str]:
    """Write the figure of each answer; the part of the page that shows it."""
    parts = {}
    for row, answer in found.items():
        (folder / f"{row}.svg").write_bytes(drawn(answer, ".svg"))
        prompts = answer.table["n"].max()
        of = f" From {prompts:.0f} prompts." if answer.table["unit"].eq("prompts").any() else ""
        parts[row] = f"### {row} · {answer.query.title}\n\n{answer.sentence}{of}\n\n![Figure of {row}]({row}.svg)\n"
    return parts


def picture(page: Browser, file: Path) -> None:
    """A screenshot with few colours."""
    page.picture(file)
    with Image.open(file) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def pages(lake: Lake, report: Path, folder: Path) -> Iterator[str]:
    """Screenshots of the explorer, light, dark and on a phone, and of the report; the lines that show them."""
    with tempfile.TemporaryDirectory() as place, browser() as page:
        site = lake.explore(Path(place) / "site", limit=12)
        for name, shows in PAGES.items():
            for kind, given in (("light", {}), ("dark", {"dark": True}), ("phone", {"width": 390, "height": 844})):
                if kind == "phone" and name not in ("prompt", "rows"):
                    continue
                page.open(f"{site.as_uri()}#{name}", **given)
                page("new Promise(done => setTimeout(done, 700))")
                picture(page, folder / f"{name}-{kind}.png")
            if page.problems:
                raise SystemExit(f"{name}: {page.problems}")
            shown = "\n\n".join(f"![{name}, {kind}]({name}-{kind}.png)" for kind in ("light", "dark"))
            yield f"### {name.capitalize()}\n\n{shows}\n\n{shown}\n"
        for kind in ("light", "dark"):
            page.size(1300, 900)
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": kind}])
            page.call("Page.navigate", url=report.resolve().as_uri())
            page.until("document.readyState === 'complete'")
            picture(page, folder / f"report-{kind}.png")
        yield "### The report of `run --all`\n\n![report, light](report-light.png)\n\n![report, dark](report-dark.png)\n"


def main(lakes: list[Lake], more: bool = False) -> None:
    """Write the folder anew, or add rows to it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    page, report = FOLDER / "README.md", FOLDER / "report.html"
    before, _, after = page.read_text(encoding="utf-8").partition(f"{ROWS}\n\n") if more else ("", "", "")
    parts = {part.split(" · ")[0]: f"### {part}" for part in after.split("### ")[1:]}
    for file in [] if more else FOLDER.iterdir():
        file.unlink()
    found = answered(lakes, parts)
    parts |= figures(found, FOLDER)
    if not more:
        write_page(lakes[0].layout, list(found.values()), [], report)
        seen = list(pages(lakes[0], report, FOLDER))
        report.unlink()
        words = "What the explorer and the rows show, drawn from the pair `pocket` by `python benchmarks/gallery.py LAKE...`."
        before = "\n".join(["# Gallery", "", words, "", "## The explorer", "", *seen, ""])
    rows = [parts[row].strip() + "\n" for row in queries() if row in parts]
    page.write_text("\n".join([before + ROWS, "", *rows]), encoding="utf-8")
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    print(f"{len(found)} rows drawn, {len(parts)} in all, {size / 1e6:.1f} MB in {FOLDER}")


if __name__ == "__main__":
    main([Lake(name) for name in sys.argv[1:] if name != "--more"], "--more" in sys.argv)
