"""Rows of steered texts: numbers from made scores by plain pandas, and one sweep of real texts from models to answer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from actlake.analyze.text.scores import is_coherent, refuses, structure
from actlake.capture.streams.prompts import read_prompts
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.queries.answer import estimates
from actlake.queries.answer.narrowed import scoped
from actlake.queries.answer.sentences import say
from actlake.queries.figures.figure import draw
from actlake.queries.generation.sweeps import Shape, settings
from actlake.queries.rows import index, registry
from actlake.queries.rows.findings import marked, split
from actlake.queries.rows.header import parse
from actlake.queries.rows.registry import find
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.core.specs import default_windows
from actlake.store.format.paths import Layout
from actlake.store.tables.files import write_table
from actlake.store.tables.sql import connect
from made import answer, row
from scipy.stats import spearmanr
from test_graft_rows import catalog
from typer.testing import CliRunner

ROWS = ("A1", "A1_rand", "A1_notmpl", "A2", "A5a", "0I", "exp10_P4")
SHAPE, PROMPTS = Shape(34, default_windows(34)), 40
STREAMS = {"pt": "native-set-pt", "it": "native-set-it"}
SCOPE = tiny.scope("made", STREAMS, "native")
MODELS = {"model_pt": SCOPE.models["pt"], "model_it": SCOPE.models["it"]}
CATEGORIES = ("SAFETY", "GOV-FORMAT", "CONTENT-REASON", "CONTENT-FACT")
OF_ALL = ("str", "coherent", "tokens", "ended", "nll_pt", "nll_it", "words")
run = CliRunner(env={"COLUMNS": "400"}).invoke


def reply(rng: np.random.Generator, prompt: int) -> dict[str, float]:
    """Scores of one reply, such as the category has."""
    category, yes = CATEGORIES[prompt % 4], lambda: float(rng.integers(2))
    found = {name: float(rng.random(dtype=np.float32)) for name in OF_ALL} | {"coherent": yes(), "ended": yes()}
    found["words"] = float(rng.integers(3))
    if category == "SAFETY":
        refusal, harmful = yes(), prompt % 8 == 0
        wrong = {"missed_refusal": 1 - refusal} if harmful else {"false_refusal": refusal}
        found |= {"refusal": refusal, "alignment": refusal if harmful else 1 - refusal, **wrong}
    elif category == "GOV-FORMAT":
        found |= {"format": yes()} if rng.random() < 0.9 else {}  # a blank reply has none
    else:
        found |= {"answer": yes(), "last_number": yes(), "choice_generated": yes(), "choice_logprob": yes()}
    return found


def lines(sweep: str, seed: int) -> pd.DataFrame:
    """One line per arm, dose, prompt and metric; equal conditions have equal replies."""
    rng, known, found = np.random.default_rng(seed), {}, []
    for setting in settings(sweep, SHAPE):
        key = f"{setting.variant}-{setting.template}-{[edit.text for edit in setting.edits]}"
        replies = known.setdefault(key, [reply(rng, prompt) for prompt in range(PROMPTS)])
        found += [
            {"variant": setting.variant, "arm": setting.arm, "dose": setting.dose, "key": key, "prompt": prompt, "prompt_id": f"q{prompt}", "category": CATEGORIES[prompt % 4], "metric": metric, "value": value}
            for prompt, scores in enumerate(replies)
            for metric, value in scores.items()
        ]  # fmt: skip
    return pd.DataFrame(found)


def with_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Add the shares of the three classes, reply by reply, and what else the view has."""
    reasons = table[(table["metric"] == "answer") & (table["category"] == "CONTENT-REASON")].assign(metric="reasoning")
    words = table[table["metric"] == "words"]
    found = [table, reasons, words.assign(metric="blank", value=(words["value"] < 1).astype(float))]
    for _, group in table[table["category"] == "SAFETY"].groupby(["arm", "dose", "prompt"]):
        scores = dict(zip(group["metric"], group["value"], strict=True))
        kind = "harmful" if "missed_refusal" in scores else "harmless"
        mine = "incoherent" if not scores["coherent"] else "refused" if scores["refusal"] else "complied"
        for name in ("refused", "complied", "incoherent"):
            found.append(group.iloc[:1].assign(metric=f"{kind}_{name}", value=float(name == mine)))
    return pd.concat(found, ignore_index=True)


class Scored:
    """A lake with made scores of all the sweeps, and of another stream; the answers of its rows."""

    def __init__(self, root: Path):
        self.layout = Layout.open(root, create=True)
        self.lines = {sweep: lines(sweep, seed) for seed, sweep in enumerate(ROWS)}
        named = {**MODELS, "stream": STREAMS["it"], "stream_pt": STREAMS["pt"]}
        other = named | {"stream": "native-other-it", "stream_pt": "native-other-pt"}
        for place, (sweep, table) in enumerate(self.lines.items()):
            for names, rows in ((named, table), (other, lines(sweep, 99 + place))):
                columns = {name: rows[name].to_list() for name in rows} | names | {"sweep": sweep}
                columns |= {"value": rows["value"].to_numpy(), "dose": rows["dose"].to_numpy()}
                write_table(self.layout, "scores", {"sweep": sweep, **names}, [columns])
        self.said: dict[str, str] = {}
        self.tables: dict[str, pd.DataFrame] = {}

    def table(self, name: str) -> pd.DataFrame:
        """The estimates of a row, by its packaged SQL; made once."""
        if name not in self.tables:
            self.tables[name] = self._table(name)
        return self.tables[name]

    def _table(self, name: str) -> pd.DataFrame:
        query = find(name)
        read = estimates.read(
            connect(self.layout, pairs={"made": SCOPE.models}), scoped(query, [SCOPE]), query, ["made"]
        )
        table = estimates.table_of([read["made"]], query, resamples=50)
        self.said[name] = say(query.says, table, query)
        return table

    def wide(self, name: str) -> pd.DataFrame:
        """Values by (metric, prompt) and (arm, dose)."""
        table = with_classes(self.lines[name])
        return table.pivot_table("value", ["metric", "prompt"], ["arm", "dose"], observed=True)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(tmp_path_factory.mktemp("scored") / "lake")


HUES = {"A1": (None, "alpha"), "A1_rand": ("arm", "alpha"), "A1_notmpl": ("template", "alpha"), "A2": ("direction", "beta"), "A5a": (None, "skipped"), "0I": ("formula", "alpha"), "exp10_P4": ("direction", "alpha")}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_curves_are_means_over_prompts_of_each_condition(scored: Scored, name: str) -> None:
    table, wide = scored.table(name), scored.wide(name)
    hue, x = HUES[name]
    curves = table[table[x].notna()]
    curves = curves[~curves["measure"].str.endswith("_relative")]
    assert len(curves) > 100 or name == "A5a"
    for line in curves.itertuples():
        arm = getattr(line, hue) if hue else {"A1": "d_mean", "A5a": "skip"}[name]
        values = wide.loc[line.measure, (arm, getattr(line, x))].dropna()
        assert line.estimate == pytest.approx(values.mean(), abs=1e-6) and line.n == len(values), line
    drawn = {"str", "format", "answer", "alignment", "coherent", "harmful_refused", "harmful_complied", "harmful_incoherent",
             "harmless_refused", "harmless_complied", "harmless_incoherent"}  # fmt: skip
    assert drawn <= set(curves["measure"])
    doses = {
        arm: {setting.dose for setting in settings(name, SHAPE) if setting.arm == arm} for arm in wide.columns.levels[0]
    }
    for arm, every in doses.items():
        if hue or arm in ("d_mean", "skip"):
            mine = curves[curves[hue] == arm] if hue else curves
            assert set(mine.loc[mine["measure"] == "str", x]) == every
    assert "undefined" not in scored.said[name] and "{" not in scored.said[name]


@pytest.mark.parametrize("name", ROWS)
def test_class_shares_of_each_condition_add_up_to_one(scored: Scored, name: str) -> None:
    hue, x = HUES[name]
    table = scored.table(name)
    for kind in ("harmful", "harmless"):
        classes = [f"{kind}_{part}" for part in ("refused", "complied", "incoherent")]
        rows = table[table["measure"].isin(classes) & table[x].notna()]
        total = rows.groupby([x, *([hue] if hue else [])])["estimate"].agg(["sum", "size"])
        assert (total["size"] == 3).all() and np.allclose(total["sum"], 1)


def changes(wide: pd.DataFrame, arm: str, dose: float, base: float) -> pd.Series:
    """Edited less baseline of the same prompts."""
    return (wide[arm, dose] - wide[arm, base]).dropna()


def expected(name: str, wide: pd.DataFrame) -> dict[str, pd.Series]:
    """Suffix of a measure -> differences by (metric, prompt)."""
    if name == "A1":
        found = {f"change_{dose}".replace("-", "minus"): changes(wide, "d_mean", dose, 1) for dose in (0, 5, -5)}
        return found | {"change_random": (wide["inject_random", 1] - wide["d_mean", 1]).dropna()}
    if name in ("A1_rand", "A1_notmpl"):
        mine, other = ("random", "d_mean") if name == "A1_rand" else ("raw", "chat")
        found = {f"change_{dose}": changes(wide, mine, dose, 1) for dose in (0, 5)}
        sign = -1 if name == "A1_rand" else 1
        apart = {
            f"apart_{dose}": (sign * (changes(wide, mine, dose, 1) - changes(wide, other, dose, 1))).dropna()
            for dose in (0, 5)
        }
        extra = {"raw_minus_chat": (wide["raw", 1] - wide["chat", 1]).dropna()} if name == "A1_notmpl" else {}
        return found | apart | extra
    if name == "A2":
        found = {f"change_{dose}": changes(wide, "d_mean", dose, 0) for dose in (1, 3)}
        return found | {
            f"apart_{control}_{dose}": (changes(wide, "d_mean", dose, 0) - changes(wide, control, dose, 0)).dropna()
            for control in ("random", "rotated", "content")
            for dose in (1, 3)
        }
    if name == "A5a":
        found = {f"change_{count}": changes(wide, "skip", count, 0) for count in (1, 3, 6)}
        return found | {"change_all": changes(wide, "skip", 14, 0)}
    arms = ("mlp_scale", "residual_scale", "attn_scale", "mlp_inject") if name == "0I" else ("d_mean", "d_conv")
    doses = (0, 2) if name == "0I" else (0, 5)
    found = {f"{arm}_{dose}": changes(wide, arm, dose, 1) for arm in arms for dose in doses}
    if name == "exp10_P4":
        found |= {
            f"apart_{dose}": (changes(wide, "d_mean", dose, 1) - changes(wide, "d_conv", dose, 1)).dropna()
            for dose in doses
        }
    return found


@pytest.mark.parametrize("name", ROWS)
def test_changes_are_paired_by_prompt(scored: Scored, name: str) -> None:
    table, wide = scored.table(name), scored.wide(name)
    found = table[table[HUES[name][1]].isna()].set_index("measure")
    wanted = expected(name, wide)
    for suffix, values in wanted.items():
        for metric in ("str", "format", "coherent", "alignment", "harmful_refused", "tokens"):
            line, mine = found.loc[f"{metric}_{suffix}"], values.loc[metric]
            assert line["estimate"] == pytest.approx(mine.mean(), abs=1e-6) and line["n"] == len(mine), (metric, suffix)
            assert np.isnan(line["low"]) or line["low"] <= line["estimate"] <= line["high"]
    known = {f"{metric}_{suffix}" for suffix in wanted for metric in wide.index.levels[0]}
    assert all(m in known or m.endswith("_spearman") or "relative" in m or "_times_" in m for m in found.index)


def test_A1_rank_correlations_are_scipys(scored: Scored) -> None:
    found = scored.table("A1").set_index("measure")["estimate"]
    means = scored.wide("A1")["d_mean"].groupby("metric").mean()
    for metric in ("str", "format", "nll_it", "harmful_refused"):
        assert found[f"{metric}_spearman"] == pytest.approx(
            spearmanr(means.columns, means.loc[metric].round(9)).statistic
        )


def test_ratios_count_prompts_that_had_none_before(scored: Scored) -> None:
    wide, table = scored.wide("A5a"), scored.table("A5a")
    for metric in ("format", "coherent"):
        both = wide.loc[metric]["skip"][[0, 3]].dropna()
        assert (both[0] == 0).any() and (both.loc[both[0] == 0, 3] > 0).any()
        line = table[(table["measure"] == f"{metric}_relative") & (table["skipped"] == 3)].iloc[0]
        assert line["estimate"] == pytest.approx(both[3].sum() / both[0].sum()) and line["n"] == len(both)
    first = table[table["measure"] == "relative_first"].set_index("of")["estimate"]
    assert first["format - coherent"] == pytest.approx(first["format"] - first["coherent"])
    wide, table = scored.wide("exp10_P4"), scored.table("exp10_P4").set_index("measure")
    for arm in ("d_mean", "d_conv"):
        want = wide.loc["str"][arm, 5].sum() / wide.loc["str"][arm, 1].sum()
        assert table.loc[f"str_times_5_{arm}", "estimate"] == pytest.approx(want)


@pytest.mark.parametrize("whole", [0.0, 1.0])
def test_a_share_of_nothing_is_undefined(tmp_path: Path, whole: float) -> None:
    """The whole IT writes nothing in the form asked for, or one reply of ten: no ratio, or one that nothing bounds above."""
    layout = Layout.open(tmp_path / "lake", create=True)
    names = {**MODELS, "stream": STREAMS["it"], "stream_pt": STREAMS["pt"], "sweep": "A5a"}
    table = lines("A5a", 7)
    form = (table["metric"] == "format") & (table["dose"] == 0)
    table.loc[form, "value"] = [whole, *[0.0] * (form.sum() - 1)]
    columns = {name: table[name].to_list() for name in table} | names
    columns |= {"value": table["value"].to_numpy(), "dose": table["dose"].to_numpy()}
    write_table(layout, "scores", names, [columns])
    query = find("A5a")
    read = estimates.read(connect(layout, pairs={"made": SCOPE.models}), scoped(query, [SCOPE]), query, ["made"])
    found = estimates.table_of([read["made"]], query)
    ratios = found[(found["measure"] == "format_relative") | (found["of"] == "format")]
    assert len(ratios) > 5
    if whole:
        known = ratios[ratios["estimate"].notna()]  # elsewhere the one reply has no score under the edit
        assert len(known) > 5 and known["estimate"].between(0, 10).all() and known["low"].isna().all()
        assert set(known["method"]) == {"none"}
    else:
        assert ratios[["estimate", "low", "high"]].isna().all(axis=None)
        assert set(ratios["method"]) == {"undefined: divides by 0"}
        said = say(query.says, found, query)
        assert "undefined" not in said and "what is left of form" not in said and "form changes by" in said


def test_published_points_of_curves_are_drawn_where_they_belong() -> None:
    rows = [row("str", 0.1, 0.01, alpha=x, direction=d) for x in (0.0, 1.0, 5.0) for d in ("d_mean", "d_conv")]
    found = answer("exp10_P4", "gemma3_4b", rows)
    (panel,) = split(found)[0]
    assert {x: line["value"] for x, line in marked(found, panel)} == {0: 0.152, 1: 0.056, 5: 0.766}
    axes = draw(found).axes[0]
    assert {tuple(np.ravel(line.get_data())) for line in axes.lines if line.get_marker() == "D"} == {
        (0, 0.152), (1, 0.056), (5, 0.766),
    }  # fmt: skip
    assert marked(answer("exp10_P4", "pocket", rows), panel) == []
    assert "published" in [t.get_text() for t in draw(found).legends[0].get_texts()]


def test_a_list_in_the_plot_line_goes_on_in_the_next_line() -> None:
    head = "-- id: x\n-- title: x\n-- needs: lens\n-- stream: raw\n-- source: x\n"
    text = head + '-- plot: line x=a y="b, c" hide=d,\n--   e* numbers=f\nSELECT 1\n'
    assert parse(text, "x").plot == {"kind": "line", "x": "a", "y": "b, c", "hide": "d,e*", "numbers": "f"}


@pytest.mark.parametrize("end", ["SELECT 1 -- one", "SELECT 1;", "SELECT 1\n-- done"])
def test_sql_that_can_stand_in_no_brackets_is_refused(end: str) -> None:
    head = "-- id: x\n-- title: x\n-- needs: lens\n-- stream: raw\n-- source: x\n"
    with pytest.raises(LakeError, match=r"x.sql:\d: its SQL ends in '.*no comment into the last line and no ;"):
        parse(f"{head}-- plot: line x=a y=b\n{end}", "x.sql")
    assert parse(f"{head}SELECT 1 -- one\n  AS measure\n", "x.sql").sql.endswith("AS measure")


def test_rows_that_read_scores_generate() -> None:
    assert {index.reads(find(name)) for name in ROWS} == {"generate"} and index.reads(find("L2")) == "offline"


# --- from models to an answer ----------------------------------------------------------------------------------------

FIELDS = [
    {"category": "GOV-FORMAT", "criteria": [{"type": "no_commas", "value": True}]},
    {"category": "SAFETY", "expect": "refuse"},
    {"category": "SAFETY", "expect": "comply"},
    {"category": "CONTENT-REASON", "answer": "a", "choices": ["a", "b"]},
]


@pytest.fixture
def steered(tmp_path: Path, pairs: Callable[[str], PairSpec]) -> Lake:
    """A lake of llama's native captures, and its prompts with the fields that scores read."""
    file = tmp_path / "asked.jsonl"
    asked = [{"id": f"q{i}", "text": tiny.TEXTS[i % 4][2] + f" {i}", **FIELDS[i % 4]} for i in range(8)]
    file.write_text("".join(json.dumps(each) + "\n" for each in asked))
    found = catalog(tmp_path, pairs("llama"))
    found.write_text(found.read_text() + f"prompts:\n  asked: {{path: {file}}}\n")
    tiny.capture(
        tmp_path / "lake", pairs("llama"), replace(tiny.NATIVE, max_new_tokens=6), prompts=read_prompts(file, "asked")
    )
    return Lake(tmp_path / "lake", catalog=found)


def test_all_rows_wait_for_texts_and_a_named_row_has_them_written(
    steered: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: find(name) for name in ("L1", "A5a", "A1")}
    monkeypatch.setattr(registry, "queries", lambda *_: few)
    folders = {"--lake": "lake", "--catalog": "catalog.yaml", "--out": "out"}
    where = [part for name, folder in folders.items() for part in (name, str(tmp_path / folder))]
    words = ["run", "--all", "--no-generate", "--json", *where]
    refused = json.loads(run(app, words).output)["refused"]
    assert "the models of llama have written nothing yet, and generating is switched off" in refused["A5a"]
    assert "`actlake run A5a --pair llama` makes its texts" in refused["A5a"]
    assert not any(path.is_file() for path in steered.layout.root.glob("texts/**/*"))

    found = steered.run("A5a")
    texts = steered.sql("SELECT * FROM outputs").df()
    assert len(texts) == 16 and "undefined" not in found.sentence
    scores = texts.assign(str=texts["text"].map(structure), coherent=texts["text"].map(is_coherent).astype(float))
    by_condition = {len(edits) > 4: group for edits, group in scores.groupby("condition")}  # 'none', and the skip
    curve = found.table[found.table["skipped"].notna()].set_index(["measure", "skipped"])["estimate"]
    for skipped in (0, 1):
        mine = by_condition[skipped == 1]
        for name in ("str", "coherent"):
            assert curve[name, skipped] == pytest.approx(mine[name].mean(), abs=1e-6)
        harmful = mine[mine["prompt_id"].isin(["q1", "q5"])]
        said_no = [refuses(text) and is_coherent(text) for text in harmful["text"]]
        assert curve["harmful_refused", skipped] == pytest.approx(np.mean(said_no))
    again = json.loads(run(app, words).output)
    assert "A5a" in {each["row"] for each in again["answers"]} and "A1" in again["refused"]
