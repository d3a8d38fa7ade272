"""One question to an OpenAI-compatible server: the `openai` client retries what can help; the key stays out of every message."""

import os
import re
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ..store.core.errors import LakeError

if TYPE_CHECKING:
    from httpx2 import Response

T = TypeVar("T")
URL, MODEL, KEY = "ACTLAKE_JUDGE_URL", "ACTLAKE_JUDGE_MODEL", "ACTLAKE_JUDGE_KEY"
# No question will be answered: the key, the address or the account is wrong.
HOPELESS = {401: f"is {KEY} right?", 402: "is the account in order?", 403: f"may {KEY} use this model?"}
HOPELESS |= dict.fromkeys((301, 302, 307, 308, 404, 405), "are the address and the model's name right?")
REFUSED = 8  # questions refused, and none accepted, that end a run
OPTIONAL = ("response_format", "max_tokens")  # parts of a request that some servers refuse


class Unanswered(Exception):
    """One question got no usable answer; the message says why, and may stand in a table."""


class Endpoint:
    """A server's `/chat/completions` and one model there, at temperature 0; threads may share it.

    The key is taken from the environment (ACTLAKE_JUDGE_KEY) and sent with each request; without one none is sent. A
    request gets `timeout` seconds and is sent up to `tries` times, as is a question that gets an unusable answer.
    """

    def __init__(self, url: str, model: str, max_tokens: int = 512, timeout: float = 60.0, tries: int = 4):
        try:
            import openai
        except ImportError:
            raise LakeError("asking a judge needs the openai client: pip install 'actlake[judge]'") from None
        self.url, self.model = _checked(url), model
        self._errors, self._timeout, self._tries = openai, timeout, tries
        self._optional = {"response_format": {"type": "json_object"}, "max_tokens": max_tokens}
        self._stopped = threading.Event()
        self._accepted, self._refused = False, 0
        key = _key()
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=url,
            timeout=timeout,
            max_retries=tries - 1,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),  # the key goes to this address only
        )

    def stop(self) -> None:
        """Let no other question be asked; those under way get what is left of their time."""
        self._stopped.set()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def ask(self, question: str, check: Callable[[str], T | None]) -> T:
        """What `check` makes of the text that the model answers with; None from it counts as no answer.

        Raises Unanswered after garbage, time-outs and the statuses that the client retries (408, 409, 429, 5xx), or when
        the server asks for a wait of minutes. Raises LakeError when no question can be answered: nothing is at the address,
        or it refuses the key or the model.
        """
        reason = ""
        for _ in range(self._tries):
            text, reason = _content(self._send(question))
            found = check(text) if text is not None else None
            if found is not None:
                return found
            reason = reason or f"no allowed answer in: {_short(text or '')}"
        raise Unanswered(reason)

    def _send(self, question: str) -> "Response":
        if self._stopped.is_set():
            raise Unanswered("stopped before it was asked")
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": question}],
        }
        body |= (optional := dict(self._optional))
        try:
            asked = self._client.chat.completions.with_raw_response.create(**body, extra_headers=self._headers)
            response = asked.http_response
        except self._errors.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                self.stop()
                said = scrub(str(cause)) or "no connection in time"
                raise _unreached(self.url, said) from None
            if isinstance(error, self._errors.APITimeoutError):
                raise Unanswered(f"no answer within {self._timeout:g} s") from None
            raise Unanswered(f"connection lost ({scrub(str(cause)) or type(cause).__name__})") from None
        except self._errors.APIStatusError as error:
            refused = [name for name in optional if name in error.response.text]
            if error.status_code not in (400, 422) or not refused:
                raise self._failure(error.response) from None
            self._optional = {name: value for name, value in self._optional.items() if name not in refused}
            return self._send(question)
        self._accepted = True
        return response

    def _failure(self, response: "Response") -> Exception:
        """What a status stands for: a LakeError when every question will fail, else Unanswered."""
        status, said = response.status_code, _complaint(response)
        judge = f"judge {self.model} at {self.url}"
        if status in HOPELESS:
            self.stop()
            return LakeError(f"{judge}: {HOPELESS[status]} It answers {said}")
        if status in (408, 409, 429) or status >= 500:
            return Unanswered(said)
        # One question may be refused for what is in it; when all are, the request itself is wrong.
        self._refused += 1
        if self._refused >= REFUSED and not self._accepted:
            self.stop()
            return LakeError(f"{judge}: it refuses every question with {said}")
        return Unanswered(said)


def check_address(url: str) -> None:
    """Raise LakeError unless `url` has the form of an address and something listens there; nothing is sent."""
    parts = urlsplit(_checked(url))
    try:
        socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), 10).close()
    except OSError as error:
        raise _unreached(url, error.strerror or str(error)) from None


def _unreached(url: str, why: str) -> LakeError:
    return LakeError(f"judge at {url}: can't be reached ({why}); is the server running?")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        plain = plain and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        plain = False
    if not plain:
        # The text itself may hold a key, so that it is not shown.
        raise LakeError(
            f"the judge's address ({URL}) is not of the form https://HOST/v1; a key belongs into {KEY}, not into the address"
        )
    return url


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise LakeError(f"{KEY} holds characters that no key has (a space, a line break, an accent); set it again")
    return key


def scrub(text: str) -> str:
    """The text without the key, should a server or a model repeat it."""
    key = os.environ.get(KEY, "").strip()
    return text.replace(key, "***") if key else text


def _short(text: str) -> str:
    """The text as a piece of one line: no key, no line breaks, nothing that a terminal would act on."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(scrub(text).split()))
    return text if len(text) <= 160 else text[:157] + "..."


def _complaint(response: "Response") -> str:
    """What a server says about a failure: its status and its message, where one can be made out, else what it sent."""
    try:
        found = response.json()
        found = found.get("error") or found.get("detail") or found.get("message")
        text = found if isinstance(found, str) else found["message"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text = response.text
    return f"status {response.status_code}: {_short(str(text))}".removesuffix(": ")


def _content(response: "Response") -> tuple[str | None, str]:
    """The text of the first choice; None and why for a body of another shape, or a question that the judge declines."""
    try:
        choice: Any = response.json()["choices"][0]
        message = choice["message"]
        content, declined = message["content"], message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, f"not a chat completion: {_short(response.text)}"
    if declined or choice.get("finish_reason") == "content_filter":
        return None, f"the judge declined: {_short(str(declined or content or ''))}"
    if not isinstance(content, str):
        return None, "the judge answered without text"
    return content, ""
