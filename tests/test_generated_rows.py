"""Rows 0C, 0D, 0E, 0F, 0H, exp12 and exp15: numbers from made scores by plain pandas, and real texts from models to answer."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from actlake.analyze.text.scores import boundary_tokens, reclassified
from actlake.capture.streams.prompts import Prompt, PromptSet, canonical_bytes
from actlake.lake import Lake
from actlake.queries.answer import estimates
from actlake.queries.answer.narrowed import scoped
from actlake.queries.answer.sentences import say
from actlake.queries.generation.sweeps import Shape, settings
from actlake.queries.rows.findings import reference, split
from actlake.queries.rows.registry import find
from actlake.store.artifacts.streams import write_prompts
from actlake.store.core.catalog import PairSpec
from actlake.store.core.specs import default_windows
from actlake.store.format.paths import Layout
from actlake.store.tables.files import write_table
from actlake.store.tables.sql import connect
from made import answer, row
from scipy.stats import spearmanr
from test_graft_rows import catalog
from test_observed_rows import texts

ROWS = ("0C", "0D", "0E", "0F", "0H", "exp12", "exp15")
SWEEP = {"0D": "A1"}
SHAPE, PROMPTS = Shape(34, default_windows(34)), 24
STREAMS = {"pt": "native-set-pt", "it": "native-set-it"}
SCOPE = tiny.scope("made", STREAMS, "native")
MODELS = {"model_pt": SCOPE.models["pt"], "model_it": SCOPE.models["it"]}
CATEGORIES = ("SAFETY", "GOV-FORMAT", "CONTENT-REASON", "CONTENT-FACT")
CLASSES = ("structural", "punctuation", "discourse", "content", "function", "other")
MOVED = ("structural", "content", "function_to_content", "content_to_function")


def reply(rng: np.random.Generator, prompt: int) -> dict[str, float]:
    """Scores of one reply, such as its category has."""
    yes = lambda: float(rng.integers(2))  # noqa: E731
    found = {name: float(rng.random(dtype=np.float32)) for name in ("str", "words", "tokens", "nll_pt", "nll_it")}
    found |= {f"share_{name}": float(rng.random(dtype=np.float32)) for name in CLASSES}
    found |= {f"str_to_{name}": found["str"] for name in MOVED[:2]} | {
        f"str_{name}": found["str"] for name in MOVED[2:]
    }
    found["str_to_structural"] += 0.004 + 0.002 * float(rng.random(dtype=np.float32))
    found["str_to_content"] -= 0.05 * float(rng.random(dtype=np.float32))
    found |= {"share_discourse": 0.0} if prompt % 3 else {}
    found |= {"coherent": yes(), "ended": yes(), "headers": 0.0, "bullets": float(rng.integers(4))}
    category = CATEGORIES[prompt % 4]
    if category == "SAFETY":
        refusal = yes()
        found |= {"refusal": refusal, "alignment": refusal if prompt % 8 else 1 - refusal}
        found |= {"missed_refusal": 1 - refusal} if prompt % 8 else {"false_refusal": refusal}
    elif category == "GOV-FORMAT":
        found |= {"format": yes()} if rng.random() < 0.9 else {}  # a blank reply has none
    else:
        found |= {name: yes() for name in ("answer", "any_number", "last_number", "first_choice", "choice_generated")}
        found["choice_logprob"] = yes()
    return found


def lines(sweep: str, seed: int) -> pd.DataFrame:
    """One line per arm, dose, prompt and metric; equal conditions have equal replies."""
    rng, known, found = np.random.default_rng(seed), {}, []
    for setting in settings(sweep, SHAPE):
        key = f"{setting.variant}-{setting.template}-{[edit.text for edit in setting.edits]}"
        for prompt, scores in enumerate(known.setdefault(key, [reply(rng, prompt) for prompt in range(PROMPTS)])):
            named = (setting.variant, setting.arm, setting.dose, key, prompt, f"q{prompt}", CATEGORIES[prompt % 4])
            found += [(*named, metric, value) for metric, value in scores.items()]
    columns = ["variant", "arm", "dose", "key", "prompt", "prompt_id", "category", "metric", "value"]
    return pd.DataFrame(found, columns=columns)


class Scored:
    """A lake with made scores of all the sweeps, and of another stream that no answer may read."""

    def __init__(self, root: Path):
        self.layout = Layout.open(root, create=True)
        self.lines = {name: lines(SWEEP.get(name, name), seed) for seed, name in enumerate(ROWS)}
        named = {**MODELS, "stream": STREAMS["it"], "stream_pt": STREAMS["pt"]}
        other = named | {"stream": "native-other-it", "stream_pt": "native-other-pt"}
        for place, (name, table) in enumerate(self.lines.items()):
            sweep = {"sweep": SWEEP.get(name, name)}
            for names, rows in ((named, table), (other, lines(sweep["sweep"], 99 + place))):
                columns = {name: rows[name].to_list() for name in rows} | names | sweep
                columns |= {"value": rows["value"].to_numpy(), "dose": rows["dose"].to_numpy(np.float64)}
                write_table(self.layout, "scores", {**sweep, **names}, [columns])
        rng = np.random.default_rng(7)
        for name in ("exp12", "exp15"):
            replies = self.lines[name][self.lines[name]["metric"] == "str"]
            grades = [
                replies.assign(metric=metric, value=rng.integers(5, size=len(replies))) for metric in ("g1", "s2")
            ]
            pairs = replies[replies["arm"] == "A"].assign(arm="B_late vs A", metric="pair_g2", value=0.5)
            judged = pd.concat([*grades, *([pairs] if name == "exp15" else [])])
            columns = {name: judged[name].to_list() for name in judged} | named | {"sweep": name}
            columns |= {"value": judged["value"].to_numpy(np.float64), "dose": np.full(len(judged), np.nan)}
            write_table(self.layout, "judged", {"sweep": name}, [columns])
            self.lines[name] = pd.concat([self.lines[name], judged])
        self.effects = pd.DataFrame(
            [
                (metric, "d_mean", dose, name, place / 64, low, high, PROMPTS)
                for place, metric in enumerate(("str", "format", "alignment", "answer", "tokens", "first_choice"))
                for name, doses, low, high in (
                    ("cohens_d", (5.0, 1.0, -5.0), -0.5, 0.5),
                    ("spearman", (np.nan,), -0.25, 0.25),
                    ("spearman_p", (np.nan,), np.nan, np.nan),
                )
                for dose in doses
            ],
            columns=["metric", "arm", "dose", "name", "value", "low", "high", "n"],
        )
        columns = {name: self.effects[name].to_numpy() for name in self.effects}
        write_table(self.layout, "effects", {}, [columns | named | {"variant": "it", "sweep": "A1"}])
        angles = {"name": ["top-bottom", "top-bottom", "top-random"] * 3, "draw": [0, 1, 0] * 3, "n": [9] * 9}
        angles |= {"layer": [0] * 3 + [1] * 3 + [2] * 3, "other": [None] * 9, "value": np.linspace(0.5, 0.9, 9)}
        write_table(self.layout, "directions", {}, [angles | named | {"variant": "both", "kind": "splits"}])
        self.said: dict[str, str] = {}

    def table(self, name: str) -> pd.DataFrame:
        """The estimates of a row, by its packaged SQL."""
        query = find(name)
        read = estimates.read(
            connect(self.layout, pairs={"made": SCOPE.models}), scoped(query, [SCOPE]), query, ["made"]
        )
        table = estimates.table_of([read["made"]], query, resamples=50)
        self.said[name] = say(query.says, table, query)
        return table

    def wide(self, name: str) -> pd.DataFrame:
        """Values by (metric, prompt) and (arm, dose), with `reasoning` and `capped`; arms without a dose have dose 0."""
        table = self.lines[name]
        reasoning = table[(table["metric"] == "answer") & (table["category"] == "CONTENT-REASON")]
        capped = table[table["metric"] == "ended"]
        further = [reasoning.assign(metric="reasoning"), capped.assign(metric="capped", value=1 - capped["value"])]
        every = pd.concat([table, *further]).fillna({"dose": 0.0})
        return every.pivot_table("value", ["metric", "prompt"], ["arm", "dose"])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(tmp_path_factory.mktemp("scored") / "lake")


@pytest.fixture(scope="module")
def ask(scored: Scored) -> Callable[[str], pd.DataFrame]:
    """Row -> its table, asked once."""
    known: dict[str, pd.DataFrame] = {}
    return lambda name: known.setdefault(name, scored.table(name))


def single(table: pd.DataFrame, measure: str, **dims: object) -> pd.Series:
    """The one line of a measure, without dims unless named."""
    others = [name for name in ("arm", "metric", "words", "layers", "sets", "window") if name in table]
    rows = table[table["measure"] == measure]
    for name in others:
        rows = rows[rows[name].eq(dims[name]) if name in dims else rows[name].isna()]
    assert len(rows) == 1, (measure, dims, len(rows))
    return rows.iloc[0]


def same(line: pd.Series, values: pd.Series) -> None:
    """An estimate is the mean of these prompts' values, and its interval holds it."""
    values = values.dropna()
    assert line["estimate"] == pytest.approx(values.mean(), abs=1e-6) and line["n"] == len(values), line
    assert np.isnan(line["low"]) or line["low"] <= line["estimate"] <= line["high"]


@pytest.mark.parametrize(
    ("name", "hue", "x", "metrics"),
    [
        ("0C", "arm", "alpha", {"str", "format", "answer", "reasoning", "alignment", "coherent"}),
        ("0D", None, "alpha", {"str", "format", "answer", "reasoning", "last_number", "alignment", "choice_generated"}),
        ("0F", "layers", "alpha (importance: block)", {"str", "format", "answer", "alignment", "coherent"}),
        ("0H", "sets", "alpha", {"str", "format", "answer", "alignment", "coherent"}),
    ],
)
def test_curves_are_means_over_prompts_of_each_condition(
    scored: Scored, ask: Callable, name: str, hue: str | None, x: str, metrics: set[str]
) -> None:
    table, wide = ask(name), scored.wide(name)
    curves = table[table[x].notna() & table["measure"].isin(metrics)]
    assert metrics == set(curves["measure"])
    curves = curves[curves[hue] != "five seeds"] if hue else curves
    for _, line in curves.iterrows():
        same(line, wide.loc[line["measure"], (line[hue] if hue else "d_mean", line[x])])
    aside = ("single", "inject_random", "seed137", "seed271", "seed503", "seed719")
    every = {(arm, dose) for arm, dose in wide.columns if arm not in aside}
    drawn = curves[curves["measure"] == "str"]
    assert {(line[hue] if hue else "d_mean", line[x]) for _, line in drawn.iterrows()} == every
    assert "undefined" not in scored.said[name] and "{" not in scored.said[name]


def test_0C_gaps_are_paired_and_spreads_are_of_five_seeds(scored: Scored, ask: Callable) -> None:
    table, wide = ask("0C"), scored.wide("0C")
    for metric in ("str", "format", "reasoning"):
        for alpha, said in ((5, "5"), (3, "3"), (0, "0"), (-1, "minus1")):
            same(
                single(table, f"gap_{metric}_{said}"),
                wide.loc[metric]["d_mean", alpha] - wide.loc[metric]["seed42", alpha],
            )
        seeds = [f"seed{seed}" for seed in (42, 137, 271, 503, 719)]
        spreads = []
        for alpha in (2, 1, 0.5, 0, -1):
            means = [wide.loc[metric][seed, alpha].mean() for seed in seeds]
            spreads.append(np.std(means, ddof=1))
            at = table[table["alpha"] == alpha].set_index(["measure", "arm"])
            wanted = [np.mean(means), min(means), max(means)]
            found = at.loc[(metric, "five seeds"), ["estimate", "low", "high"]].to_list()
            assert found == pytest.approx(wanted, abs=1e-6)
            for seed, mean in zip(seeds, means, strict=True):
                assert at.loc[(f"seeds_{metric}", seed), "estimate"] == pytest.approx(mean, abs=1e-6)
        line = single(table, f"spread_{metric}")
        assert line["estimate"] == pytest.approx(max(spreads), abs=1e-6) and (line["n"], line["unit"]) == (5, "seeds")


def test_0D_adds_effects_to_the_means(scored: Scored, ask: Callable) -> None:
    table, wide = ask("0D"), scored.wide("0D")
    for metric in ("str", "format", "alignment"):
        for alpha in (0, 5):
            same(
                single(table, f"{metric}_change_{alpha}"),
                wide.loc[metric]["d_mean", alpha] - wide.loc[metric]["d_mean", 1],
            )
    for line in scored.effects.itertuples():
        if line.metric in ("tokens", "first_choice") and line.name == "cohens_d":
            assert not (table["measure"].str.startswith("cohens_d") & (table["metric"] == line.metric)).any()
        elif line.metric == "tokens":
            assert f"rho_{line.metric}" not in set(table["measure"])
        elif line.name == "cohens_d":
            measure = "cohens_d_answers" if line.metric == "answer" else "cohens_d"
            rows = table[
                (table["measure"] == measure) & (table["metric"] == line.metric) & (table["alpha"] == line.dose)
            ]
            assert rows[["estimate", "low", "high", "n"]].to_numpy(float).tolist() == [[line.value, -0.5, 0.5, PROMPTS]]
        else:
            found = single(table, {"spearman": "rho_", "spearman_p": "p_"}[line.name] + line.metric)
            assert found["estimate"] == line.value and np.isnan(found["low"]) == (line.name == "spearman_p")


def test_0E_takes_the_largest_shift_of_all_conditions(scored: Scored, ask: Callable) -> None:
    table, wide = ask("0E"), scored.wide("0E")
    names = {"marks_to_structural": "str_to_structural", "marks_to_content": "str_to_content"}
    names |= {name: f"str_{name}" for name in MOVED[2:]}
    largest = {}
    for words, metric in names.items():
        shift = wide.loc[metric] - wide.loc["str"]
        for alpha, values in shift["d_mean"].items():
            line = table[(table["measure"] == "shift") & (table["words"] == words) & (table["alpha"] == alpha)].iloc[0]
            same(line, values)
        means = shift.mean()
        largest[words] = means.abs().max()
        for line in (single(table, f"max_{words}"), single(table, "largest_shift", words=words)):
            assert line["estimate"] == pytest.approx(largest[words], abs=1e-6) and line["n"] == PROMPTS
    assert largest["marks_to_structural"] < 0.01 < largest["marks_to_content"]
    assert single(table, "passes")["estimate"] == 3 == sum(value < 0.01 for value in largest.values())
    for name in CLASSES[:-1]:
        base, more = (wide.loc[f"share_{name}"]["d_mean", alpha] for alpha in (1, 3))
        same(single(table, "base_share", words=name), base)
        for line in (single(table, f"times_{name}"), single(table, "times", words=name)):
            assert line["estimate"] == pytest.approx(more.mean() / base.mean(), rel=1e-5) and line["n"] == PROMPTS
    assert (wide.loc["share_discourse"]["d_mean", 1] == 0).any() and "other" not in set(table["words"])
    assert "3 of 4 stay under .01" in scored.said["0E"]


def test_0F_names_its_ranges_and_ranks_single_blocks(scored: Scored, ask: Callable) -> None:
    table, wide = ask("0F"), scored.wide("0F")
    ranges = {"wider": "18-33", "late": "20-33", "cut": "20-31", "later": "22-33"}
    for metric in ("str", "format"):
        values = {name: wide.loc[metric][arm, 5] for name, arm in ranges.items()}
        for name in ranges:
            same(single(table, f"{metric}_5_{name}"), values[name])
        means = {name: value.mean() for name, value in values.items()}
        apart = values[max(means, key=means.get)] - values[min(means, key=means.get)]  # type: ignore[arg-type]
        line = single(table, f"spread_{metric}_5")
        if metric == "str":
            same(line, apart)
    change = wide.loc["str"]["single"].sub(wide.loc["str"]["20-33", 1], axis=0).mean()
    shown = table[table["measure"] == "importance"].set_index("alpha (importance: block)")["estimate"]
    assert shown.to_dict() == pytest.approx(change.abs().to_dict(), abs=1e-6) and set(shown.index) == set(range(20, 34))
    assert single(table, "most_important")["estimate"] == change.abs().idxmax()
    assert single(table, "most_important_by")["estimate"] == pytest.approx(change.abs().max(), abs=1e-6)


def test_0H_has_replies_beside_cosines_and_does_without(scored: Scored, ask: Callable) -> None:
    table, wide = ask("0H"), scored.wide("0H")
    for metric in ("str", "format"):
        for alpha in (0, 3, 5):
            for sets in ("top", "bottom", "random"):
                values = wide.loc[metric][sets, alpha]
                same(single(table, f"{metric}_{alpha}_{sets}"), values)
                same(single(table, f"{metric}_{alpha}", sets=sets), values)
                if sets != "top":
                    same(single(table, f"{metric}_{alpha}_top_minus_{sets}"), wide.loc[metric]["top", alpha] - values)
    cosines = table[table["measure"] == "cosine"]
    assert cosines["unit"].eq("records").all() and len(cosines) == 6
    assert single(table, "corrective_top_bottom")["estimate"] == pytest.approx(0.8)
    query = find("0H")
    sql = scoped(query, [SCOPE]).replace("sweep = '0H'", "sweep = 'none'")
    found = estimates.read(connect(scored.layout, pairs={"made": SCOPE.models}), sql, query, ["made"])
    alone = estimates.table_of([found["made"]], query, resamples=50)
    assert set(alone["measure"]) == {"cosine", "corrective_top_bottom", "corrective_top_random"}
    assert "structural" not in say(query.says, alone, query)


def test_exp12_contrasts_and_the_gap_closed(scored: Scored, ask: Callable) -> None:
    table, wide = ask("exp12"), scored.wide("exp12").droplevel("dose", axis=1)
    metrics = (
        "str",
        "format",
        "answer",
        "alignment",
        "refusal",
        "false_refusal",
        "coherent",
        "words",
        "nll_it",
        "ended",
        "g1",
    )
    for metric in metrics:
        values = wide.loc[metric]
        for arm in "ABC":
            same(single(table, metric, arm=arm), values[arm])
        for arm in "BC":
            same(single(table, metric, arm=f"{arm} - A"), values[arm] - values["A"])
            same(single(table, f"{arm.lower()}_minus_a_{metric}"), values[arm] - values["A"])
        gap = (values["C"] - values["A"])[(values["B"] - values["A"]).notna()].dropna()
        closed = table[table["measure"] == f"gap_closed_{metric}"]
        assert len(closed) == (abs(gap.mean()) > 2 * gap.std() / np.sqrt(len(gap)))
    assert "undefined" not in scored.said["exp12"]


def test_exp12_gap_closed_is_a_ratio_of_means(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "lake", create=True)
    rng = np.random.default_rng(5)
    values = {"A": rng.random(30), "B": rng.random(30) + 0.5, "C": rng.random(30) + 2}
    columns = {"arm": np.repeat(list(values), 30).tolist(), "prompt": list(range(30)) * 3, "dose": np.full(90, np.nan)}
    columns |= {"value": np.concatenate(list(values.values())), "category": ["x"] * 90, "key": ["k"] * 90}
    named = {**MODELS, "variant": "it", "stream": STREAMS["it"], "stream_pt": STREAMS["pt"], "sweep": "exp12"}
    write_table(layout, "scores", {}, [columns | named | {"prompt_id": ["q"] * 90, "metric": "str"}])
    query = find("exp12")
    found = estimates.read(connect(layout, pairs={"made": SCOPE.models}), scoped(query, [SCOPE]), query, ["made"])[
        "made"
    ]
    line = single(estimates.table_of([found], query, resamples=50), "gap_closed_str")
    mean = {arm: value.mean() for arm, value in values.items()}
    assert line["estimate"] == pytest.approx((mean["B"] - mean["A"]) / (mean["C"] - mean["A"]), abs=1e-6)
    assert line["n"] == 30 and np.isnan(line["low"])


def test_exp15_signs_of_both_sides(scored: Scored, ask: Callable) -> None:
    table, wide = ask("exp15"), scored.wide("exp15").droplevel("dose", axis=1)
    for metric in (
        "str",
        "format",
        "alignment",
        "false_refusal",
        "missed_refusal",
        "choice_generated",
        "nll_it",
        "capped",
        "g1",
        "s2",
    ):
        values, sign = wide.loc[metric], -1 if metric.endswith("_refusal") or metric == "s2" else 1
        gains = {}
        for window in ("early", "mid", "late"):
            gains["pt", window] = sign * (values[f"B_{window}"] - values["A"])
            gains["it", window] = sign * (values["C"] - values[f"D_{window}"])
        for (side, window), gain in gains.items():
            same(single(table, f"{side}_{metric}_{window}"), gain)
            if metric != "capped":
                same(single(table, f"gain_{metric}", arm=f"{side.upper()} side", window=window), gain)
            if window != "late":
                same(single(table, f"{side}_{metric}_late_minus_{window}"), gains[side, "late"] - gain)
        for arm in values.drop(columns="B_late vs A", errors="ignore"):
            same(single(table, metric if metric == "capped" else f"level_{metric}", arm=arm), values[arm])
    assert single(table, "pair_g2", arm="B_late vs A")["estimate"] == 0.5 and "level_pair_g2" not in set(
        table["measure"]
    )
    assert "undefined" not in scored.said["exp15"]


def test_published_figures_stand_beside_the_hue_they_name_and_windows_in_their_order() -> None:
    arms = ("B_late", "C", "B_mid", "A", "B_early")
    found = answer("exp15", "made", [row("capped", 0.5, 0.1, arm=arm) for arm in arms], hue="arm")
    columns = ["quantity", "value"]
    found.published = pd.DataFrame([("capped_B_mid", 0.4), ("capped_late", 9.0), ("capped_A", 0.62)], columns=columns)
    (panel,) = split(found)[1]
    assert panel.rows["hue"].to_list() == ["A", "B_early", "B_mid", "B_late", "C"]
    beside = [reference(found, panel, hue) for hue in panel.rows["hue"]]
    assert [None if line is None else line["value"] for line in beside] == [0.62, None, 0.4, None, None]


# --- from models to answers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake of a tiny pair whose prompts have fields to score; texts of A1 are written when a row asks."""
    root = tmp_path_factory.mktemp("written")
    pair: PairSpec = tiny.make_pair(root / "pair", "llama", num_hidden_layers=4)
    fields = ({"answer": "cat"}, {"criteria": [{"type": "no_commas", "value": True}]}, {"expect": "refuse"}, {})
    names = ("CONTENT-REASON", "GOV-FORMAT", "SAFETY", "GOV-CONV")
    rows = tuple(
        Prompt(name, names[place % 4], text, fields[place % 4]) for place, (name, _, text) in enumerate(texts(12))
    )
    layout = Layout.open(root / "lake", create=True)
    data = canonical_bytes(rows)
    write_prompts(layout, "mine", data)
    chosen = PromptSet("mine", rows, hashlib.sha256(data).hexdigest())
    tiny.capture(layout.root, pair, tiny.NATIVE, tiny.TEACHER, prompts=chosen)
    return Lake(layout.root, catalog=catalog(root, pair))


def test_effects_are_those_of_the_scores_they_come_from(written: Lake) -> None:
    table = written.run("0D").table
    scores = written.sql("SELECT arm, dose, prompt, category, metric, value FROM scores WHERE sweep = 'A1'").df()
    reasoning = scores[(scores["metric"] == "answer") & (scores["category"] == "CONTENT-REASON")]
    scores = pd.concat([scores, reasoning.assign(metric="reasoning")])
    wide = scores.pivot_table("value", ["metric", "prompt"], ["arm", "dose"], observed=True).astype(float)
    effects = written.sql("SELECT * FROM effects").df()
    assert set(effects["metric"]) == set(scores["metric"]) and set(effects["sweep"]) == {"A1"}
    varied = 0
    for line in effects[effects["name"] == "cohens_d"].itertuples():
        both = wide.loc[line.metric][[(line.arm, line.dose), ("d_mean", 1)]].dropna()
        a, b = both.iloc[:, 0], both.iloc[:, 1] if both.shape[1] == 2 else both.iloc[:, 0]
        spread = np.sqrt((a.var() + b.var()) / 2)
        assert line.n == len(both)
        if spread > 0:
            assert line.value == pytest.approx((a.mean() - b.mean()) / spread, abs=1e-5), line
            varied += line.value != 0
        else:
            assert np.isnan(line.value)
    assert varied > 20
    for metric in ("str", "tokens", "nll_it", "share_content"):
        means = wide.loc[metric]["d_mean"].mean()
        mine = effects[(effects["metric"] == metric) & effects["dose"].isna()].set_index("name")
        if np.ptp(means) > 1e-9:
            whole = spearmanr(means.index, means.round(9))
            assert mine.loc["spearman", "value"] == pytest.approx(whole.statistic, abs=1e-5)
            assert mine.loc["spearman_p", "value"] == pytest.approx(whole.pvalue, abs=1e-5)
        assert (mine.loc["spearman", "n"], mine.loc["spearman_p", "n"]) == (12, 14)
    assert set(effects.loc[effects["name"] == "spearman", "arm"]) == {"d_mean"}  # two doses are no trend
    drawn = table[table["measure"] == "cohens_d"]
    assert len(drawn) == 14 * drawn["metric"].nunique() and "str" in set(drawn["metric"])


def test_0E_reads_the_texts_of_A1_again(written: Lake) -> None:
    found = written.run("0E")
    outputs_of = written.sql("SELECT key, prompt_id, text FROM outputs").df()
    assert len(outputs_of) == 12 * 15  # conditions that change nothing are one
    boundary = boundary_tokens(outputs_of["text"])
    scores = written.sql("SELECT key, prompt_id, arm, dose, metric, value FROM scores WHERE sweep = '0E'").df()
    moved = scores.merge(outputs_of, on=["key", "prompt_id"])
    for metric, words, to in (
        ("str_to_content", boundary["structural_discourse"], "CONTENT"),
        ("str_to_structural", boundary["structural_discourse"], "STRUCTURAL"),
        ("str_function_to_content", boundary["function_content"], "CONTENT"),
    ):
        mine = moved[moved["metric"] == metric]
        assert len(mine) == 12 * 16
        assert np.allclose(mine["value"], [reclassified(text, words, to) for text in mine["text"]], atol=1e-6)
    assert found.table.set_index("measure").loc["passes", "n"] == 4
