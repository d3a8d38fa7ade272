"""Every commitment rule of METHODS 3.3 in SQL, against plain loops over the definition."""

import math

import numpy as np
import pytest
from actlake.store.format.paths import Layout
from actlake.store.tables.files import write_table
from actlake.store.tables.sql import connect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_store_tables import lens_rows

BOUNDS = (0.05, 0.1, 0.2, 0.5, 1.0)
COSINES = (0.8, 0.9, 0.95, 0.99)
SCALARS = ("top1", "continuous")


def first(layers: int, holds) -> int:
    """The smallest layer that a rule holds at, the last one if it never does."""
    return next((layer for layer in range(layers) if holds(layer)), layers - 1)


def by_hand(top1, kl, entropy, cos) -> dict[str, object]:
    """The rules of one token as METHODS 3.3 words them; float32 values, layer 0 to L-1."""
    n, final_h = len(kl), entropy[-1]

    def every(test):
        return lambda layer: all(test(j) for j in range(layer, n))

    def majority(bound, adaptive):
        def holds(layer):
            exceptions = sum(kl[j] >= bound for j in range(layer, n))
            left = n - layer
            return exceptions <= (1 if adaptive and left < 10 else 0.1 * left)

        return holds

    def crossing():
        at = next((j for j in range(n) if kl[j] < 0.1), None)
        if at is None:
            return n - 1
        return at if at == 0 else at - 1 + (kl[at - 1] - 0.1) / (kl[at - 1] - kl[at])

    rules = {
        "kl": lambda t: every(lambda j: kl[j] < t),
        "kl_q3": lambda t: lambda layer: kl[layer] < t and every(lambda j: kl[j] < 3 * t)(layer),
        "kl_q5": lambda t: lambda layer: kl[layer] < t and every(lambda j: kl[j] < 5 * t)(layer),
        "majority": lambda t: majority(t, False),
        "adaptive": lambda t: majority(t, True),
        "mean": lambda t: lambda layer: np.mean(kl[layer:]) < t,
        "median": lambda t: lambda layer: np.median(kl[layer:]) < t,
        "here_mean": lambda t: lambda layer: kl[layer] < t and np.mean(kl[layer:]) < t,
        "entropy": lambda t: every(lambda j: abs(entropy[j] - final_h) < t),
        "low_entropy": lambda t: every(lambda j: entropy[j] < t),
    }
    found: dict[str, object] = {name: [first(n, rule(t)) for t in BOUNDS] for name, rule in rules.items()}
    found["cos"] = [first(n, every(lambda j, c=c: cos[j] >= c)) for c in COSINES]
    return found | {"top1": first(n, every(lambda j: top1[j] == top1[-1])), "continuous": crossing()}


# Multiples of 1/64 keep clear of the thresholds, whose float32 and float64 values differ in the last digit.
GRID = st.integers(0, 160).map(lambda k: k / 64 + 0.003)
TOKENS = st.integers(2, 24).flatmap(
    lambda n: st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.lists(GRID, min_size=n, max_size=n),
            st.lists(GRID, min_size=n, max_size=n),
            st.lists(st.integers(0, 63).map(lambda k: k / 64), min_size=n, max_size=n),
        ),
        min_size=1,
        max_size=4,
    )
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=TOKENS)
def test_every_rule_is_that_of_METHODS(tmp_path_factory, tokens):
    lake = Layout.open(tmp_path_factory.mktemp("t") / "lake", create=True)
    tokens = [tuple(np.asarray(column, np.float32) for column in token) for token in tokens]
    groups = []
    for number, (top1, kl, entropy, cos) in enumerate(tokens):
        columns = {"top1": top1, "kl_final_layer": kl, "entropy": entropy, "cos_final": cos}
        groups.append(lens_rows(len(kl), token=np.full(len(kl), number), **columns))
    write_table(lake, "lens", {}, groups)
    rows = connect(lake).sql("SELECT * FROM commit_layers ORDER BY token").fetchdf()
    for token, row in zip(tokens, rows.to_dict("records"), strict=True):
        for rule, want in by_hand(*token).items():
            assert list(np.atleast_1d(row[rule])) == pytest.approx(list(np.atleast_1d(want)), abs=1e-4), rule
    long = connect(lake).sql("SELECT token, rule, layer FROM commitment").fetchall()
    for token, rule, layer in long:
        family, _, bound = rule.partition("_")
        place = 0 if not bound else (COSINES if family == "cos" else BOUNDS).index(float(bound))
        assert layer == np.atleast_1d(rows.loc[token, family])[place], rule
    assert len(long) == len(tokens) * 15


def test_deep_models_and_curves_without_tokens(lake):
    deep = lens_rows(126, kl_final_layer=np.r_[np.full(125, 3.0), 0.0])
    curve = lens_rows(4)
    curve.pop("token")
    write_table(lake, "lens", {}, [deep, {**curve, "token": np.full(4, None), "stream": "curves"}])
    found = connect(lake).sql("SELECT stream, kl[5], majority[5], adaptive[5], mean[5] FROM commit_layers").fetchall()
    assert len(found) == 1 and found[0][1] == 125
    suffix = [np.r_[np.full(125, 3.0), 0.0][layer:] for layer in range(126)]
    assert found[0][4] == next(layer for layer, kl in enumerate(suffix) if kl.mean() < 1)
    assert found[0][2] == next(layer for layer, kl in enumerate(suffix) if (kl >= 1).sum() <= 0.1 * len(kl))
    assert math.isclose(found[0][3], 124)
