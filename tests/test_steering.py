"""Edits in words: what is understood, that equal ones have one text, and what is refused."""

from collections.abc import Collection
from dataclasses import dataclass
from inspect import Parameter, signature

import pytest
import torch
from actlake import edits
from actlake.capture.edit.edits import EDITS, Graft, Inject, Matched, OutputEdit, RandomGraft, Scale, Skip, Zero, edit
from actlake.capture.edit.words import build, condition_text, parse_edit, parse_edits, parse_layers, runs, settings_of
from actlake.capture.model.partial import Donor
from actlake.queries.generation.sweeps import ALPHAS, SWEEPS, Shape, settings
from actlake.store.core.errors import LakeError
from actlake.store.core.specs import default_windows
from hypothesis import given
from hypothesis import strategies as st

LAYERS = 34
WINDOWS = default_windows(LAYERS)


def parse(text):
    return parse_edit(text, LAYERS, WINDOWS)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("scale:layers=20-33,direction=d_mean,alpha=0.50", "scale:layers=20-33,direction=d_mean,alpha=0.5,site=mlp"),
        ("scale:alpha=5.0, direction=d_mean, layers=late", "scale:layers=20-33,direction=d_mean,alpha=5,site=mlp"),
        ("scale:layers=3,direction=random,alpha=-1e0", "scale:layers=3,direction=random,alpha=-1,site=mlp,seed=42"),
        (
            "inject:layers=7+5+6,direction=d_conv,beta=2",
            "inject:layers=5-7,direction=d_conv,beta=2,site=mlp,relative=true",
        ),
        (
            "matched:layers=1+9,direction=d_mean,alpha=0,seed=007",
            "matched:layers=1+9,direction=d_mean,alpha=0,site=mlp,seed=7",
        ),
        ("zero:layers=all,site=attn", "zero:layers=0-33,site=attn"),
        ("skip:layers=31-33", "skip:layers=31-33"),
        ("graft:layers=early", "graft:layers=0-13"),
        ("random_graft:layers=late+2", "random_graft:layers=2+20-33,seed=42"),
    ],
)
def test_canonical_text(text, canonical):
    assert parse(text).text == canonical
    assert parse(canonical).text == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steer:layers=1", "unknown operator 'steer'; expected one of graft, inject"),
        ("scale:layers=1,direction=d_mean", "scale needs alpha"),
        ("scale:layers=1,direction=d_mean,alpha=big", "alpha is 'big', expected a number"),
        ("scale:layers=1,direction=d_mean,alpha=nan", "alpha is 'nan'"),
        ("inject:layers=1,direction=d_mean,beta=inf", "beta is 'inf'"),
        ("scale:layers=34,direction=d_mean,alpha=0", "no block 34; the model's blocks are 0 to 33"),
        ("scale:layers=9-3,direction=d_mean,alpha=0", "'9-3' run backwards"),
        ("scale:layers=end,direction=d_mean,alpha=0", "'end', expected a number, a run such as 2-5, or one of early, mid, late, all"),
        ("scale:layers=1,direction=d_mean,alpha=0,alpha=1", "alpha is given twice"),
        ("scale:layers=1,direction=d_mean,alpha=0,seed=3", "a seed is for direction random or rotated only"),
        ("scale:layers=1,direction=random,alpha=0,seed=-3", "seed is '-3', expected a whole number"),
        ("scale:layers=1,direction=d_mean,alpha", "'alpha' is no setting"),
        ("skip:layers=1,site=mlp", "skip has no setting 'site'; it takes layers"),
        ("zero:layers=1,site=norm", "site is 'norm', expected mlp or attn or block"),
        ("inject:layers=1,direction=d_mean,beta=1,relative=yes", "relative is 'yes'"),
    ],
)  # fmt: skip
def test_what_is_refused(text, says):
    with pytest.raises(LakeError, match=says.replace("(", r"\(")):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        found = parse(text)
    except LakeError as error:
        assert str(error)
    else:
        assert parse(found.text) == found


@given(st.sets(st.integers(0, LAYERS - 1)))
def test_runs_of_layers_read_back(layers):
    assert parse_layers(runs(sorted(layers)), LAYERS, WINDOWS) == tuple(sorted(layers))


def test_edits_that_change_nothing_are_the_baseline():
    same = [
        ["scale:layers=late,direction=d_mean,alpha=1"],
        ["inject:layers=late,direction=random,beta=0", "matched:layers=3,direction=d_mean,alpha=1.0"],
        ["skip:layers=none", "zero:layers=none", "graft:layers=none"],
        [],
    ]
    assert {parse_edits(edits, LAYERS, WINDOWS) for edits in same} == {()}
    assert condition_text(()) == "none"
    both = parse_edits(["skip:layers=3", "scale:layers=3,direction=d_mean,alpha=1", "graft:layers=4"], LAYERS, WINDOWS)
    assert condition_text(both) == "skip:layers=3 & graft:layers=4"


def test_built_edits():
    def vectors(direction, layers):
        assert direction == ("d_mean", 42)
        return {layer: [0.6, 0.8] for layer in layers if layer != 5}

    donor = Donor("x/it", {})
    kinds = {
        "scale:layers=4-5,direction=d_mean,alpha=2": [Scale],
        "inject:layers=4,direction=d_mean,beta=2": [Inject],
        "matched:layers=4,direction=d_mean,alpha=2": [Matched],
        "zero:layers=4": [Zero],
        "skip:layers=4": [Skip],
        "graft:layers=4": [Graft],
        "random_graft:layers=4": [RandomGraft],
    }
    assert {text.partition(":")[0] for text in kinds} == EDITS.keys()
    for text, expected in kinds.items():
        made = build([parse(text)], vectors, lambda layers: donor)
        assert [type(edit) for edit in made] == expected
    (scaled,) = build([parse("scale:layers=4-5,direction=d_mean,alpha=2")], vectors, lambda layers: donor)
    assert list(scaled.direction) == [4] and scaled.alpha == 2
    with pytest.raises(LakeError, match="d_mean has no vector for any of these layers"):
        build([parse("scale:layers=5,direction=d_mean,alpha=2")], vectors, lambda layers: donor)


def test_an_edit_from_outside_is_given_in_words(monkeypatch):
    monkeypatch.setattr(EDITS, "_known", dict(EDITS))

    @edit
    @dataclass(frozen=True)
    class SoftClamp(OutputEdit):
        """Values beyond a limit are cut off."""

        blocks: Collection[int] = ()
        limit: float = 3.0

        def operator(self, layer, device):
            return lambda m: m.clamp(-self.limit, self.limit)

    found = parse("soft_clamp:layers=late,limit=2.50")
    assert found.text.startswith("soft_clamp:layers=20-33,site=mlp,limit=2.5,code=") and parse(found.text) == found
    (made,) = build([found], lambda direction, layers: {}, lambda layers: None)
    assert made == SoftClamp(blocks=tuple(range(20, 34)), limit=2.5)
    assert torch.equal(made.operator(20, torch.device("cpu"))(torch.tensor([-9.0, 1.0])), torch.tensor([-2.5, 1.0]))
    with pytest.raises(LakeError, match="soft_clamp has changed since"):
        parse("soft_clamp:layers=late,code=00000000")
    with pytest.raises(LakeError, match="unknown operator 'softclamp'; expected one of .*; did you mean 'soft_clamp'"):
        parse("softclamp:layers=late")
    with pytest.raises(LakeError, match="edit scale: declared by .*Scale and by .*Scale; give one another name"):
        edit(type("Scale", (SoftClamp,), {}))


def test_sweeps_share_their_baselines():
    """METHODS 5.3: every baseline and alpha = 1 is one condition, whatever sweep asks for it."""
    shape = Shape(LAYERS, WINDOWS)
    counts = {name: len(settings(name, shape)) for name in SWEEPS}
    assert counts["A1"] == len(ALPHAS) + 2 and counts["A2"] == 15 + 9 and counts["A5a"] == 15
    assert (
        counts["0C"] == 14 + 14 + 4 * 5 and counts["0F"] == 4 * 14 + 14 and counts["0I"] == 20 and counts["exp15"] == 8
    )
    found = {
        (setting.variant, setting.edits, setting.template)
        for name in ("A1", "A1_rand", "A5a")
        for setting in settings(name, shape)
    }
    asked = counts["A1"] + counts["A1_rand"] + counts["A5a"]
    assert len(found) == 1 + 13 + 1 + 13 + 14 and asked == 16 + 28 + 15
    late = [
        setting.edits[0].layers for setting in settings("0F", shape) if setting.dose == 0 and setting.arm != "single"
    ]
    assert [(layers[0], layers[-1]) for layers in late] == [(18, 33), (20, 33), (20, 31), (22, 33)]


@given(st.integers(2, 80))
def test_every_sweep_fits_every_depth(n_layers):
    shape = Shape(n_layers, default_windows(n_layers))
    for name in SWEEPS:
        for setting in settings(name, shape):
            assert all(0 <= layer < n_layers for edit in setting.edits for layer in edit.layers)
    with pytest.raises(LakeError, match="unknown sweep 'A9'"):
        settings("A9", shape)


def test_the_public_edits_take_what_those_in_words_take():
    given = {"layers": "late", "direction": "random", "alpha": 0.5, "beta": 2}
    for name in edits.__all__:
        takes = signature(getattr(edits, name)).parameters
        words = getattr(edits, name)(**{each: given[each] for each in takes if takes[each].default is Parameter.empty})
        assert set(takes) == set(settings_of(EDITS[words.partition(":")[0]]).names), name
        assert parse(words).text
    assert {getattr(edits, name).__name__ for name in edits.__all__} == {kind.__name__ for kind in EDITS.values()}
    with pytest.raises(AttributeError, match="Scales"):
        getattr(edits, "Scales")  # noqa: B009 (it is what is tested)
