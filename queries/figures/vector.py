"""Figures as SVG: text as text, short numbers, and the colours that a dark page gives them."""

from __future__ import annotations

import io
import re

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from .looks import DARK

DECIMALS = re.compile(r"-?\d+\.\d{3,}")
HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
NAMED = re.compile(r'<g id="[^"]*"')
SPACE = re.compile(r">\s+<")
STYLE = re.compile(r'\s*<defs>\s*<style type="text/css">.*?</style>\s*</defs>', re.DOTALL)


def _rules(scope: str) -> str:
    """Rules that turn each colour of a figure into its dark one, below a selector."""
    parts = [
        f'{scope}[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    return "".join(parts)


# For pages that hold figures: theirs follow the system's choice, or data-theme of the page where it says one.
DARK_RULES = (
    f"@media (prefers-color-scheme: dark){{{_rules(':root:not([data-theme=light]) svg.figure ')}}}"
    f"{_rules(':root[data-theme=dark] svg.figure ')}"
)
_ALONE = f"<style>@media (prefers-color-scheme: dark){{{_rules('')}}}</style>"


def svg(drawing: Figure, alt: str = "", dark: bool = True) -> str:
    """A figure as an SVG file: it carries no date, `alt` for readers who don't see it, and, with
    `dark`, what it looks like where the system is dark."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "actlake"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = DECIMALS.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), buffer.getvalue())
    start = text.index(">", text.index("<svg ")) + 1
    words = f"<title>{escape(alt)}</title>" if alt else ""
    return f"{text[:start]}{words}{_ALONE if dark else ''}{text[start:]}"


def inline(text: str, alt: str) -> str:
    """The element of an SVG file for use inside a page, as wide as there is room; `alt` is its alternative text."""
    text = METADATA.sub("", HEAD.sub("", text, 1), 1).replace(_ALONE, "", 1)
    text = re.sub(r"<title>.*?</title>", "", text, count=1, flags=re.DOTALL)
    opening, _, rest = STYLE.sub("", text, 1).partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    kept = f'<svg class="figure" role="img" aria-label="{escape(alt)}" {box[0] if box else ""}>'
    return kept + NAMED.sub("<g", SPACE.sub("><", rest)).strip()
