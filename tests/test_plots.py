"""Figures of answers: which axes there are, what is drawn on them, what they say, and that odd tables survive."""

import warnings
from typing import Any

import made
import numpy as np
import pandas as pd
import pytest
from actlake.queries.figures import kept
from actlake.queries.figures.chosen import PANELS, chosen, described
from actlake.queries.figures.figure import DPI, draw, layer_ticks
from actlake.queries.figures.kept import drawn, figure_key, save
from actlake.queries.figures.looks import INK, looks
from actlake.queries.rows.findings import is_contrast, reference, shown, split
from actlake.store.core.errors import LakeError
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for part in figure.legends for text in part.get_texts()]


def bands(axes: Any) -> list[PolyCollection]:
    return [part for part in axes.collections if isinstance(part, PolyCollection)]


def lines_of(axes: Any) -> list[Any]:
    """The drawn lines, without the dashed one at zero."""
    return [line for line in axes.lines if line.get_linestyle() in ("-", "None")]


def diamonds(figure: Figure) -> int:
    return sum(line.get_marker() == "D" for axes in figure.axes for line in axes.lines)


def shared(figure: Figure) -> Any:
    """The axes of the single numbers, one a unit: names stand on their left in the place of a line."""
    return [axes for axes in figure.axes if not axes.spines["left"].get_visible()]


def curves(count: int, layers: int) -> Any:
    """An answer with so many measures that no header names, each with PT, IT and their difference at every layer."""
    rows = []
    for measure in range(count):
        for layer in range(layers):
            rows += made.by_variant(f"measure_{measure}", 1000.0 + layer, 1000.5 + layer, 0.2, layer=layer)
    answer = made.answer("L2", "pocket", rows)
    answer.query.plot = {"kind": "line", "x": "layer", "hue": "variant", "y": "KL (nats)"}
    return answer


def test_levels_above_contrast_with_bands_for_every_line():
    figure = draw(made.l2())
    assert titles(figure) == ["KL(final ‖ layer)"]
    levels, contrast = figure.axes[:2]
    assert [len(bands(axes)) for axes in (levels, contrast)] == [2, 1]
    assert [to_hex(line.get_color()).upper() for line in lines_of(levels)] == ["#0072B2", "#C75000"]
    assert levels.get_ylabel() == "nats" and contrast.get_ylabel() == "IT − PT"
    assert any(line.get_linestyle() == "--" and not np.any(line.get_ydata()) for line in contrast.lines)
    table = made.l2().table
    expected = table[(table["measure"] == "kl_final_layer") & (table["variant"] == "it")].sort_values("layer")
    np.testing.assert_allclose(lines_of(levels)[1].get_ydata(), expected["estimate"])
    low, high = (float(expected[name].iloc[0]) for name in ("low", "high"))
    corners = np.asarray(bands(levels)[1].get_paths()[0].vertices)[:, 1]
    assert np.isclose(corners, low).any() and np.isclose(corners, high).any()


def test_words_around_the_axes():
    figure = draw(made.l1("gemma3_4b", 34))
    assert "L1 · δ-cosine of block updates · gemma3_4b" in words(figure)
    assert "n = 229 to 231 prompts · 95 % BCa intervals" in words(figure)
    assert "PT native-pocket-1a2b3c4d, IT native-pocket-5e6f7a8b" in words(figure)
    assert legend(figure) == ["PT", "IT", "IT − PT", "final 20 % of layers", "published"]  # each once
    lowest = figure.axes[1]
    assert lowest.get_xlabel().startswith("layer")
    labels = [label.get_text() for label in lowest.get_xticklabels()]
    assert labels[0] == "0\n3 %" and labels[-1] == "33\n100 %"


@pytest.mark.parametrize(("layers", "first"), [(6, 4), (34, 27), (32, 25), (36, 28), (27, 21), (64, 51)])
def test_shading_begins_at_the_final_fifth(layers: int, first: int):
    figure = draw(made.exp16(layers=layers))
    shade = figure.axes[0].patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
    assert (shade.x0, shade.x1) == (pytest.approx(first - 0.5), pytest.approx(layers - 0.5))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_one_to_six_measures_each_with_its_contrast(count: int):
    figure = draw(curves(count, 34))
    figure.draw_without_rendering()
    assert titles(figure) == [f"measure_{i}" for i in range(min(count, PANELS))]
    assert len(figure.axes) == 2 * min(count, PANELS)
    assert all(len(lines_of(axes)) in (1, 2) for axes in figure.axes)
    assert figure.get_size_inches()[0] * DPI == 1200


def tick_labels(axes: Any) -> list[Any]:
    """The tick labels that are really drawn: those between the limits."""
    found = []
    for axis, limits in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        ticks = [tick for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
        found += [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
    return found


@pytest.mark.parametrize("which", range(6))
def test_no_text_is_cut_off_or_covers_another(which: int):
    name = "a_measure_with_a_very_long_name_that_goes_on"
    long = made.answer("L2", "pocket", [made.row(name, 1.0, 0.1, variant=f"variant {i}", layer=0) for i in range(9)])
    make = [
        lambda: made.l1("gemma3_4b", 34),
        made.l2,
        made.exp16,
        lambda: curves(6, 34),
        lambda: curves(5, 6),
        lambda: long,
    ]
    figure = draw(make[which]())
    figure.draw_without_rendering()
    texts: list[Any] = [*figure.texts, *(text for part in figure.legends for text in part.get_texts())]
    axes: Any
    for axes in figure.axes:
        texts += [*tick_labels(axes), axes.xaxis.label, axes.yaxis.label, axes._left_title]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    page = figure.bbox.padded(0.5)
    for index, (text, box) in enumerate(boxes):
        assert page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1), text
        covered = [other for other, there in boxes[:index] if box.padded(-0.5).overlaps(there.padded(-0.5))]
        assert not covered, (text, covered)


def test_numbers_of_one_unit_share_an_axis_and_a_number_alone_has_none():
    answer = made.l2("gemma3_4b", 34)
    assert not shared(draw(answer))  # one of the numbers that its header names in nats, one in layers
    answer.query.plot["forest"] = "cg_raw,cg_raw_prompt,commit_kl01*"
    (nats,) = shared(draw(answer))
    assert nats.get_xlabel() == "nats (IT − PT)"
    names = ["convergence gap, raw lens", "convergence gap, raw lens, prompts alike"]
    assert [label.get_text() for label in nats.get_yticklabels()] == names
    assert [np.asarray(line.get_xdata())[0] for line in nats.lines if line.get_marker() == "D"] == [1.008]
    assert diamonds(draw(answer)) == 1 and diamonds(draw(made.l2())) == 0


def test_numbers_without_variants_share_one_axis():
    figure = draw(made.exp16("gemma3_4b", 34))
    assert len(figure.axes) == 2
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()][0] == "all layers"
    assert figure.axes[1].get_xlabel() == "nats" == figure.axes[0].get_ylabel()
    assert diamonds(figure) == 3


def test_a_published_figure_belongs_to_its_measure_and_variant_only():
    answer = made.l2("gemma3_4b", 34)
    panels = {panel.measure: panel for panel in split(answer)[1]}

    def value(measure: str, hue: str) -> float | None:
        line = reference(answer, panels[measure], hue)
        return None if line is None else float(line["value"])

    assert value("cg_raw", "it - pt") == 1.008
    assert value("cg_raw", "pt") is None and value("cg_raw_prompt", "it - pt") is None
    assert (value("commit_top1_raw_mean_skip5", "pt"), value("commit_top1_raw_mean_skip5", "it")) == (22.02, 25.71)
    assert value("commit_top1_raw_mean_skip5", "it - pt") is None


def test_one_layer_and_missing_intervals():
    figure = draw(curves(1, 1))
    assert not bands(figure.axes[0])
    assert sum(isinstance(part, LineCollection) for part in figure.axes[0].collections) == 2
    answer = curves(1, 6)
    answer.table = answer.table.assign(low=np.nan, high=np.nan, method="none", n=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(answer)
        figure.draw_without_rendering()
    assert len(lines_of(figure.axes[0])) == 2 and "no intervals" in words(figure)


def test_undefined_estimates_leave_gaps_and_an_empty_table_says_so():
    answer = made.l1()
    answer.table.loc[answer.table["measure"] == "final20", ["estimate", "low", "high"]] = np.nan
    assert not shared(draw(answer))  # the last layer is alone
    answer.table = answer.table.iloc[:0]
    assert "No estimate to draw." in words(draw(answer))


def test_further_dimensions_make_panels_and_words_make_an_axis():
    rows = [
        made.row("kl", 1.0 + i, 0.1, variant="pt", layer=i, lens=lens) for i in range(4) for lens in ("raw", "tuned")
    ]
    answer = made.answer("L2", "pocket", rows)
    answer.query.plot = {"kind": "line", "x": "layer", "hue": "variant"}
    assert titles(draw(answer)) == ["kl, raw lens", "kl, tuned lens"]
    answer.query.plot["panels"] = "kl/tuned"
    assert titles(draw(answer)) == ["kl, tuned lens"]
    rows = [made.row("js", 0.1, 0.02, group=group, condition=name) for group in ("late", "early", "a") for name in "AB"]
    answer = made.answer("L2", "pocket", rows)
    answer.query.plot = {"kind": "dots", "x": "group", "hue": "condition"}
    figure = draw(answer)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "early", "late"]
    assert legend(figure) == ["PT", "PT with IT's late MLPs"] and not bands(figure.axes[0])
    assert figure.axes[0].get_xlabel() == "group"


def test_measures_of_one_unit_share_a_panel():
    rows = [
        made.row(name, 0.1 * a, 0.05, alpha=float(a))
        for a in range(4)
        for name in ("format", "coherent", "str", "nll_pt")
    ]
    answer = made.answer("A1", "pocket", rows)
    answer.query.plot = {"kind": "line", "x": "alpha", "panels": "format+coherent,str+nll_pt"}
    figure = draw(answer)
    assert titles(figure) == ["share of replies", "structural words", "surprise of the PT"]  # other units, other panels
    assert legend(figure)[:2] == ["format compliance", "coherent replies"]


def test_a_heat_map_where_there_are_two_axes():
    rows = [made.row("between", 1.0 - 0.1 * abs(a - b), np.nan, layer=a, other=b) for a in range(5) for b in range(5)]
    rows += [made.row("pc1", 0.3, np.nan, layer=a) for a in range(5)]
    answer = made.answer("1A", "pocket", rows)
    figure = draw(answer)
    (image,) = [image for axes in figure.axes for image in axes.images]
    np.testing.assert_allclose(np.asarray(image.get_array())[1], [0.9, 1.0, 0.9, 0.8, 0.7])
    assert "Heat map of directions of two layers by layer: from 0.600 to 1.00." in described(answer)


def test_a_distribution_has_steps_with_intervals():
    rows = []
    for layer in range(6):
        rows += made.by_variant("committed_top1", 0.1 + 0.02 * layer, 0.2, 0.01, layer=layer)
    figure = draw(made.answer("L2", "pocket", rows))
    levels = figure.axes[0]
    assert len([patch for patch in levels.patches if patch.__class__.__name__ == "StepPatch"]) == 4
    assert figure.axes[1].get_ylabel() == "IT − PT"


def test_more_panels_than_fit_are_counted():
    figure = draw(curves(15, 2))
    assert len(titles(figure)) == PANELS and "12 more in the table" in words(figure)


def test_what_is_seen_is_said():
    said = described(made.l1())
    assert said.startswith("δ-cosine of blocks (cosine) by layer: PT from −0.0849 at 1 to −0.236 at 5; IT from")
    assert "In cosine: final 20 % of layers (IT − PT) −0.245 [−0.259, −0.231]" in said


def test_names_are_never_read_as_mathematics():
    rows = [made.row("$\\frac{", 1.0, 0.1, variant=hue, layer=i) for i in range(3) for hue in ("$x_$", "a^{")]
    answer = made.answer("L2", "$\\bad{", [*rows, made.row("$_$", 1.0, 0.1, variant="$x_$", layer=pd.NA)])
    figure = draw(answer)
    figure.draw_without_rendering()
    assert titles(figure)[0] == "$\\frac{"


def test_one_thing_has_one_look_everywhere():
    many = ["pt", "it", *(f"c{i}" for i in range(14)), "it - pt"]
    found = looks(many)
    assert found["pt"] == looks(["pt"])["pt"] and len(set(found.values())) == len(many)
    assert (
        looks(["A", "C"], "condition")["A"][:2] == found["pt"][:2]
        and looks(["PT side"])["PT side"][1] == found["pt"][1]
    )
    for column, others in (("direction", ["d_mean", "d_conv"]), ("arm", ["d_mean", "seed42", "five seeds"])):
        assert looks(others, column)["d_mean"] == looks(["d_mean"])["d_mean"]
    assert {look.colour for look in looks(["B_early", "B_mid", "B_late"]).values()} == {
        look.colour for look in looks(["early", "mid", "late"]).values()
    }
    assert is_contrast("it - pt") and not is_contrast("it") and shown("it - pt") == "IT − PT"
    ordered = looks(["10", "25", "50", "all"], "records")
    assert len({look.colour for look in ordered.values()}) == 4 and ordered["all"].colour == "#0d3a6b"
    assert looks([None])[None].colour == INK


def test_hues_are_read_in_one_order_whatever_the_table_says():
    answer = made.l2()
    answer.table = answer.table.sample(frac=1, random_state=0, ignore_index=True)
    assert list(chosen(answer).panels[0].looks) == ["pt", "it", "it - pt"]
    for panel in split(answer)[0]:
        assert list(panel.levels["x"]) == 2 * list(range(6)) and list(panel.contrasts["x"]) == list(range(6))


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 5), (-1, 5), (0, 33), (-1, 63), (0, 125)])
def test_layer_ticks_end_with_the_last_layer_and_keep_a_distance(first: int, last: int):
    for most in (6, 9, 18):
        ticks = layer_ticks(first, last, most)
        gaps = np.diff(ticks)
        assert ticks[-1] == last and len(ticks) <= most + 1
        assert len(gaps) == 0 or gaps.min() >= 0.75 * gaps[0]


def test_saved_files_are_png_or_svg_and_repeat(tmp_path):
    for suffix in (".png", ".svg"):
        paths = [tmp_path / f"{i}{suffix}" for i in (1, 2)]
        for path in paths:
            save(draw(made.exp16()), path)
        assert paths[0].read_bytes()[:8] == PNG or b"<svg" in paths[0].read_bytes()
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    with pytest.raises(LakeError, match=r"\.png or \.svg"):
        save(draw(made.exp16()), tmp_path / "figure.exe")


def test_a_figure_is_drawn_once_for_what_it_shows(cache_folder, monkeypatch):
    draws = []
    monkeypatch.setattr(kept.figure, "draw", lambda answer: draws.append(answer.query.id) or draw(answer))
    first = {suffix: drawn(made.l2(), suffix) for suffix in (".png", ".svg")}
    assert first[".png"][:8] == PNG and b"<svg" in first[".svg"] and draws == ["L2"]
    assert drawn(made.l2(), ".svg") == first[".svg"] and len(draws) == 1
    other, titled = made.l2(), made.l2()
    other.table.loc[0, "estimate"] += 1e-3
    titled.query.title = "another"
    assert len({figure_key(answer) for answer in (made.l2(), other, titled, made.l2("gemma3_4b"))}) == 4
    assert drawn(other) != first[".png"] and len(draws) == 2
    for damaged in (cache_folder / "figures").iterdir():
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert drawn(made.l2()) == first[".png"] and len(draws) == 3


def test_figures_asked_for_last_are_kept(cache_folder, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 4)
    for pair in ("a", "b", "c"):
        drawn(made.l2(pair))
    left = {path.name for path in (cache_folder / "figures").iterdir()}
    assert left == {f"{figure_key(made.l2(pair))}{suffix}" for pair in ("b", "c") for suffix in (".png", ".svg")}


def test_without_a_cache_figures_are_drawn(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be there")
    monkeypatch.setenv("ACTLAKE_CACHE", str(tmp_path / "file"))
    assert drawn(made.exp16())[:8] == PNG


def test_text_of_an_svg_is_text(tmp_path):
    save(draw(made.l2()), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "L2 · Convergence gap" in text and "KL(final ‖ layer)" in text
    assert "prefers-color-scheme: dark" in text and '[style*="stroke: #0072b2"]{stroke:#5fb3e6!important}' in text
