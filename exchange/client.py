"""One request to an OpenAI-compatible server: the `openai` client retries what can help; the key stays out of every message."""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ..store.core.errors import LakeError

if TYPE_CHECKING:
    from httpx2 import Response

T = TypeVar("T")
KEYS = {"judge": "ACTLAKE_JUDGE_KEY", "engine": "ACTLAKE_ENGINE_KEY"}  # what is asked for -> where its key stands
# No request will be answered: the key, the address or the account is wrong.
HOPELESS = {401: "is {key} right?", 402: "is the account in order?", 403: "may {key} use this model?"}
HOPELESS |= dict.fromkeys((301, 302, 307, 308, 404, 405), "are the address and the model's name right?")
REFUSED = 8  # requests refused, and none accepted, that end a run
LARGEST = 1 << 26  # bytes of an answer
OPTIONAL = ("response_format", "max_tokens")  # parts of a request that some servers refuse


class Unanswered(Exception):
    """One question got no usable answer; the message says why, and may stand in a table."""


class Endpoint:
    """An OpenAI-compatible server and one model there; threads may share it.

    The key is taken from the environment (KEYS[role]) and sent with each request; without one none is sent. A request gets
    `timeout` seconds and is sent up to `tries` times, as is one that gets an unusable answer. With `max_tokens` a JSON
    object of so many tokens is asked for, where the server can.
    """

    def __init__(
        self, role: str, url: str, model: str, max_tokens: int | None = None, timeout: float = 60.0, tries: int = 4
    ):
        try:
            import httpx2
            import openai
        except ImportError:
            raise LakeError(
                f"the {role} at {url} is asked by the openai client: pip install 'actlake[judge]'"
            ) from None
        self.url, self.model = _checked(role, url), model
        self._role, self._errors, self._response = role, openai, httpx2.Response
        self._timeout, self._tries = timeout, tries
        self._optional = (
            {"response_format": {"type": "json_object"}, "max_tokens": max_tokens} if max_tokens is not None else {}
        )
        self._stopped = threading.Event()
        self._accepted, self._refused = False, 0
        key = _key(KEYS[role])
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=url,
            timeout=timeout,
            max_retries=tries - 1,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # the key goes to this address only
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [_limited]},
            ),
        )

    def stop(self) -> None:
        """Let nothing else be asked; what is under way gets what is left of its time."""
        self._stopped.set()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def ask(self, question: str, check: Callable[[str], T | None]) -> T:
        """What `check` makes of the text that the model answers a question with, at temperature 0; None counts as no answer."""

        def read(response: "Response") -> tuple[T | None, str]:
            text, reason = _content(response)
            found = check(text) if text is not None else None
            return found, reason or f"no allowed answer in: {short(text or '')}"

        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        return self.post("chat/completions", body, read)

    def post(self, path: str, body: dict[str, Any], read: Callable[["Response"], tuple[T | None, str]]) -> T:
        """What `read` makes of the response to a request; with None from it stands why, and the request is sent again.

        Raises Unanswered after garbage, time-outs and the statuses that the client retries (408, 409, 429, 5xx), or when
        the server asks for a wait of minutes. Raises LakeError when nothing can be answered: nothing is at the address,
        or it refuses the key or the model.
        """
        reason = ""
        for _ in range(self._tries):
            found, reason = read(self._send(path, body))
            if found is not None:
                return found
        raise Unanswered(reason)

    def models(self) -> dict[str, str]:
        """The models that the server lists, each with whose it says it is; none where it lists none."""
        try:
            listed = self._send("models", None).json()["data"]
            return {str(one["id"]): str(one.get("owned_by") or "") for one in listed}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, Unanswered):
            return {}

    def _send(self, path: str, body: dict[str, Any] | None) -> "Response":
        if self._stopped.is_set():
            raise Unanswered("stopped before it was asked")
        optional = dict(self._optional)
        how: dict[str, Any] = {"cast_to": self._response, "options": {"headers": self._headers}}
        try:
            if body is None:
                return self._client.get(f"/{path}", **how)
            response = self._client.post(f"/{path}", body=body | optional, **how)
        except self._errors.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                self.stop()
                said = scrub(str(cause)) or "no connection in time"
                raise _unreached(self._role, self.url, said) from None
            if isinstance(error, self._errors.APITimeoutError):
                raise Unanswered(f"no answer within {self._timeout:g} s") from None
            raise Unanswered(f"connection lost ({scrub(str(cause)) or type(cause).__name__})") from None
        except self._errors.APIStatusError as error:
            refused = [name for name in optional if name in error.response.text]
            if error.status_code not in (400, 422) or not refused:
                raise self._failure(error.response) from None
            self._optional = {name: value for name, value in self._optional.items() if name not in refused}
            return self._send(path, body)
        self._accepted = True
        return response

    def _failure(self, response: "Response") -> Exception:
        """What a status stands for: a LakeError when every question will fail, else Unanswered."""
        status, said = response.status_code, _complaint(response)
        server = f"{self._role} {self.model} at {self.url}"
        if status in HOPELESS:
            self.stop()
            return LakeError(f"{server}: {HOPELESS[status].format(key=KEYS[self._role])} It answers {said}")
        if status in (408, 409, 429) or status >= 500:
            return Unanswered(said)
        # One request may be refused for what is in it; when all are, they are wrong themselves.
        self._refused += 1
        if self._refused >= REFUSED and not self._accepted:
            self.stop()
            return LakeError(f"{server}: it refuses every question with {said}")
        return Unanswered(said)


def check_address(role: str, url: str) -> None:
    """Raise LakeError unless `url` has the form of an address and something listens there; nothing is sent."""
    parts = urlsplit(_checked(role, url))
    try:
        socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), 10).close()
    except OSError as error:
        raise _unreached(role, url, error.strerror or str(error)) from None


def _limited(response: "Response") -> None:
    """Read no more of a response than an answer can have; what is packed although nobody asked for it stays so."""
    from httpx2 import SyncByteStream

    class Limited(SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in stream:
                if (size := size + len(chunk)) > LARGEST:
                    raise Unanswered(f"an answer of more than {LARGEST >> 20} MiB")
                yield chunk

        def close(self) -> None:
            stream.close()

    stream: Any = response.stream
    response.stream = Limited()
    response.headers.pop("Content-Encoding", None)


def _unreached(role: str, url: str, why: str) -> LakeError:
    return LakeError(f"{role} at {url}: can't be reached ({why}); is the server running?")


def _checked(role: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        plain = plain and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        plain = False
    if not plain:
        # The text itself may hold a key, so that it is not shown.
        raise LakeError(
            f"the {role}'s address is not of the form https://HOST/v1; a key belongs into {KEYS[role]}, not into the address"
        )
    return url


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise LakeError(f"{name} holds characters that no key has (a space, a line break, an accent); set it again")
    return key


def scrub(text: str) -> str:
    """The text without the keys, should a server or a model repeat them."""
    for name in KEYS.values():
        if key := os.environ.get(name, "").strip():
            text = text.replace(key, "***")
    return text


def short(text: str) -> str:
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
    return f"status {response.status_code}: {short(str(text))}".removesuffix(": ")


def _content(response: "Response") -> tuple[str | None, str]:
    """The text of the first choice; None and why for a body of another shape, or a question that the judge declines."""
    try:
        choice: Any = response.json()["choices"][0]
        message = choice["message"]
        content, declined = message["content"], message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, f"not a chat completion: {short(response.text)}"
    if declined or choice.get("finish_reason") == "content_filter":
        return None, f"the judge declined: {short(str(declined or content or ''))}"
    if not isinstance(content, str):
        return None, "the judge answered without text"
    return content, ""
