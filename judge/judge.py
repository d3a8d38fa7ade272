"""An LLM judges replies (METHODS 18): one call per reply, verdicts stored in the lake.

Nothing here runs without `--judge`: what a program can score needs no endpoint.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from ..exchange.client import KEYS, Endpoint, Unanswered, check_address, scrub
from ..store.artifacts.texts import PART, VerdictStore
from ..store.core.errors import CorruptError, LakeError
from ..store.core.files import hash_json
from ..store.core.progress import Advance
from ..store.format.paths import Layout
from .rubrics import PAIR_ANSWERS, Rubric, find_answer, find_rubric, pair_swapped, read_rubrics

URL, MODEL, KEY = "ACTLAKE_JUDGE_URL", "ACTLAKE_JUDGE_MODEL", KEYS["judge"]
UNJUDGED = "unjudged"
CHARACTERS = 4  # a token, roughly, in English
ANSWER_TOKENS = 60  # the JSON answer, with a sentence as the reason
REFERRED = 2  # two judges this many steps apart on a scale call the referee: METHODS 12
LONGEST_REASON = 500  # characters kept
OTHER_WAY = {"A": "B", "B": "A", "TIE": "TIE"}


@dataclass(frozen=True)
class JudgeItem:
    """A reply to be judged by one rubric, or with `other` two replies to be compared.

    `prompt` holds the fields of a prompt: `id` and `text`, and `category` and `expect` for choosing rubrics. `labels` say
    what made the two replies, as in ("B_late", "A"); with the prompt's id they decide which is shown first.
    """

    rubric: str
    prompt: Mapping[str, Any]
    reply: str
    other: str | None = None
    labels: tuple[str, str] = ("A", "B")


@dataclass(frozen=True)
class Verdict:
    """What the judge answered (`label`), its number (`value`) and why.

    Of two replies, A (value 1) is `reply`, B (value 0) is `other`, and TIE is 0.5, whichever was shown first. Without a
    usable answer the label is unjudged, the value None, and `reason` says what went wrong.
    """

    value: float | None
    label: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """Estimated cost of judging: calls, items that need none, tokens at 4 characters each, and the price if known.

    Repeated calls are not included. The price has the currency of the prices a million tokens.
    """

    calls: int
    cached: int
    tokens_in: int
    tokens_out: int
    price: float | None

    def __add__(self, other: "Cost") -> "Cost":
        price = None if self.price is None or other.price is None else self.price + other.price
        tokens_in, tokens_out = self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out
        return Cost(self.calls + other.calls, self.cached + other.cached, tokens_in, tokens_out, price)

    def __str__(self) -> str:
        price = "price unknown" if self.price is None else f"about {self.price:,.2f} to pay"
        tokens = f"about {self.tokens_in:,} tokens in and {self.tokens_out:,} out (at {CHARACTERS} characters a token)"
        return f"{self.calls:,} calls, {self.cached:,} verdicts in the lake already; {tokens}, {price}"


@dataclass(frozen=True)
class _Question:
    """A text for the judge; equal questions have equal keys."""

    key: str
    text: str
    answers: Mapping[str, float]
    answer_key: str
    item: JudgeItem
    swapped: bool

    def check(self, text: str) -> tuple[str, str] | None:
        return find_answer(text, self.answers, self.answer_key)


class Judge:
    """One model behind an OpenAI-compatible endpoint, which judges by the given rubrics; no question is sent twice.

    The address and the model come from the arguments, else from the environment (ACTLAKE_JUDGE_URL, ACTLAKE_JUDGE_MODEL);
    the key from ACTLAKE_JUDGE_KEY alone. Prices are per million tokens. A verdict belongs to the model's name, not to the
    address. LakeError when no model is named; a missing address is an error only when a question has to be sent.
    """

    def __init__(
        self,
        layout: Layout,
        rubrics: Mapping[str, Rubric] | None = None,
        url: str | None = None,
        model: str | None = None,
        *,
        timeout: float = 60.0,
        tries: int = 4,
        workers: int = 4,
        price_in: float | None = None,
        price_out: float | None = None,
        max_tokens: int = 512,
        part: int = PART,
    ):
        self.rubrics = read_rubrics() if rubrics is None else rubrics
        self._url = url or os.environ.get(URL, "").strip()
        self.model = model or os.environ.get(MODEL, "").strip()
        if not self.model:
            raise _nowhere()
        self._workers, self._asking = max(1, workers), (max_tokens, timeout, tries)
        self._prices = None if price_in is None or price_out is None else (price_in, price_out)
        self._store = VerdictStore(layout.judge, part, layout.files)

    def check(self) -> None:
        """Raise LakeError where no question could be sent: no address, one of another form, or nothing listens there."""
        if not self._url:
            raise _nowhere()
        check_address("judge", self._url)

    def estimate(self, items: Sequence[JudgeItem]) -> Cost:
        """Estimated cost of judging these items; sends nothing."""
        questions, missing = self._look_up(items)
        characters = sum(len(question.text) for question in missing.values())
        tokens_in, tokens_out = math.ceil(characters / CHARACTERS), len(missing) * ANSWER_TOKENS
        price = None
        if self._prices is not None:
            price = (tokens_in * self._prices[0] + tokens_out * self._prices[1]) / 1e6
        known = sum(question.key not in missing for question in questions)
        return Cost(len(missing), known, tokens_in, tokens_out, price)

    def cached(self, items: Sequence[JudgeItem]) -> list[Verdict | None]:
        """Stored verdicts, None where there is none yet; sends nothing."""
        questions, missing = self._look_up(items)
        return [None if question.key in missing else self._verdict(question, {}) for question in questions]

    def judge(self, items: Sequence[JudgeItem], progress: Advance | None = None) -> list[Verdict]:
        """A verdict for each item, in order; `progress` is called with the number of items done.

        Items without a usable answer are unjudged and are sent again the next time. A LakeError (no endpoint, a
        refused key) stops at once; what was judged until then is in the lake.
        """
        questions, missing = self._look_up(items)
        advance = progress or (lambda count: None)
        advance(sum(question.key not in missing for question in questions))
        failures = self._ask(missing, Counter(question.key for question in questions), advance) if missing else {}
        return [self._verdict(question, failures) for question in questions]

    def _look_up(self, items: Sequence[JudgeItem]) -> tuple[list[_Question], dict[str, _Question]]:
        """The items' questions, and those by key that the lake has no verdict on."""
        questions = [self._question(item) for item in items]
        self._store.refresh()
        return questions, {q.key: q for q in questions if self._store.get(q.key) is None}

    def _question(self, item: JudgeItem) -> _Question:
        rubric, answers, swapped = find_rubric(self.rubrics, item.rubric), PAIR_ANSWERS, False
        if item.other is None:
            text, answers = rubric.question(item.prompt["text"], item.reply), rubric.answers
        else:
            swapped = pair_swapped(item.prompt["id"], item.labels)
            first, second = (item.other, item.reply) if swapped else (item.reply, item.other)
            text = rubric.pair_question(item.prompt["text"], first, second)
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair can't be sent
        # The rubric's words, the prompt and the reply are all in the text.
        request = {
            "answers": answers,
            "answer_key": rubric.key,
            "model": self.model,
            "question": text,
            "temperature": 0,
        }
        return _Question(hash_json(request), text, answers, rubric.key, item, swapped)

    def _ask(self, missing: Mapping[str, _Question], items: Mapping[str, int], advance: Advance) -> dict[str, str]:
        """Send and store all that is missing; key -> reason of what stays without a verdict. `items` is their number by key."""
        if not self._url:
            raise _nowhere()
        endpoint = Endpoint("judge", self._url, self.model, *self._asking)
        failures: dict[str, str] = {}
        waiting: dict[Future, _Question] = {}
        pool = ThreadPoolExecutor(self._workers)
        try:
            waiting.update({pool.submit(endpoint.ask, q.text, q.check): q for q in missing.values()})
            for future in as_completed(list(waiting)):
                question = waiting.pop(future)
                try:
                    self._keep(question, *future.result())
                except Unanswered as failure:
                    failures[question.key] = str(failure)
                advance(items[question.key])
        finally:
            endpoint.stop()
            self._store.flush()
            pool.shutdown(cancel_futures=True)
            for future, question in waiting.items():  # paid for, so it is kept
                if not future.cancelled() and future.exception() is None:
                    self._keep(question, *future.result())
            self._store.flush()
            endpoint.close()
        return failures

    def _keep(self, question: _Question, answer: str, reason: str) -> None:
        item = question.item
        known = {
            "prompt_id": item.prompt["id"],
            "rubric": item.rubric,
            "model": self.model,
            "pair": item.other is not None,
        }
        shortened = scrub(reason)[:LONGEST_REASON].encode("utf-8", "replace").decode()
        self._store.add({**known, "key": question.key, "answer": answer, "reason": shortened})

    def _verdict(self, question: _Question, failures: Mapping[str, str]) -> Verdict:
        record = self._store.get(question.key)
        if record is None:
            return Verdict(None, UNJUDGED, failures[question.key])
        label = record["answer"]
        if label not in question.answers:
            raise CorruptError(
                f"{self._store.folder}: {label!r} under {question.key} is no answer of {question.item.rubric}"
            )
        if question.swapped:
            label = OTHER_WAY[label]
        return Verdict(question.answers[label], label, record["reason"])


def escalate(
    items: Sequence[JudgeItem], bulk: Judge, second: Judge, referee: Judge, progress: Advance | None = None
) -> tuple[list[Verdict], list[Verdict | None]]:
    """Two judges judge all items, a third the ones they differ on: the final verdicts (the third's or else bulk's), the third's,
    None where it was not needed.

    They differ by two steps or more on a scale, by any other class (S1, S2, pairs), or when bulk has no verdict: METHODS 12.
    `progress` counts items of bulk, second and referee together.
    """
    first, others = bulk.judge(items, progress), second.judge(items, progress)
    open_ones = [i for i, (a, b) in enumerate(zip(first, others, strict=True)) if _differ(bulk.rubrics, items[i], a, b)]
    decided = dict(zip(open_ones, referee.judge([items[i] for i in open_ones], progress), strict=True))
    rulings = [decided.get(i) for i in range(len(items))]
    final = [r if r is not None and r.label != UNJUDGED else v for r, v in zip(rulings, first, strict=True)]
    return final, rulings


def _differ(rubrics: Mapping[str, Rubric], item: JudgeItem, bulk: Verdict, second: Verdict) -> bool:
    if bulk.value is None or second.value is None:
        return bulk.value is None
    if item.other is None and find_rubric(rubrics, item.rubric).scale:
        return abs(bulk.value - second.value) >= REFERRED
    return bulk.label != second.label


def summary(items: Sequence[JudgeItem], verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each rubric: how many replies were judged, the share of every class among those, and what failed.

    Shares rather than means, since a mean hides the classes behind it: METHODS 21 (known pitfall: incoherent replies).
    """
    groups: dict[str, list[Verdict]] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        groups.setdefault(item.rubric + (" pairs" if item.other is not None else ""), []).append(verdict)
    return [_line(name, group) for name, group in groups.items()]


def _line(name: str, verdicts: list[Verdict]) -> str:
    labels = Counter(verdict.label for verdict in verdicts if verdict.label != UNJUDGED)
    judged = sum(labels.values())
    shares = ", ".join(f"{label} {count / judged:.0%}" for label, count in sorted(labels.items()))
    text = f"{name}: {judged} of {len(verdicts)} judged" + (f" ({shares})" if shares else "")
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.label == UNJUDGED)
    if not reasons:
        return text
    reason, count = reasons.most_common(1)[0]
    return f"{text}; {sum(reasons.values())} unjudged, to be asked again next time ({count} of them: {reason})"


def _nowhere() -> LakeError:
    return LakeError(
        f"no judge: set {URL} (an OpenAI-compatible address such as http://localhost:8000/v1) and {MODEL},"
        f" and {KEY} if the server wants a key; all else works without"
    )
