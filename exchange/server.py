"""Continuations that an engine behind an OpenAI-compatible server writes: asked for by token ids, each kept as it comes."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..capture.checkpoint.tokens import real_token_mask
from ..capture.run.capture import Result
from ..capture.streams.capture_pair import Options
from ..capture.streams.source import Source
from ..store.core.errors import LakeError
from ..store.core.files import parse_json
from ..store.core.progress import bar, say
from ..store.format.paths import Layout
from .client import REFUSED, Endpoint, Unanswered, short
from .found import ids_of
from .importing import check_known
from .tokens import own_choice, said, whole

if TYPE_CHECKING:
    from httpx2 import Response

# A checkpoint's own settings (generation_config.json) would change what is written; engines that return token ids know these.
PLAIN = {"return_token_ids": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
NO_IDS = (
    "returns no token ids; vLLM (from 0.10.2) and SGLang (from July 2026) do so for /v1/completions. With --from-text its text"
    " is tokenized here"
)


@dataclass(frozen=True)
class Server:
    """An engine that writes continuations, at the address `url` (http://localhost:8000/v1), and how it is asked.

    `served` is the model's name there (None: its repository or folder), `engine` what runs there, for the record. `workers`
    requests are under way at a time, each of at most `timeout` seconds. `from_text`: the engine returns no token ids, its text
    is tokenized by the model's own tokenizer. The key, if it wants one, stands in ACTLAKE_ENGINE_KEY.
    """

    url: str
    served: str | None = None
    engine: str = ""
    temperature: float = 0.0
    seed: int | None = None
    workers: int = 16
    timeout: float = 600.0
    from_text: bool = False

    def recipe(self, source: Source) -> dict[str, Any]:
        """What determines the text, for a stream's recipe."""
        asked = {"temperature": self.temperature, "top_p": 1.0, "seed": self.seed}
        asked |= {} if self.from_text else {key: value for key, value in PLAIN.items() if key != "return_token_ids"}
        names = {"served": self._served(source), "engine": self.engine}
        return {"server": {**names, "settings": asked, "from_text": self.from_text}}

    def write(
        self, source: Source, names: Sequence[str], starts: Sequence[list[int]], most: int, parts: Path
    ) -> list[list[int]]:
        """The continuation of each prompt (its token ids in `starts`, its name in `names`), at most `most` tokens.

        Each answer lies in the folder `parts` as soon as it is there, and is not asked for again. LakeError for a server that
        answers with anything but tokens of the model after the prompt that it was sent, and where prompts stay unanswered.
        """
        file = parts / "answers.jsonl"
        found = _kept(file)
        todo = [index for index in range(len(starts)) if index not in found]
        if not todo:
            return [found[index] for index in range(len(starts))]
        endpoint = Endpoint("engine", self.url, self._served(source), timeout=self.timeout)
        real, lock, failures = real_token_mask(source.tokenizer, source.vocab), Lock(), dict[int, str]()
        parts.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(self.workers)
        with file.open("ab") as kept, bar(f"ask {self.url}", len(starts), "prompts") as progress:

            def ask(index: int) -> None:
                where = f"{names[index]}: engine at {self.url}"
                sent = _as_text(source.tokenizer, starts[index], where) if self.from_text else starts[index]

                def read(response: "Response") -> tuple[list[int] | None, str]:
                    return self._read(response, where, source, starts[index], sent, most, real)

                ids = endpoint.post("completions", self._body(source, sent, most), read)
                with lock:
                    kept.write(json.dumps({"prompt": index, "token_ids": ids}).encode() + b"\n")
                    kept.flush()
                    found[index] = ids

            progress.advance(len(found))
            waiting = {pool.submit(ask, index): index for index in todo}
            try:
                for future in as_completed(waiting):
                    try:
                        future.result()
                    except Unanswered as failure:
                        if any(word in str(failure) for word in PLAIN):  # it knows no such field
                            raise LakeError(f"engine at {self.url}: {NO_IDS} ({failure})") from None
                        failures[waiting[future]] = str(failure)
                        if len(failures) >= REFUSED and not found:
                            break
                    progress.advance(1)
            except KeyboardInterrupt:
                say("waiting for the answers under way, so that they are kept; interrupt again to leave them")
                raise
            finally:
                endpoint.stop()
                pool.shutdown(cancel_futures=True)
                endpoint.close()
        if failures:
            index, reason = min(failures.items())
            raise LakeError(
                f"engine at {self.url}: {len(found):,} of {len(starts):,} answers are there and kept; {names[index]}: {reason}",
                repair="run the same command again: it asks for the others",
            )
        return [found[index] for index in range(len(starts))]

    def _served(self, source: Source) -> str:
        return self.served or str(source.identity["id"])

    def _body(self, source: Source, sent: list[int] | str, most: int) -> dict[str, Any]:
        body = {"model": self._served(source), "prompt": sent, "max_tokens": most, "temperature": self.temperature}
        body |= {"top_p": 1.0} | ({} if self.seed is None else {"seed": self.seed})
        return body if self.from_text else body | PLAIN

    def _read(
        self,
        response: "Response",
        where: str,
        source: Source,
        start: list[int],
        sent: list[int] | str,
        most: int,
        real: np.ndarray,
    ) -> tuple[list[int] | None, str]:
        """The token ids of an answer; None and why for a body of another shape, which may be garbled on the way.

        LakeError for what no second answer would mend: no ids, another prompt, ids that the model lacks, too many of them.
        """
        try:
            body: Any = parse_json(response.content)
            choices = body["choices"]
            choice, text = choices[0], choices[0]["text"]
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            return None, f"not a completion: {short(response.text[:400])}"
        if len(choices) > 1:
            raise LakeError(f"{where}: {len(choices)} answers", expected="one")
        if isinstance(sent, str):
            usage = body.get("usage")
            count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
            if count is not None and count != len(start):
                raise LakeError(
                    f"{where}: read the prompt as {short(str(count))} tokens",
                    expected=f"{len(start)}, as this tokenizer has it",
                )
            written = _tokenized(source.tokenizer, start, sent, text, where)
        else:
            if choice.get("token_ids") is None:
                raise LakeError(f"{where}: {NO_IDS}")
            if choice.get("prompt_token_ids", body.get("prompt_token_ids")) != sent:
                raise LakeError(f"{where}: answers to other prompt_token_ids than it was sent, or says none")
            written = whole(choice["token_ids"], where).tolist()
        if len(written) > most:
            raise LakeError(f"{where}: {len(written):,} tokens", expected=f"{most:,} at most, as --max-new-tokens says")
        if written:
            check_known(ids_of(np.asarray(written), where), real, where, source.name)
        return written, ""


def capture_from(
    server: Server | str, layout: Layout, read: Callable[[Options], list[Result]], options: Options
) -> list[Result]:
    """What `read` captures with these options where a server (or the one at an address) writes continuations.

    Says of each capture how many tokens are not the model's own choice.
    """
    results = read(replace(options, elsewhere=Server(server) if isinstance(server, str) else server))
    for one in results:
        if one.sealed and (how := said(*own_choice(layout, one.path))):
            say(f"{one.path.parent.name}/{one.path.stem}: {how}")
    return results


def _kept(file: Path) -> dict[int, list[int]]:
    """Prompt -> token ids of the answers that are there; what a kill left of a last line is cut off."""
    found = dict[int, list[int]]()
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    for number, line in enumerate(lines):
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            row = parse_json(line)
            found[row["prompt"]] = whole(row["token_ids"], str(file)).tolist()
        except (ValueError, LookupError, TypeError, LakeError):
            with file.open("r+b") as opened:
                opened.truncate(sum(map(len, lines[:number])))
            break
    return found


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _as_text(tokenizer: Any, ids: list[int], where: str) -> str:
    """The text that the tokenizer reads as these tokens, without the BOS that it puts there by itself."""
    text = _decoded(tokenizer, ids)
    for sent in (text, text.removeprefix(tokenizer.bos_token or "")):
        if list(tokenizer(sent)["input_ids"]) == ids:
            return sent
    raise LakeError(f"{where}: no text is read as the tokens of this prompt, so that it can't be sent as text")


def _tokenized(tokenizer: Any, start: list[int], sent: str, text: str, where: str) -> list[int]:
    """The tokens of a text that follows a prompt, such that both together decode to the same text.

    What the length limit left of a last character is cut off.
    """
    text = text.rstrip("\ufffd")
    joined = list(tokenizer(sent + text)["input_ids"])
    apart = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    for ids in (joined, apart):
        if ids[: len(start)] == start and _decoded(tokenizer, ids) == _decoded(tokenizer, start) + text:
            return ids[len(start) :]
    raise LakeError(f"{where}: no tokens decode to its text {short(text[:60])!r}, so that it can't be used")
