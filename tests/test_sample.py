"""How many tests of a sweep are run: a few, evenly spread and always the same, unless more are asked for."""

from types import SimpleNamespace

import conftest
import pytest


def collected(sample: int | None, swept: int) -> list[str]:
    """What is left of a test that is no part of a sweep, and of so many that are."""
    items = [SimpleNamespace(nodeid=f"t[{n}]", get_closest_marker={"sweep": "mark"}.get) for n in range(swept)]
    items.insert(0, SimpleNamespace(nodeid="plain", get_closest_marker=lambda name: None))
    gone: list[str] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: gone.extend(item.nodeid for item in items))
    conftest.pytest_collection_modifyitems(SimpleNamespace(option=SimpleNamespace(sample=sample), hook=hook), items)
    left = [item.nodeid for item in items]
    assert len(gone) + len(left) == swept + 1 and not {*gone} & {*left}
    return left


@pytest.mark.parametrize("swept", [1, 12, 13, 143])
def test_a_sample_is_evenly_spread_and_leaves_other_tests_alone(swept: int) -> None:
    left = collected(12, swept)
    assert left[:2] == ["plain", "t[0]"] and len(left) == 1 + min(swept, 12) and left == collected(12, swept)
    places = [int(name[2:-1]) for name in left[1:]]
    assert max((b - a for a, b in zip(places, places[1:], strict=False)), default=0) <= -(-swept // 12)
    assert len(collected(None, swept)) == swept + 1 and collected(0, swept) == ["plain"]


@pytest.mark.parametrize(("words", "sample"), [("", 12), ("sweep", None), ("slow", None)])
def test_the_normal_suite_takes_a_sample_and_no_slow_tests(words: str, sample: int | None) -> None:
    config = SimpleNamespace(option=SimpleNamespace(sample=None, markexpr=words))
    conftest.pytest_configure(config)
    assert config.option.sample == sample and config.option.markexpr == (words or "not slow")
