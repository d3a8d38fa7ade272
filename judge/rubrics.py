"""Rubrics of an LLM judge: the rubric file, the questions made from it, and the strict reading of answers."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node

from ..capture.streams.rows import EXPECTATIONS
from ..store.core.errors import LakeError
from ..store.core.yaml_file import NodeReader, compose, hint, listed

PACKAGED = Path(__file__).parent.parent / "prompts" / "rubrics.yaml"
LONGEST = 2_500  # characters of a reply that a judge sees: METHODS 18
LONGEST_ANSWER = 20_000  # characters of a judge's answer that are searched
PAIR_ANSWERS: Mapping[str, float] = {"A": 1.0, "B": 0.0, "TIE": 0.5}
_QUOTES = "\"'`* "
_BLANK = re.compile(r"\{(prompt|reply|first|second)\}")
# Some servers send the opening mark with the prompt, and a thought that was cut off has no closing one.
_THOUGHT = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*$", re.DOTALL)


@dataclass(frozen=True)
class Rubric:
    """One question about a reply; prompts/rubrics.yaml describes the parts.

    `answers` maps what may be answered to its value; `scale` says that the values are steps of one scale.
    """

    name: str
    answers: Mapping[str, float]
    scale: bool
    template: str
    pair_template: str | None = None
    categories: tuple[str, ...] | None = None
    expect: str | None = None
    key: str = "answer"

    def applies(self, prompt: Mapping[str, Any]) -> bool:
        """True when replies to this prompt (its fields `category`, `expect`) are judged by this rubric."""
        category = self.categories is None or prompt.get("category") in self.categories
        return category and (self.expect is None or prompt.get("expect") == self.expect)

    def question(self, prompt: str, reply: str) -> str:
        """The text sent to a judge about one reply, of which it sees the first 2,500 characters."""
        return _fill(self.template, {"prompt": prompt, "reply": reply[:LONGEST]})

    def pair_question(self, prompt: str, first: str, second: str) -> str:
        """The text sent to a judge about two replies; LakeError when the rubric compares none."""
        if self.pair_template is None:
            raise LakeError(f"rubric {self.name} has no pair_template: it can't compare two replies")
        return _fill(self.pair_template, {"prompt": prompt, "first": first[:LONGEST], "second": second[:LONGEST]})


def read_rubrics(path: str | Path | None = None) -> dict[str, Rubric]:
    """Name -> rubric from a YAML file, without one from the file that comes with actlake (G1, G2, S1, S2).

    Whatever is wrong with the file raises a LakeError that names file and line.
    """
    file = Path(path) if path is not None else PACKAGED
    root = compose(file, "rubric file")
    reader = _Reader(file)
    entries = reader.mapping(root, "the rubric file") if root is not None else {}
    if not entries:
        raise LakeError(f"{file}: the rubric file is empty; expected `NAME:` blocks with answers and template")
    return {name: reader.rubric(name, node) for name, node in entries.items()}


def find_rubric(rubrics: Mapping[str, Rubric], name: str) -> Rubric:
    """The rubric of this name, or a LakeError that lists the known ones."""
    if name not in rubrics:
        raise LakeError(f"unknown rubric {name!r}: known are {listed(rubrics)}{hint(name, rubrics)}")
    return rubrics[name]


def pair_swapped(prompt_id: str, labels: tuple[str, str]) -> bool:
    """True when the second of two replies is shown first: a bit of the SHA-256 of the prompt's id and the sorted labels.

    The bit 1 shows the label that sorts last. Which of the two is named first does not matter, so both orders give the
    same question. LakeError when both replies have one label.
    """
    low, high = sorted(labels)
    if low == high:
        raise LakeError(f"prompt {prompt_id}: both replies are labelled {low!r}; two replies need two labels")
    bit = sha256("\0".join((prompt_id, low, high)).encode("utf-8", "surrogatepass")).digest()[0] & 1
    return (labels[0] == high) ^ bool(bit)


def find_answer(text: str, answers: Mapping[str, float], key: str = "answer") -> tuple[str, str] | None:
    """(answer, reason) in what a judge wrote, or None when it holds no allowed answer, or two that differ.

    Read are JSON objects that have the key, wherever they stand in the text (a code fence, prose), or a text that is
    an allowed answer and nothing else. Thoughts in <think> are left out. Nothing is guessed or rounded.
    """
    text = _THOUGHT.sub("", text[:LONGEST_ANSWER]).strip()
    known = {name.upper(): name for name in answers}
    bare = known.get(text.lstrip(_QUOTES).rstrip(_QUOTES + ".").upper())
    if bare is not None:
        return bare, ""
    key = key.lower()
    found = [(known.get(_spelt(value[key])), value) for value in _objects(text) if key in value]
    if not found or len({answer for answer, _ in found}) > 1 or found[0][0] is None:
        return None
    reason = found[-1][1].get("reason", "")
    return found[0][0], " ".join(reason.split()) if isinstance(reason, str) else ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text, keys in lower case."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield {key.lower(): part for key, part in value.items()}
        at = text.find("{", end)


def _spelt(value: Any) -> str:
    """An answer as text in capitals; what is neither text nor a whole number becomes the empty text, no answer."""
    if isinstance(value, str):
        return value.strip().upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if type(value) is int and abs(value) < 10**9 else ""


def _fill(template: str, texts: Mapping[str, str]) -> str:
    # In one pass, so that a placeholder's name inside a prompt or a reply is left alone.
    return _BLANK.sub(lambda match: texts.get(match[1], match[0]), template)


class _Reader(NodeReader):
    """Turns the nodes of a rubric file into rubrics."""

    def rubric(self, name: str, node: Node) -> Rubric:
        what = f"rubric {name}"
        keys = ("answers", "categories", "expect", "template", "pair_template", "key")
        entry = self.mapping(node, what, keys, ("answers", "template"))
        answers, scale = self.answers(entry["answers"], f"{what}, answers")
        template = self.template(entry["template"], f"{what}, template", ("prompt", "reply"))
        pair, categories, expect = (entry.get(key) for key in ("pair_template", "categories", "expect"))
        return Rubric(
            name,
            answers,
            scale,
            template,
            self.template(pair, f"{what}, pair_template", ("prompt", "first", "second")) if pair else None,
            self.texts(categories, f"{what}, categories", "[GOV-CONV, GOV-REGISTER]") if categories else None,
            self.choice(expect, f"{what}, expect", EXPECTATIONS) if expect else None,
            self.text(entry["key"], f"{what}, key") if "key" in entry else "answer",
        )

    def answers(self, node: Node, what: str) -> tuple[dict[str, float], bool]:
        if not isinstance(node, MappingNode):
            steps = [self.whole(step, f"{what}, a step", 0) for step in self.list(node, what, "[1, 2, 3, 4, 5]")]
            found = {str(step): float(step) for step in steps}
        else:
            classes = self.mapping(node, what)
            found = {name: float(self.whole(value, f"{what}, {name}", 0)) for name, value in classes.items()}
        if len({name.upper() for name in found}) < max(2, len(found)):
            raise self.error(node, f"{what}: expected two or more answers that differ in more than capitals")
        if "UNJUDGED" in {name.upper() for name in found}:
            raise self.error(node, f"{what}: unjudged is what a reply without a verdict is called; choose another word")
        return found, not isinstance(node, MappingNode)

    def texts(self, node: Node, what: str, example: str) -> tuple[str, ...]:
        return tuple(self.text(part, what) for part in self.list(node, what, example))

    def template(self, node: Node, what: str, blanks: tuple[str, ...]) -> str:
        text = self.text(node, what)
        used = {match[1] for match in _BLANK.finditer(text)}
        if missing := [f"{{{blank}}}" for blank in blanks if blank not in used]:
            raise self.error(node, f"{what} lacks {listed(missing)}, where the text is put in")
        if extra := sorted(f"{{{blank}}}" for blank in used - set(blanks)):
            raise self.error(node, f"{what} has {listed(extra)}, for which there is no text here")
        return text
