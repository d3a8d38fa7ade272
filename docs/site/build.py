"""The site: pages are gathered into build/docs, those that the code says are written there, Sphinx makes build/site of them.

    python docs/site/build.py          all of it; notebooks that did not change are not executed again
    python docs/site/build.py --fast   notebooks are shown without their results

Needs pip install '.[docs]'. Warnings are errors, links between pages are checked, and the site has a size that it may not exceed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import reference

ROOT = Path(__file__).resolve().parents[2]
STAGE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
MOST = 30e6  # bytes of the site
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
# Pages that are elsewhere in the repository -> where the site has them.
ELSEWHERE = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "prompts/README.md": "prompts.md",
    "models/pocket/README.md": "pocket.md",
    "benchmarks/RESULTS.md": "results.md",
    "examples/kurtosis/README.md": "examples/kurtosis.md",
    "examples/training/README.md": "examples/training.md",
    "docs/gallery/README.md": "gallery/index.md",
    "README.md": "index.md",
}


def pages() -> dict[Path, Path]:
    """Every page that is written by hand, by its place in the repository -> its place below the stage."""
    docs = ROOT / "docs"
    own = [page for page in docs.rglob("*.md") if page.name != "README.md"]
    found = {page: page.relative_to(docs) for page in own}
    return found | {ROOT / page: Path(to) for page, to in ELSEWHERE.items() if page != "README.md"}


def placed(text: str, page: Path, known: dict[Path, Path]) -> str:
    """A page with its links as they are in the site; what the site does not have keeps its name and loses its link."""
    here, kept = known[page], []

    def keep(block: re.Match[str]) -> str:
        kept.append(block[0])
        return f"\0{len(kept) - 1}\0"

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve()
        to = Path("index.md") if file == ROOT / "README.md" else known.get(file)
        if to is None and picture:
            to = Path("_pictures") / file.relative_to(ROOT / "docs")
            (STAGE / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, STAGE / to)
        if to is None:
            return words
        place = os.path.relpath(to, here.parent).replace(os.sep, "/")
        return f"{picture}[{words}]({place}{'#' + anchor if anchor else ''})"

    text = re.sub(r"<!-- picture -->.*?<!-- picture -->", "", text, flags=re.DOTALL)
    text = LINK.sub(link, FENCED.sub(keep, text))
    return re.sub("\0(\\d+)\0", lambda one: kept[int(one[1])], text)


def notebook(text: str) -> str:
    """A page in MyST as a Jupyter notebook, for Colab and the like; cells that the site skips are run there."""
    cells: list[dict[str, object]] = []
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    for at, part in enumerate(re.split(r"^```\{code-cell\} python\n((?:.*\n)*?)^```$", body, flags=re.MULTILINE)):
        lines = re.sub(r"\A(?::.*\n)+\n?", "", part).strip("\n") if at % 2 else part.strip()
        extra = {"execution_count": None, "outputs": []} if at % 2 else {}
        cells += (
            [{"cell_type": "code" if at % 2 else "markdown", "metadata": {}, "source": lines, **extra}] if lines else []
        )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}, indent=1)


def write(file: Path, text: str) -> None:
    """Write a page, unless it is there: Sphinx reads again what is newer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def stage() -> None:
    """Gather and write all pages."""
    known = pages()
    for page, to in known.items():
        text = placed(page.read_text(encoding="utf-8"), page, known)
        if page.name == "ROWS.md":
            text = reference.with_figures(text, ROOT / "docs" / "gallery", STAGE / "_pictures" / "gallery")
        if to.parts[0] == "tutorials":
            write(STAGE / "_notebooks" / f"{to.stem}.ipynb", notebook(text))
            text = re.sub(
                r"^(# .*)$",
                rf"\1\n\n{{download}}`Download this notebook <../_notebooks/{to.stem}.ipynb>`",
                text,
                count=1,
                flags=re.MULTILINE,
            )
        write(STAGE / to, text)
    for name, page in reference.PAGES.items():
        write(STAGE / "reference" / name, page())
    for file in ("conf.py", "site.css"):
        to = STAGE / ("_static" if file.endswith(".css") else "") / file
        write(to, (Path(__file__).parent / file).read_text(encoding="utf-8"))
    there = {STAGE / to for to in known.values()} | {STAGE / "reference" / name for name in reference.PAGES}
    for old in STAGE.rglob("*.md"):
        if old not in there and "lake" not in old.relative_to(STAGE).parts:
            old.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="do not execute notebooks")
    fast = parser.parse_args().fast
    stage()
    words = ["-W", "--keep-going", "-n", "-q", "-b", "html", *(["-D", "nb_execution_mode=off"] if fast else [])]
    environment = {**os.environ, "ACTLAKE_PROGRESS": "off", "PYTHONWARNINGS": "ignore"}
    code = subprocess.run([sys.executable, "-m", "sphinx", *words, STAGE, SITE], env=environment).returncode
    if code:
        sys.exit(f"the site has warnings or errors; pages are in {STAGE}")
    shutil.copy(ROOT / "llms.txt", SITE / "llms.txt")
    size = sum(file.stat().st_size for file in SITE.rglob("*") if file.is_file() and ".doctrees" not in file.parts)
    print(f"{SITE / 'index.html'}: {len(list(SITE.rglob('*.html')))} pages, {size / 1e6:.1f} MB")
    if size > MOST:
        sys.exit(f"the site is larger than {MOST / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
