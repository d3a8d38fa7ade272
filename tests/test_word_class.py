"""Classes of tokens: worked cases, and what must hold of any cut of any text."""

import re

import numpy as np
import pytest
import tiny
from actlake.analyze.text.word_class import CLASSES, COLLAPSED, DISCOURSE, FUNCTION, GROUPS, PHRASES, alone, in_context
from actlake.capture.checkpoint.tokens import is_text, running_texts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXT = st.text(st.sampled_from("ab thenotrI1.,-#*`>\n'’�雨é_😀"), max_size=40)


def test_the_lists_are_as_long_as_the_source_says() -> None:
    assert (len(DISCOURSE), len(PHRASES), len(set(PHRASES)), len(FUNCTION)) == (22, 14, 14, 105)
    assert {len(phrase.split()) for phrase in PHRASES} == {2, 3, 4}
    assert not DISCOURSE & FUNCTION and COLLAPSED.keys() == set(CLASSES) and set(COLLAPSED.values()) == set(GROUPS)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *((blank, "PUNCTUATION") for blank in ("", " ", "\n\n", "\t")),
        *((mark, "STRUCTURAL") for mark in ("#", " ###", "**", "```", "--", "===", ">>", "-", "+", "• ", "12.")),
        *((mark, "PUNCTUATION") for mark in (",", "...", ").", "=", "|", "«", "?!", "-,", "“", "。")),
        *((word, "DISCOURSE") for word in ("However", " therefore", "Finally", "For example", "in other  words")),
        *((word, "FUNCTION") for word in ("the", " The", " I", "don't", "can't", "it’s", "of the", "not.")),
        *(
            (word, "CONTENT")
            for word in ("cat", " thecat", "tion", "1", "1.5", "(x", "naïve", "雨", "dog's", "_x_", "tis")
        ),
        *((rest, "OTHER") for rest in ("😀", "�", "→ ")),
    ],
)
def test_tokens_on_their_own(text: str, wanted: str) -> None:
    assert alone(text) == wanted


def classed(*texts: str) -> list[str]:
    return [name[:4] for name in in_context(texts)]


def test_tokens_in_a_text_have_the_class_of_their_word() -> None:
    assert classed("On", " the", " other", " hand", ",", " the", " other") == [*["DISC"] * 4, "PUNC", "FUNC", "CONT"]
    assert classed("How", "ever", " the", "ory") == ["DISC", "DISC", "CONT", "CONT"]
    assert classed(" w", "it", "h", " h", "in", "t") == [*["FUNC"] * 3, *["CONT"] * 3]
    assert classed("up", "on the other hand") == ["FUNC", "FUNC"]  # upon: no phrase begins within a word
    assert classed(" in fact", "ory") == ["FUNC", "CONT"]  # in factory
    assert classed(" na", "�", "�", "ve", " 😀") == [*["CONT"] * 4, "OTHE"]
    assert classed("1", ".", " 1.", "\n", "- ", "well", "-", "known") == [
        *("CONT", "PUNC", "STRU", "PUNC", "STRU", "CONT", "STRU", "CONT"),
    ]
    assert classed(" do", "n", "'t", " I", "'m") == ["FUNC"] * 5
    assert in_context([]) == []


@given(st.lists(TEXT, max_size=12))
def test_any_cut_of_any_text_is_classed(texts: list[str]) -> None:
    found = in_context(texts)
    assert len(found) == len(texts) and set(found) <= set(CLASSES)
    for text, name in zip(texts, found, strict=True):
        marks = not re.search(r"[^\W_]", text)
        assert marks or name in ("DISCOURSE", "FUNCTION", "CONTENT", "STRUCTURAL")
        assert alone(text) == in_context([" ", text, " "])[1]
        if name in ("PUNCTUATION", "STRUCTURAL"):  # these follow from the token itself
            assert alone(text) == name


@given(st.lists(st.sampled_from([*sorted(FUNCTION), *sorted(DISCOURSE), "cat", "12", "naïve"]), min_size=1), st.data())
def test_pieces_of_a_word_are_of_the_words_class(words: list[str], data: st.DataObject) -> None:
    text = ", ".join(words)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    at = np.repeat(np.arange(len(pieces)), list(map(len, pieces)))
    found, place = in_context(pieces), 0
    for word in words:
        expected = "DISCOURSE" if word in DISCOURSE else "FUNCTION" if word in FUNCTION else "CONTENT"
        first = [piece for piece in np.unique(at[place : place + len(word)]) if not re.search(r"\w,", pieces[piece])]
        assert {found[piece] for piece in first} <= {expected}
        place += len(word) + 2


# --- texts of ids ----------------------------------------------------------------------------------------------------


def blank_dropping() -> PreTrainedTokenizerFast:
    """A tokenizer whose decoder drops the blank at the beginning of a text, as SentencePiece ones do."""
    words = ["<unk>", "<s>", "▁the", "▁cat", "s", ",", "a", "<unused7>", "<|turn|>"]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")
    fast.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return fast


def test_texts_of_ids_keep_the_blank_before_a_word() -> None:
    tokenizer = blank_dropping()
    texts, known = running_texts(tokenizer, 12), is_text(tokenizer, 12)
    assert tokenizer.decode([3]) == "cat" and texts[2:7] == [" the", " cat", "s", ",", "a"]
    assert texts[9:] == [""] * 3
    assert known.tolist() == [False, False, *[True] * 5, *[False] * 5]


def test_texts_of_ids_make_the_text_that_they_were_cut_from() -> None:
    tokenizer = tiny.tokenizer()
    texts = running_texts(tokenizer, 200)
    assert len(texts) == 200 and len(running_texts(tokenizer, 400)) == 400
    texts = running_texts(tokenizer, 400)
    for _, _, text in tiny.TEXTS[:3]:
        assert "".join(texts[index] for index in tokenizer(text)["input_ids"][1:]) == text
    known = is_text(tokenizer, 400)
    assert not known[: len(tiny.SPECIAL)].any() and known[len(tiny.SPECIAL) : len(tokenizer)].all()
    assert not known[len(tokenizer) :].any()
