"""Continuations that an engine behind a server writes: what is captured is what it wrote, nothing is asked for twice, and what
a broken or hostile server answers is one line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving
import tiny
import torch
from actlake.capture.model.load import Model, load_model
from actlake.exchange import client
from actlake.exchange.server import NO_IDS, Server
from actlake.lake import Lake
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout

NEW = 5
QUICK = {"timeout": 20.0, "workers": 3}
Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def greedy(llama: PairSpec) -> Answer:
    """An engine that writes what the tiny model would, by the textbook's loop, and returns token ids."""
    model: Model = load_model(llama.model("it"))
    lock = threading.Lock()

    @torch.no_grad()
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor([body["prompt"]])
        with lock:
            while (len(ids[0]) - len(body["prompt"]) < body["max_tokens"]) and int(ids[0, -1]) != tiny.EOS:
                ids = torch.cat([ids, model.hf(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        return completion(body["prompt"], ids[0, len(body["prompt"]) :].tolist())

    return answer


def completion(prompt: Any, written: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "", "prompt_token_ids": prompt, "token_ids": written, **more}]}


@pytest.fixture
def here(tmp_path: Path, llama: PairSpec) -> Lake:
    """A lake whose catalog has the tiny pair."""
    lake = Lake(Layout.open(tmp_path / "lake", create=True))
    lake.__dict__["catalog"] = tiny.catalog_of(llama)
    return lake


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, _, text in tiny.TEXTS))
    return file


def take(lake: Lake, server: Server, prompts: Path, names: str = "llama/it", **more: Any) -> Any:
    return lake.capture(names, prompts=str(prompts), max_new_tokens=NEW, server=server, batch=4, **more)


def test_what_the_engine_wrote_is_captured(
    here: Lake, prompts: Path, greedy: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A greedy engine writes what the model here does; a sampled token is counted; settings and segments are in the record."""
    (own,) = here.capture("llama/it", prompts=str(prompts), max_new_tokens=NEW, batch=4)
    capsys.readouterr()
    with serving.Engine(greedy) as engine:
        asked = Server(engine.url, "llama", "vllm 0.27", temperature=0.0, seed=3, **QUICK)
        (result,) = take(here, asked, prompts)
        assert "0 of 30 written tokens (0.0%) are not the model's own greedy choice" in capsys.readouterr().err
        assert len(engine.asked) == len(tiny.TEXTS) and engine.most <= 3
        sent = {key: value for key, value in engine.bodies[0].items() if key != "prompt"}
        assert sent == {
            "model": "llama", "max_tokens": NEW, "temperature": 0.0, "top_p": 1.0, "seed": 3, "return_token_ids": True, "top_k": -1,
            "min_p": 0.0, "repetition_penalty": 1.0,
        }  # fmt: skip
        assert take(here, asked, prompts)[0].reused and len(engine.asked) == len(tiny.TEXTS)
    mine, theirs = (here.dataset("llama-it", one.path.stem) for one in (own, result))
    for name in ("token_id", "step", "segment", "turn"):
        assert mine[name].values.tolist() == theirs[name].values.tolist(), name
    record = json.loads((here.layout.streams / f"{result.path.stem}.json").read_text())
    assert len(record["keys"]) == 2  # of equal content: one stream with two recipes

    def sampled(body: dict[str, Any]) -> dict[str, Any]:
        found = greedy(body)
        found["choices"][0]["token_ids"][-1] = (found["choices"][0]["token_ids"][-1] + 1) % 200 + 5
        return found

    with serving.Engine(sampled) as engine:
        (result,) = take(here, Server(engine.url, engine="vllm 0.27", temperature=0.7, **QUICK), prompts)
    assert "6 of 30 written tokens (20.0%) are not" in capsys.readouterr().err
    recipe = json.loads((here.layout.streams / f"{result.path.stem}.json").read_text())["recipe"]
    assert recipe["server_url"] == engine.url and "batch" not in recipe["continuation"]
    assert recipe["continuation"]["server"] == {
        "served": engine.bodies[0]["model"], "engine": "vllm 0.27", "from_text": False,
        "settings": {"temperature": 0.7, "top_p": 1.0, "seed": None, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    }  # fmt: skip
    with serving.Engine(greedy) as engine:  # the base model reads what the engine wrote for the other one
        both = take(here, Server(engine.url, "x", **QUICK), prompts, "llama", streams="teacher")
        assert len(both) == 2 and len(engine.asked) == len(tiny.TEXTS)


CATALOG = "models: {{llama-it: {{path: {}}}}}\n"


def command(tmp_path: Path, llama: PairSpec, prompts: Path, url: str, *more: str) -> list[str]:
    (tmp_path / "c.yaml").write_text(CATALOG.format(llama.model("it").path))
    words = ["capture", "llama-it", "--prompts", str(prompts), "--max-new-tokens", str(NEW), "--server", url]
    return [*words, "--lake", str(tmp_path / "lake"), "--catalog", str(tmp_path / "c.yaml"), *more]


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.sweep)])
def test_nothing_is_asked_for_twice(
    tmp_path: Path, llama: PairSpec, prompts: Path, greedy: Answer, how: signal.Signals
) -> None:
    """Killed: what was answered stays. Interrupted: what was under way is waited for and kept, too."""
    gate, reached = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if len(engine.asked) == 4:
            reached.set()
            gate.wait(60)
        return greedy(body)

    with serving.Engine(answer) as engine:
        run = command(tmp_path, llama, prompts, engine.url, "--workers", "1")
        started = [sys.executable, "-m", "actlake", *run]
        process = subprocess.Popen(started, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert reached.wait(120)
        os.kill(process.pid, how)
        if how == signal.SIGINT:
            time.sleep(0.5)
            gate.set()
        said = process.communicate(timeout=120)[1]
        gate.set()
        assert process.returncode != 0 and "Traceback" not in said, said
        assert ("waiting for the answers under way" in said) == (how == signal.SIGINT)
        done = subprocess.run(started, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert len(engine.asked) == len(tiny.TEXTS) + (how == signal.SIGKILL)  # the one that was under way
    there = Layout.open(tmp_path / "lake")
    assert not [*there.streams.glob(".*.parts")]


def test_half_a_line_that_a_kill_left_is_asked_for_again(here: Lake, prompts: Path, greedy: Answer) -> None:
    calls = 0

    def answer(body: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        return greedy(body) if calls <= 3 else (400, b"no more today")

    with serving.Engine(answer) as engine:
        asked = Server(engine.url, "x", workers=1)
        with pytest.raises(
            LakeError, match=r"3 of 6 answers are there and kept; .*: status 400: no more today.*same command"
        ):
            take(here, asked, prompts)
        (file,) = here.layout.streams.glob(".*.parts/answers.jsonl")
        file.write_bytes(file.read_bytes()[:-4])
        calls = -100
        (result,) = take(here, asked, prompts)
        assert len(engine.asked) == 3 + 3 + 4
    assert result.sealed and all(report.ok for report in here.verify())


def odd(change: Callable[[list[int], list[int]], Any]) -> Callable[[Answer], Answer]:
    """An engine whose answers are changed, given the prompt and the ids it wrote."""

    def made(greedy: Answer) -> Answer:
        return lambda body: change(body["prompt"], greedy(body)["choices"][0]["token_ids"])

    return made


HOSTILE: dict[str, tuple[Callable[[list[int], list[int]], Any], str]] = {
    "no ids": (lambda p, w: {"choices": [{"text": "hello"}]}, NO_IDS),
    "null": (lambda p, w: completion(p, None), NO_IDS),
    "refuses the field": (lambda p, w: (422, b'{"detail": "Unexpected fields: return_token_ids"}'), NO_IDS),
    "out of the vocabulary": (lambda p, w: completion(p, [10**6]), "token id 1000000 names no token of llama-it"),
    "beyond 64 bits": (lambda p, w: completion(p, [10**30]), "token ids too large"),
    "negative": (lambda p, w: completion(p, [-3]), "ids from -3 to -3: expected token ids from 0"),
    "floats": (lambda p, w: completion(p, [1.0]), "expected a list of token ids, whole numbers"),
    "true": (lambda p, w: completion(p, [True]), "expected a list of token ids, whole numbers"),
    "text": (lambda p, w: completion(p, "9\x1b[31m"), "expected a list of token ids, whole numbers"),
    "another prompt": (lambda p, w: completion(p[::-1], w), "answers to other prompt_token_ids than it was sent"),
    "no prompt": (lambda p, w: {"choices": [{"text": "", "token_ids": w}]}, "answers to other prompt_token_ids"),
    "two answers": (lambda p, w: {"choices": completion(p, w)["choices"] * 2}, "2 answers: expected one"),
    "too long": (lambda p, w: completion(p, [9] * (NEW + 1)), "6 tokens: expected 5 at most"),
    "truncated": (lambda p, w: (200, json.dumps(completion(p, w)).encode()[:-9]), "not a completion: {"),
    "deep": (lambda p, w: (200, b"[" * 9000), "not a completion: [["),
    "empty": (lambda p, w: {"choices": []}, "not a completion: {"),
    "a list": (lambda p, w: (200, b"[1]"), "not a completion: [1]"),
    "huge": (lambda p, w: (200, b" " * 70_000), "an answer of more than 0 MiB"),
    "page": (lambda p, w: (200, b"<html>\n<b>\x1b[2J"), "not a completion: <html> <b>?[2J"),
    "elsewhere": (lambda p, w: (404, b'{"message": "The model `x` does not exist."}'), "are the address and the model's name"),
    "key": (lambda p, w: (401, b"who are you, sk-secret?"), "is ACTLAKE_ENGINE_KEY right? It answers status 401: who are you, ***"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_hostile_server_answers_is_one_line(
    here: Lake, prompts: Path, greedy: Answer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = HOSTILE[name]
    monkeypatch.setenv("ACTLAKE_ENGINE_KEY", "sk-secret")
    monkeypatch.setattr(client, "LARGEST", 1 << 16)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with serving.Engine(odd(change)(greedy)) as engine:
        with pytest.raises(LakeError) as refused:
            take(here, Server(engine.url, "x", **QUICK), prompts)
        assert engine.headers[0]["authorization"] == "Bearer sk-secret"
    said = str(refused.value)
    assert words in said and "\n" not in said and "\x1b" not in said and "sk-secret" not in said, said
    assert not [*here.layout.streams.glob("*.json")]


def test_a_server_that_answers_nothing_ends_soon(here: Lake, tmp_path: Path, greedy: Answer) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"id": str(i), "text": f"the cat {i}"}) + "\n" for i in range(60)))
    with serving.Engine(lambda body: (400, b"no")) as engine:
        with pytest.raises(LakeError, match="it refuses every question with status 400: no"):
            take(here, Server(engine.url, "x", workers=1), many)
        assert len(engine.asked) < 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1", "--server", ""), "is not of the form https://HOST/v1; a key belongs into ACTLAKE_ENGINE_KEY"),
        (("--server", "http://user:pw@host/v1"), "engine's address is not of the form"),
        (
            ("--server", f"http://127.0.0.1:{serving.free_port()}/v1"),
            "can't be reached ([Errno 111] Connection refused)",
        ),
        (("--temperature", "1"), "only with --server"),
        (("--server", "http://h/v1", "--rank", "0", "--world", "2"), "--server: one process asks the engine"),
        (
            ("--server", "http://h/v1", "pocket/pt"),
            "an engine serves one model, and these streams want text of pocket-it and",
        ),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, command_line: Callable[..., tuple[int, str, str]], words: tuple[str, ...], said: str
) -> None:
    code, _, err = command_line("capture", "pocket/it", "--limit", "1", "--lake", str(tmp_path / "lake"), *words)
    assert code == 2 and said in err and "Traceback" not in err, err


@pytest.mark.sweep
def test_transformers_serve_returns_text_alone(
    tmp_path: Path, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    """It is refused without --from-text; with it the tokens are those that the model here writes, but for the stop token."""
    lake = tmp_path / "lake"
    with serving.pocket(tmp_path / "log.txt") as url:
        words = ("capture", "pocket/it", "--limit", "6", "--max-new-tokens", "12", "--lake", str(lake))
        asking = (*words, "--server", url, "--served", serving.POCKET.name)
        code, _, err = command_line(*asking)
        assert code == 2 and "returns no token ids; vLLM" in err and "--from-text" in err, err
        code, out, err = command_line(*asking, "--from-text")
        assert code == 0 and "are not the model's own greedy choice" in err, err
    theirs = Path(out.split(": ")[0]).stem
    code, out, err = command_line(*words)
    mine = Path(out.split(": ")[0]).stem
    tables = [Lake(lake).tokens("pocket-it", stream) for stream in (mine, theirs)]
    for prompt in range(6):
        own, other = (
            table.loc[(table["prompt"] == prompt) & table["is_continuation"], "token_id"].tolist() for table in tables
        )
        assert other and own[: len(other)] == other and len(own) - len(other) <= 1


def test_text_that_no_tokens_decode_to_is_refused(here: Lake, prompts: Path) -> None:
    """Text is read by the model's own tokenizer; half a character at the end is cut off, and what does not come back is refused."""
    said = ["the mat \ufffd", "dog", " cat", "", "雨", "a<b"]
    texts = iter(said)
    with serving.Engine(lambda body: {"choices": [{"text": next(texts)}]}) as engine:
        (result,) = take(here, Server(engine.url, "x", workers=1, from_text=True), prompts)
        sent = engine.asked
    table = here.tokens("llama-it", result.path.stem)
    whole = tiny.tokenizer()
    for number, (prompt, text) in enumerate(zip(sent, said, strict=True)):
        ids = table.loc[table["prompt"] == number, "token_id"].tolist()
        assert whole.decode(ids) in (prompt + text.rstrip("\ufffd"), whole.bos_token + prompt + text.rstrip("\ufffd"))
    for answer, words in (
        ({"text": "x", "usage": 1}, None),
        ({"text": 5}, "not a completion"),
        ({"text": "the cat " * 9}, "tokens: expected 5 at most"),
    ):
        with serving.Engine(lambda body, found=answer: {"choices": [found]}) as engine:
            asked = Server(engine.url, str(words), workers=1, from_text=True)
            if words:
                with pytest.raises(LakeError, match=words):
                    take(here, asked, prompts, limit=1)
            else:
                take(here, asked, prompts, limit=1)
    usage = {"prompt_tokens": 99}
    words = r"read the prompt as 99 tokens: expected \d+, as this tokenizer has it"
    with (
        serving.Engine(lambda body: {"choices": [{"text": "x"}], "usage": usage}) as engine,
        pytest.raises(LakeError, match=words),
    ):
        take(here, Server(engine.url, "y", workers=1, from_text=True), prompts)
