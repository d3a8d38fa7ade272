"""The explorer's views in notebooks: small static tables that need no script, and the same as matplotlib figures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from ..queries.figures.figure import DPI, WIDTH, Picture
from ..queries.figures.looks import DIVERGING, GREY, INK, RAMP, mixed
from ..queries.rows.measures import colours
from ..queries.rows.numbers import number
from ..store.core.columns import LENSES
from ..store.core.errors import LakeError
from .cells import NUMBERS, Cells
from .packing import script, unpacked
from .source import ExplorerSource, View

SHOWN = 24  # tokens across
NAMES = {
    "kl_final_layer": "KL(final ‖ layer), nats",
    "entropy": "entropy, nats",
    "p_target": "probability of the next token",
    "rank_target": "rank of the next token",
    "cos_final": "cosine with the final residual",
}
ROLES = {"pt": "PT", "it": "IT"}
CELL = "padding:1px 4px;max-width:7em;overflow:hidden;"
CELL += "text-overflow:ellipsis;white-space:pre;border:1px solid #fff;text-align:left"
ENDS = (0.0, 0.62)  # from this share of a ramp on letters are white


class PromptView:
    """One prompt of a lake; `.lens()` shows what each layer would say at each of its tokens."""

    def __init__(self, source: ExplorerSource, prompt_id: str):
        self._source, self.id = source, prompt_id
        self._views = [
            view for view in source.views if all(prompt_id in source.places(n) for n in view.captures.values())
        ]
        if not self._views:
            known = sorted({name for one in source.sets for name in one.ids})
            near = difflib.get_close_matches(prompt_id, known, 1)
            raise LakeError(
                f"no capture has a prompt {prompt_id!r}{f'; did you mean {near[0]!r}?' if near else ''} `lake.prompts` lists them"
            )

    def __repr__(self) -> str:
        return f"Prompt({self.id!r}: {', '.join(f'{view.name} on {view.recipe}' for view in self._views)})"

    def lens(
        self,
        pair: str | None = None,
        stream: str | None = None,
        *,
        lens: str = "raw",
        number: str = "kl_final_layer",
        difference: bool = False,
        first: int = 0,
    ) -> LensView:
        """What each layer would say next, in the colour of a number: a heat map layers x tokens; `.figure()` draws it too.

        `pair` is a pair or a model, `stream` a recipe (native, teacher ...), `lens` raw, tuned or jacobian. `number` is
        kl_final_layer, entropy, p_target, rank_target or cos_final; with `difference` IT − PT at the same steps. SHOWN steps of
        the answer are seen, from `first` on. LakeError for what the lake does not have.
        """
        found = [v for v in self._views if pair in (None, v.name) and stream in (None, v.recipe)]
        if not found or lens not in LENSES or number not in NUMBERS:
            there = "; ".join(f"{view.name} on {view.recipe}" for view in self._views)
            raise LakeError(
                f"prompt {self.id!r}",
                expected=f"one of {there}, a lens of {', '.join(LENSES)} and a number of {', '.join(NUMBERS)}",
                found=f"{pair or 'any pair'} on {stream or 'any stream'}, {lens}, {number}",
            )
        view = found[0]
        if difference and not view.whole:
            raise LakeError(f"prompt {self.id!r}: {view.name} on {view.recipe} has one model only: no difference")
        return LensView.read(self._source, view, self.id, lens, number, difference, first)


@dataclass(frozen=True)
class _Grid:
    """What one model would say: words [layers, steps], their hover texts, values; the tokens read, the layers, the steps."""

    name: str
    words: list[list[str]]
    titles: list[list[str]]
    values: np.ndarray
    reads: list[str]
    layers: list[int]
    steps: list[int]


@dataclass(frozen=True)
class LensView:
    """Heat maps of what each layer would say, one a model or their difference."""

    title: str
    number: str
    grids: list[_Grid]
    difference: bool
    left_out: int

    @classmethod
    def read(
        cls, source: ExplorerSource, view: View, prompt_id: str, lens: str, number: str, difference: bool, first: int
    ) -> LensView:
        """Read a view of a prompt from the lake, as the explorer's page does."""
        cells, grids, most = Cells(source), [], 0
        for role, at in view.captures.items():
            data = unpacked(script("cells", cells.prompt(at, prompt_id)))
            if lens not in data[1]["lenses"]:
                raise LakeError(f"prompt {prompt_id!r}: no {lens} lens of {source.captures[at].model} here")
            most = max(most, int((data[2]["step"] >= 0).sum()))
            grids.append(
                _grid(
                    f"{ROLES[role] if view.whole else ''} {source.captures[at].model}".strip(),
                    *data[1:],
                    lens,
                    number,
                    first,
                )
            )
        if difference:
            grids = [_less(*sorted(grids, key=lambda grid: grid.name.startswith("IT")))]
        what = f"{prompt_id}, {view.name} on {view.recipe}, {lens} lens"
        return cls(what, number, grids, difference, max(0, most - first - SHOWN))

    @property
    def _scale(self) -> tuple[float, float]:
        values = np.concatenate([grid.values.ravel() for grid in self.grids])
        values = values[np.isfinite(values)]
        most = float(np.quantile(np.abs(values), 0.95)) if values.size else 1.0  # few cells are far beyond the others
        return (-most, most) if self.difference else (0.0, most or 1.0)

    def _colour(self, value: float) -> tuple[str, str]:
        """Background and ink of a cell."""
        if not np.isfinite(value):
            return "#f4f5f6", INK
        low, high = self._scale
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        dark = share > ENDS[1] if not self.difference else abs(share - 0.5) > 0.34
        return mixed(DIVERGING if self.difference else RAMP, float(share)), "#ffffff" if dark else "#15171a"

    def _repr_html_(self) -> str:
        parts = [f"<div><b>{escape(self.title)}</b></div>"]
        said = NAMES[self.number] + (", IT − PT" if self.difference else "")
        parts.append(f"<div>colour: {escape(said)}; rest on a cell for the likeliest tokens and the number</div>")
        for grid in self.grids:
            heads = "".join(
                f'<th style="{CELL};color:#5d626b" title="read">{escape(_visible(word))}</th>' for word in grid.reads
            )
            lines = []
            for at in reversed(range(len(grid.layers))):
                layer = "in" if grid.layers[at] < 0 else str(grid.layers[at])
                cells = []
                for word, title, value in zip(grid.words[at], grid.titles[at], grid.values[at], strict=True):
                    back, ink = self._colour(value)
                    cells.append(
                        f'<td style="{CELL};background:{back};color:{ink}" title="{escape(title)}">{escape(_visible(word))}</td>'
                    )
                lines.append(f"<tr><th style='{CELL};color:#5d626b'>{layer}</th>{''.join(cells)}</tr>")
            table = f"<table style='border-collapse:collapse;font-size:12px'>{''.join(lines)}<tr><th></th>{heads}</tr></table>"
            parts.append(
                f"<div style='margin-top:.5em'>{escape(grid.name)}</div><div style='overflow-x:auto'>{table}</div>"
            )
        if self.left_out:
            parts.append(f"<div>{self.left_out} more steps: .lens(first={SHOWN}) goes on</div>")
        return f"<div>{''.join(parts)}</div>"

    def figure(self) -> Picture:
        """The same as a matplotlib figure."""
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.text import Text

        rows, across = max(len(grid.layers) for grid in self.grids), max(len(grid.reads) for grid in self.grids)
        wide, tall = max(WIDTH, 0.62 * across + 1.0), 0.2 * rows
        height = 0.5 + len(self.grids) * (tall + 0.95)
        figure = Picture(figsize=(wide, height), facecolor="white")
        figure.text(0.1 / wide, 1 - 0.1 / height, self.title, va="top", size=10, weight="bold", color=INK)
        low, high = self._scale
        ramp = LinearSegmentedColormap.from_list("lens", DIVERGING if self.difference else RAMP)
        for index, grid in enumerate(self.grids):
            bottom = height - 0.5 - (index + 1) * (tall + 0.95) + 0.65
            place = (0.5 / wide, bottom / height, (0.62 * len(grid.reads)) / wide, tall / height)
            axes = figure.add_axes(place)
            image = axes.imshow(
                grid.values, aspect="auto", origin="lower", cmap=ramp, vmin=low, vmax=high, interpolation="none"
            )
            for (layer, step), value in np.ndenumerate(grid.values):
                word = _visible(grid.words[layer][step])[:9]
                axes.text(
                    step, layer, word, ha="center", va="center", size=6.5, color=self._colour(value)[1], clip_on=True
                )
            axes.set_yticks(
                range(len(grid.layers)), ["in" if layer < 0 else str(layer) for layer in grid.layers], size=7
            )
            axes.set_xticks(
                range(len(grid.reads)), [_visible(word)[:9] for word in grid.reads], size=6.5, rotation=35, ha="right"
            )
            axes.set_title(grid.name, loc="left", size=8.5, color=INK)
            axes.set_ylabel("layer", size=8, color=INK)
            axes.set_xlabel("token that is read", size=8, color=INK)
            axes.tick_params(length=0, labelcolor=GREY)
            for spine in axes.spines.values():
                spine.set_visible(False)
            key = figure.add_axes((place[0] + place[2] + 0.1 / wide, place[1], 0.08 / wide, place[3]))
            figure.colorbar(image, cax=key).ax.tick_params(labelsize=6.5, length=2)
            key.set_title(NAMES[self.number].rpartition(", ")[2], size=6.5, color=GREY)
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        figure.dpi = DPI
        return figure


def _grid(name: str, value: Any, arrays: dict[str, np.ndarray], lens: str, column: str, first: int) -> _Grid:
    """One model's cells at the steps that are shown; the last tokens of a prompt without an answer."""
    step = arrays["step"].astype(int)
    at = np.flatnonzero(step >= 0)[first : first + SHOWN]
    at = at if len(at) else np.arange(len(step))[-SHOWN:]
    words, top = value["words"], arrays[f"{lens}.top"][:, :, at]
    share = arrays[f"{lens}.p"][:, :, at] if f"{lens}.p" in arrays else None
    values = arrays[f"{lens}.{column}"][:, at].astype(float)
    titles = []
    for layer in range(top.shape[1]):
        line = []
        for place in range(len(at)):
            likely = [
                f"{words[top[k, layer, place]]!r}{f' {share[k, layer, place]:.3f}' if share is not None else ''}"
                for k in range(top.shape[0])
            ]
            line.append(
                f"layer {value['layers'][layer]}: {', '.join(likely)}; {NAMES[column]} {number(values[layer, place])}"
            )
        titles.append(line)
    reads = [words[place] for place in arrays["word"][at]]
    shown = [[words[top[0, layer, place]] for place in range(len(at))] for layer in range(top.shape[1])]
    return _Grid(name, shown, titles, values, reads, value["layers"], step[at].tolist())


def _less(pt: _Grid, it: _Grid) -> _Grid:
    """IT − PT at the steps that both have; a cell has both words where they differ."""
    steps = [step for step in pt.steps if step in it.steps and step >= 0]
    if not steps:
        raise LakeError("the two models share no step: no difference")
    a, b = ([grid.steps.index(step) for step in steps] for grid in (pt, it))
    words = [
        [
            two if one == two else f"{one}→{two}"
            for one, two in ((ours[i], theirs[j]) for i, j in zip(a, b, strict=True))
        ]
        for ours, theirs in zip(pt.words, it.words, strict=True)
    ]
    titles = [
        [f"PT {ours[i]} | IT {theirs[j]}" for i, j in zip(a, b, strict=True)]
        for ours, theirs in zip(pt.titles, it.titles, strict=True)
    ]
    reads = [it.reads[j] for j in b]
    return _Grid("IT − PT", words, titles, it.values[:, b] - pt.values[:, a], reads, it.layers, steps)


def _visible(word: str) -> str:
    """A token with its spaces and line ends as signs, so that it can be distinguished from others."""
    return re.sub(r"^ ", "·", word).replace("\n", "↵").replace("\t", "⇥")


class TextFrame(pd.DataFrame):
    """What models wrote freely: a table that shows the texts of a prompt under its conditions beside each other."""

    @property
    def _constructor(self) -> type[TextFrame]:
        return TextFrame

    def _repr_html_(self) -> str | None:
        if self.empty or not {"condition", "prompt_id", "text", "tokens", "ended", "model"} <= set(self.columns):
            return super()._repr_html_()
        return "".join(self._parts())

    def _parts(self, prompts: int = 5, conditions: int = 12) -> Iterator[str]:
        ids = list(dict.fromkeys(self["prompt_id"]))
        for prompt in ids[:prompts]:
            rows = self[self["prompt_id"] == prompt].drop_duplicates(["model", "condition", "text"])
            plain = {row.model: row.text for row in rows.itertuples() if row.condition == "none"}
            lines = []
            for row in rows.head(conditions).itertuples():
                text = _marked(str(row.text), plain.get(row.model) if row.condition != "none" else None)
                ended = f"{row.tokens:,} tokens" + ("" if row.ended else ", cut off")
                lines.append(
                    f"<tr><td style='text-align:left;vertical-align:top'>{escape(f'{row.model}, {row.condition}')}<br>"
                    f"{ended}</td>"
                    f"<td style='text-align:left;white-space:pre-wrap;max-width:60em'>{text}</td></tr>"
                )
            more = f"<div>and {len(rows) - conditions} more conditions</div>" if len(rows) > conditions else ""
            yield f"<div><b>{escape(str(prompt))}</b><table>{''.join(lines)}</table>{more}</div>"
        if len(ids) > prompts:
            yield f"<div>and {len(ids) - prompts:,} more prompts, {len(self):,} texts in all</div>"
        yield "<div>marked: what the reply without an edit does not have</div>"

    def figure(self) -> Picture:
        """Lengths of the texts by condition, 24 at most: each a dot, the mean a line; hollow dots were cut off by the budget."""
        groups = list(self.groupby(["model", "condition"], sort=False))[:24]
        height = 0.8 + 0.24 * max(1, len(groups))
        figure = Picture(figsize=(WIDTH, height), facecolor="white")
        axes = figure.add_axes((0.44, 0.5 / height, 0.54, 1 - 0.7 / height))
        colour = colours()["green"][0]
        for y, (_, rows) in enumerate(groups):
            tokens, ended = rows["tokens"].to_numpy(float), rows["ended"].to_numpy(bool)
            spread = y + 0.28 * np.sin(np.arange(len(tokens)) * 2.4)  # side by side, the same each time
            axes.scatter(tokens[ended], spread[ended], s=7, color=colour, alpha=0.6, linewidth=0)
            axes.scatter(tokens[~ended], spread[~ended], s=8, facecolor="none", edgecolor=colour, linewidth=0.7)
            axes.vlines(tokens.mean(), y - 0.35, y + 0.35, color=INK, linewidth=1.6)
        names = [f"{model}, {condition}"[:52] for (model, condition), _ in groups]
        axes.set_yticks(range(len(names)), names, size=7, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("tokens of a text", size=8.5, color=INK)
        axes.tick_params(labelsize=7, length=2, color=GREY)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return figure


def _marked(text: str, plain: str | None) -> str:
    """A text with the words marked that the unedited reply does not have at this place."""
    if plain is None:
        return escape(text)
    ours, theirs = re.findall(r"\s+|\S+", text), re.findall(r"\s+|\S+", plain)
    parts = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if said := escape("".join(ours[start:stop])):
            parts.append(said if kind == "equal" else f"<mark>{said}</mark>")
    return "".join(parts)
