"""One question to an OpenAI-compatible server: retried when that can help, with the key kept out of every message."""

import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, TypeVar

import httpx2 as httpx

from ..store.core.errors import LakeError

T = TypeVar("T")
URL, MODEL, KEY = "ACTLAKE_JUDGE_URL", "ACTLAKE_JUDGE_MODEL", "ACTLAKE_JUDGE_KEY"
# No question will be answered: the key, the address or the account is wrong.
HOPELESS = {401: f"is {KEY} right?", 402: "is the account in order?", 403: f"may {KEY} use this model?"}
HOPELESS |= dict.fromkeys((301, 302, 307, 308, 404, 405), "are the address and the model's name right?")
REFUSED = 8  # questions refused, and none accepted, that end a run
OPTIONAL = ("response_format", "max_tokens")  # parts of a request that some servers refuse


class Unanswered(Exception):
    """One question got no usable answer; the message says why, and may stand in a table."""


class _Again(Unanswered):
    """As Unanswered, but another try may help, not before `after` seconds when the server said so."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try.

    `timeout` seconds for an answer; up to `tries` requests a question; between them `pause` seconds, doubled each time,
    or what the server asks for, but never more than `longest_pause`.
    """

    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0
    longest_pause: float = 60.0


@dataclass
class Endpoint:
    """A server's `/chat/completions` and one model there, asked at temperature 0; threads may share it.

    The key is taken from the environment (ACTLAKE_JUDGE_KEY) and sent with each request; without one none is sent.
    """

    url: str
    model: str
    max_tokens: int = 512
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        self._address = f"{_checked(self.url).rstrip('/')}/chat/completions"
        self._optional = frozenset(OPTIONAL)
        self._stopped = threading.Event()
        self._accepted, self._refused = False, 0
        self._client = httpx.Client(timeout=self.patience.timeout, headers=_headers())

    def stop(self) -> None:
        """Let no question be tried again; those under way get what is left of their time."""
        self._stopped.set()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def ask(self, question: str, check: Callable[[str], T | None]) -> T:
        """What `check` makes of the text that the model answers with; None from it counts as no answer.

        Tries again after garbage, time-outs and the statuses 408, 409, 425, 429 and 5xx, then raises Unanswered. Raises
        LakeError when no question can be answered: nothing is at the address, or it refuses the key or the model.
        """
        for number in count(1):
            try:
                if self._stopped.is_set():
                    raise Unanswered("stopped before it was asked")
                return self._once(question, check)
            except _Again as failure:
                wait = self._pause(number, failure.after)
                if number >= self.patience.tries or wait is None or self._stopped.wait(wait):
                    raise Unanswered(str(failure)) from None
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if number >= self.patience.tries or self._stopped.wait(self._pause(number, None) or 0):
                    self.stop()
                    said = scrub(str(error)) or "no connection in time"
                    raise LakeError(f"judge at {self.url}: can't be reached ({said}); is the server running?") from None
        raise AssertionError("count() ends")

    def _pause(self, number: int, asked: float | None) -> float | None:
        """Seconds before the next try; None when the server asks for more than we are ready to wait."""
        if asked is not None:
            return asked if asked <= self.patience.longest_pause else None
        # Not all threads at the same moment.
        return min(self.patience.pause * 2 ** (number - 1), self.patience.longest_pause) * random.uniform(0.75, 1.0)

    def _once(self, question: str, check: Callable[[str], T | None]) -> T:
        body = self._body(question)
        try:
            response = self._client.post(self._address, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except httpx.TimeoutException:
            raise _Again(f"no answer within {self.patience.timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Again(f"connection lost ({scrub(str(error)) or type(error).__name__})") from None
        if response.status_code in (400, 422) and (
            refused := [name for name in OPTIONAL if name in body and name in response.text]
        ):
            self._optional -= set(refused)
            return self._once(question, check)
        self._check_status(response)
        text = _content(response)
        found = check(text)
        if found is None:
            raise _Again(f"no allowed answer in: {_short(text)}")
        return found

    def _body(self, question: str) -> dict[str, Any]:
        optional = {"response_format": {"type": "json_object"}, "max_tokens": self.max_tokens}
        return {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": question}],
            **{name: value for name, value in optional.items() if name in self._optional},
        }

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            self._accepted = True
            return
        said = _complaint(response)
        if status in HOPELESS:
            self.stop()
            raise LakeError(f"judge {self.model} at {self.url}: {HOPELESS[status]} It answers {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Again(said, _retry_after(response))
        # One question may be refused for what is in it; when all are, the request itself is wrong.
        self._refused += 1
        if self._refused >= REFUSED and not self._accepted:
            self.stop()
            raise LakeError(f"judge {self.model} at {self.url}: it refuses every question with {said}")
        raise Unanswered(said)


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    plain = not (parts.userinfo or parts.query or parts.fragment) and 0 < (parts.port or 1) < 2**16
    if parts.scheme not in ("http", "https") or not parts.host or not plain:
        # The text itself may hold a key, so that it is not shown.
        raise LakeError(
            f"the judge's address ({URL}) is not of the form https://HOST/v1; a key belongs into {KEY}, not into the address"
        )
    return url


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise LakeError(f"{KEY} holds characters that no key has (a space, a line break, an accent); set it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def scrub(text: str) -> str:
    """The text without the key, should a server or a model repeat it."""
    key = os.environ.get(KEY, "").strip()
    return text.replace(key, "***") if key else text


def _short(text: str) -> str:
    """The text as a piece of one line: no key, no line breaks, nothing that a terminal would act on."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(scrub(text).split()))
    return text if len(text) <= 160 else text[:157] + "..."


def _complaint(response: httpx.Response) -> str:
    """What a server says about a failure: its status and its message, where one can be made out, else what it sent."""
    try:
        found = response.json()
        found = found.get("error") or found.get("detail") or found.get("message")
        text = found if isinstance(found, str) else found["message"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text = response.text
    return f"status {response.status_code}: {_short(str(text))}".removesuffix(": ")


def _content(response: httpx.Response) -> str:
    """The text of the first choice; a body of another shape, or a question the judge declines, is to be tried again."""
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        content, declined = message["content"], message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Again(f"not a chat completion: {_short(response.text)}") from None
    if declined or choice.get("finish_reason") == "content_filter":
        raise _Again(f"the judge declined: {_short(str(declined or content or ''))}")
    if not isinstance(content, str):
        raise _Again("the judge answered without text")
    return content


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None
