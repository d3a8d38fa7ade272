"""Criteria of form: hand-made replies that pass and fail each of them, and CommonMark's own parser beside ours."""

import pytest
from actlake.analyze.text.criteria import CRITERIA_CHECKS, bullets, headings, holds, sentences, unscored, visible
from actlake.capture.streams.rows import CRITERIA
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

# type, value, replies that meet it, replies that don't
CASES = [
    ("all_lowercase", True, ["a cat, 3 dogs.", "ß é 猫", "42"], ["A cat", "éÉ", "ǅ"]),
    ("all_uppercase", True, ["A CAT, 3 DOGS.", "É 猫", "42"], ["A cAT", "Éé", "ǅ"]),
    (
        "bullet_list",
        2,
        ["- a\n- b", "* a\n* b", "• a\n  + b", "Here:\n\n- a\n\n- b\nEnd.", "```\n- a\n- b\n```", "- a\r\n- b"],
        ["- a", "a - b\n- c", "-a\n-b", "1. a\n2. b", "- \n- ", "* * *\n- - -", "Look:\n```yaml\n- a\n- b\n```", "**a**\n**b**"],
    ),
    (
        "contains_all_keywords",
        ["fog", "Bell", "blood vessel"],
        ["The FOG bells near a blood\nvessel."],
        ["fog and bell", "fog bell blood-vessel", ""],
    ),
    ("contains_phrase", "don't worry", ["Please DON’T  worry!", "x don't worry"], ["do not worry", "don't, worry"]),
    (
        "ends_with",
        "The end.",
        ["So. The end.", "the END.\n", '"It is so. The end."', "**The end.**", "The  end."],
        ["The end. No", "The end", "An end."],
    ),
    ("has_placeholders", 2, ["Dear [name], on [the day]", "[a][b]"], ["[a] [ ]", "[a] []", "[a] [b", "[a\nb] [c]", "a b"]),
    (
        "highlighted_sections",
        2,
        ["**a** and **b c**", "***a*** **b**", "**a** b **c**"],
        ["**a** b", "*a* *b*", "** a ** **b**", "**a\nb** **c**", "****", "**a", "**a**\n```\n**b**\n```"],
    ),
    (
        "json",
        True,
        ['{"a": 1}', " [1, 2]\n", '```json\n{"a": [1]}\n```', '```\n{"a": "```"}\n```\n', "~~~\n{}\n~~~"],
        ["{'a': 1}", '{"a": 1', 'Here: {"a": 1}', 'Here:\n```json\n{}\n```', "3", '"a"', '{"a": NaN}', "", "```json\n{}\n```\n```\n{}\n```"],
    ),
    (
        "markdown_sections",
        2,
        ["# A\nx\n## B", "###### a\n# b", "```markdown\n# A\n## B\n```", "## A #\n\n   # B"],
        ["# A", "#A\n#B", "####### a\n# b", "x # a\n# b", "# A\n```python\n# b\n```", "# \n# ", "# A\n    # code"],
    ),
    ("no_commas", True, ["a; b. c", "", "„a‚"], ["a, b", "1,000", "猫，犬", "、", "قط، كلب"]),
    ("sentence_count_min", 2, ["A. B.", "Why? Because!", "猫。犬。", "He said so. (And left.) "], ["A.", "3.5 m", "...", "see example.org", "1. A"]),
    ("sentence_count_max", 1, ["A is 3.5 m.", "What?!", "1. Milk\n2. Bread", "", "Wait... "], ["A. B", "“A.” B.", "So! And?"]),
    ("word_count_min", 3, ["a b c", "a\nb\u00a0c d"], ["a b", "", "a-b c", "a - b", "- a\n- b"]),
    ("word_count_max", 2, ["a b", "", "a-b c.", "a - b"], ["a b c", "1 2 3"]),
    ("wrapped_in_quotes", True, ['"a b"', ' "a" \n', "“a”", '""'], ['"a', 'a"', '"', "'a'", '"a".', ""]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_every_criterion_on_replies_that_meet_it_and_replies_that_do_not(kind, value, good, bad) -> None:
    criterion = {"type": kind, "value": value}
    assert [text for text in good if not holds(text, criterion)] == []
    assert [text for text in bad if holds(text, criterion)] == []


def test_each_type_of_the_prompt_sets_has_its_check() -> None:
    assert CRITERIA_CHECKS.keys() == CRITERIA.keys() == {kind for kind, *_ in CASES}


def test_only_long_minimum_counts_of_words_are_unscored() -> None:
    assert unscored({"type": "word_count_min", "value": 151})
    assert not unscored({"type": "word_count_min", "value": 150})
    assert not unscored({"type": "word_count_max", "value": 151}) and not unscored({"type": "json", "value": True})


def test_code_is_not_part_of_a_text() -> None:
    assert visible("a\n```py\n# b\n```\nc") == "a\nc"
    assert (
        visible("a\n~~~\n```\n~~~\nb\n```` \nc\n```\n`````\nd") == "a\nb\nd"
    )  # closed by a fence as long, of its kind
    assert visible("a\n```py\nnever closed") == "a"
    assert visible("```not code``` a") == "```not code``` a"
    assert (visible("```md\n# a\n```\n"), visible("```python\n# a\n```\n").strip()) == ("# a", "")


WORD = st.text("abcde", min_size=1, max_size=4)
BLOCK = st.one_of(
    st.builds("{} {}".format, st.sampled_from(["#", "##", "######"]), WORD),
    st.lists(WORD, min_size=1, max_size=4).map(lambda items: "\n".join(f"- {item}" for item in items)),
    st.lists(st.one_of(WORD, WORD.map("**{}**".format)), min_size=1, max_size=5).map(" ".join),
    st.builds("```{}\n# {}\n- {}\n**x**\n```".format, st.sampled_from(["py", "sh"]), WORD, WORD),
    st.just("---"),
)


@given(st.lists(BLOCK, min_size=2, max_size=8))
def test_headings_bullets_and_highlights_are_those_of_commonmark(blocks: list[str]) -> None:
    text = "\n\n".join(["Text.", *blocks])
    tokens = MarkdownIt().parse(text)
    kinds = [token.type for token in tokens] + [child.type for token in tokens for child in token.children or ()]
    assert headings(text) == kinds.count("heading_open")
    assert bullets(text) == kinds.count("list_item_open")
    bold = kinds.count("strong_open")
    assert holds(text, {"type": "highlighted_sections", "value": bold})
    assert not holds(text, {"type": "highlighted_sections", "value": bold + 1})


@given(st.lists(st.lists(WORD, min_size=1, max_size=4), min_size=1, max_size=5), st.data())
def test_sentences_are_counted_by_their_ends(made: list[list[str]], data: st.DataObject) -> None:
    ends = [data.draw(st.sampled_from([".", "!", "?", "...", "?!", '."'])) for _ in made]
    assert sentences(" ".join(" ".join(said) + end for said, end in zip(made, ends, strict=True))) == len(made)


@pytest.mark.parametrize("piece", [".", "**a ", "[", "[a", "#", "- ", "```\n", "1. ", "(", "\n", " "])
@pytest.mark.timeout(20)
def test_long_runs_of_marks_take_no_time(piece: str) -> None:
    text = piece * 20_000 + "x"
    for kind, value in CRITERIA.items():
        argument = {"true": True, "count": 3, "text": "x", "texts": ["x"]}[value]
        assert holds(text, {"type": kind, "value": argument}) in (True, False)
