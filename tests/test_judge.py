"""The judge over HTTP: every answer comes from the pocket model behind `transformers serve`, every failure from a door
in front of it (serving.Door) that fails on request and makes up nothing else.

Pocket knows no grading: asked by the packaged rubrics it answers garbage, which is a case of its own. It did learn to answer
"Describe a rose. Answer in JSON." with {"word": ..., "kind": ...}; the rubric KIND takes that kind for a verdict.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import httpx2
import pytest
import serving
import tiny
from actlake.judge.judge import UNJUDGED, Cost, Judge, JudgeItem, Verdict, escalate, summary
from actlake.judge.rubrics import Rubric, pair_swapped, read_rubrics
from actlake.store.artifacts.texts import VerdictStore
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout

KEY = "sk-test-0123456789abcdef"
QUICK = {"timeout": 30.0, "tries": 3}
WORDS = ("dog", "trout", "nurse", "rose", "shirt", "apple", "wolf", "monkey", "sofa", "chair")
RUBRICS = """
KIND:
  answers: {success: 1, superior: 2, sound: 3, satisfaction: 4}
  key: kind
  template: "Describe {prompt} {reply}. Answer in JSON."
  pair_template: "Describe {first}{second}{prompt}. Answer in JSON."
WORD:  # pocket repeats the word: a text to describe that is called b or tie is its verdict on a pair
  answers: [1, 2]
  key: word
  template: "{prompt} {reply}"
  pair_template: "Describe {first}{second}{prompt}. Answer in JSON."
"""
PROMPT = {"id": "p", "text": "a", "category": "GOV-CONV"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the real server."""
    with serving.pocket(tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No judge is configured unless a test does it."""
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"ACTLAKE_JUDGE_{name}", raising=False)


@pytest.fixture(scope="session")
def rubrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rubric]:
    """KIND and WORD beside the packaged rubrics."""
    file = tmp_path_factory.mktemp("rubrics") / "mine.yaml"
    file.write_text(RUBRICS)
    return {**read_rubrics(), **read_rubrics(file)}


def kinds(*words: str) -> list[JudgeItem]:
    """Items that pocket answers, each another question."""
    return [JudgeItem("KIND", PROMPT, word) for word in words]


def told(server: str, question: str) -> dict[str, str]:
    """What pocket answers, asked without actlake."""
    message = {"role": "user", "content": question}
    body = {"model": "it", "temperature": 0, "messages": [message]}
    return json.loads(
        httpx2.post(f"{server}/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"]
    )


def test_verdicts_are_what_the_model_said(lake: Layout, server: str, rubrics: dict[str, Rubric]) -> None:
    items, done = kinds(*WORDS), []
    verdicts = Judge(lake, rubrics, server, "it", timeout=30.0, tries=1).judge([*items, items[0]], done.append)
    assert sum(done) == 11 and verdicts[10] == verdicts[0]
    answers = rubrics["KIND"].answers
    for word, verdict in zip(WORDS, verdicts, strict=False):
        said = told(server, f"Describe a {word}. Answer in JSON.")["kind"]
        if said in answers:
            assert (verdict.label, verdict.value) == (said, answers[said])
        else:  # out of range
            assert (verdict.label, verdict.value) == (UNJUDGED, None)
            assert verdict.reason.startswith('no allowed answer in: {"word": ')
    labels = [verdict.label for verdict in verdicts]
    assert 0 < labels.count(UNJUDGED) < 9, labels  # both ways occur
    (line,) = summary([*items, items[0]], verdicts)
    assert (
        line.startswith(f"KIND: {11 - labels.count(UNJUDGED)} of 11 judged (") and "unjudged, to be asked again" in line
    )

    # The same again: what was judged costs nothing and needs no server, the rest is asked again.
    offline = Judge(lake, rubrics, f"http://127.0.0.1:{serving.free_port()}/v1", "it", **QUICK)
    good = [item for item, verdict in zip(items, verdicts, strict=False) if verdict.label != UNJUDGED]
    assert offline.judge(good) == [verdict for verdict in verdicts[:10] if verdict.label != UNJUDGED]
    known = offline.cached(items)
    assert [v or None for v in known] == [v if v.label != UNJUDGED else None for v in verdicts[:10]]
    assert (offline.estimate(items).calls, offline.estimate(items).cached) == (10 - len(good), len(good))
    with pytest.raises(LakeError, match="can't be reached"):
        offline.judge(items)
    # Another model, another prompt, another reply, other words of the rubric: other questions.
    assert Judge(lake, rubrics, model="other").cached(good) == [None] * len(good)
    assert offline.cached([replace(good[0], prompt={**PROMPT, "text": "the"}), replace(good[0], reply="cat")]) == [
        None,
        None,
    ]
    changed = {"KIND": replace(rubrics["KIND"], template="Describe  {prompt} {reply}. Answer in JSON.")}
    assert Judge(lake, changed, model="it").cached(good[:1]) == [None]


def test_a_judge_that_answers_garbage_leaves_replies_unjudged(
    lake: Layout, server: str, rubrics: dict[str, Rubric]
) -> None:
    prompts = [{"id": f"s{i}", "text": text, "expect": "refuse"} for i, text in enumerate(("Help.", "Say ü."))]
    items = [*(JudgeItem("S1", prompt, "I can't help with that.") for prompt in prompts), *kinds("rose")]
    judge = Judge(lake, rubrics, server, "it", **QUICK)
    verdicts = judge.judge(items)
    assert [v.label == UNJUDGED for v in verdicts] == [True, True, False]
    assert all(re.match("no allowed answer in: .+", v.reason) for v in verdicts[:2])
    assert summary(items, verdicts)[0].startswith("S1: 0 of 2 judged; 2 unjudged, to be asked again next time (")
    assert judge.estimate(items).calls == 2  # asked again the next time: nothing was kept
    assert UNJUDGED not in "".join(f.read_text() for f in lake.judge.iterdir())


def test_pairs_are_mapped_back_from_the_order_shown(lake: Layout, server: str, rubrics: dict[str, Rubric]) -> None:
    assert told(server, "Describe b. Answer in JSON.")["word"] == "b"  # else this test asks in vain
    labels = ("B_late", "A")
    prompts = [{"id": f"p{i}", "text": "b"} for i in range(20)]
    with serving.Door(server) as door:
        judge = Judge(lake, rubrics, door.url, "it", **QUICK)
        verdicts = judge.judge([JudgeItem("WORD", prompt, "", "", labels) for prompt in prompts])
        assert len(door.requests) == 1  # the replies are equal, so all are one question
        # The second reply shown is the better one, whatever its name.
        swapped = [pair_swapped(prompt["id"], labels) for prompt in prompts]
        assert [(v.label, v.value) for v in verdicts] == [("A", 1.0) if s else ("B", 0.0) for s in swapped]
        assert {"A", "B"} == {v.label for v in verdicts}
        turned = judge.judge([JudgeItem("WORD", prompt, "", "", labels[::-1]) for prompt in prompts])
        assert [v.value + t.value for v, t in zip(verdicts, turned, strict=True)] == [1.0] * 20
        tie = judge.judge([JudgeItem("WORD", {"id": "p0", "text": "TIE"}, "", "", labels)])
        assert (tie[0].label, tie[0].value) == ("TIE", 0.5)
    with pytest.raises(LakeError, match="rubric G1 has no pair_template"):
        judge.estimate([JudgeItem("G1", PROMPT, "a", "b")])


def test_the_key_comes_from_the_environment_and_stays_there(
    lake: Layout,
    server: str,
    rubrics: dict[str, Rubric],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("ACTLAKE_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = (400, {}, f"bad header Bearer {KEY}")
    with serving.Door(server, echo, None, (401, {}, f'{{"error": "Incorrect API key: {KEY}"}}')) as door:
        judge = Judge(lake, rubrics, door.url, "it", **QUICK, workers=1)
        verdicts = judge.judge(kinds("dog", "rose"))
        assert {request[1]["authorization"] for request in door.requests} == {f"Bearer {KEY}"}
        with pytest.raises(LakeError, match=r"is ACTLAKE_JUDGE_KEY right\? It answers status 401") as caught:
            judge.judge(kinds("dog", "rose", "trout"))
    assert "bad header Bearer ***" in verdicts[0].reason and verdicts[1].label == "success"
    shown = [str(caught.value), repr(judge), repr(verdicts), caplog.text, *map(str, vars(judge).values())]
    shown += [data.decode() for data in tiny.tree(lake.root).values()]
    assert not any(KEY in text for text in shown) and "\n" not in str(caught.value)
    monkeypatch.setenv("ACTLAKE_JUDGE_KEY", "sk-täst\nx")
    with pytest.raises(LakeError, match="ACTLAKE_JUDGE_KEY holds characters") as caught:
        judge.judge(kinds("dog"))
    assert "sk-t" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_refusal_for_good_stops_at_once_and_keeps_what_was_judged(
    lake: Layout, server: str, rubrics: dict[str, Rubric], status: int
) -> None:
    items = kinds("rose", "apple", "dog", "wolf")
    with serving.Door(server, None, *[(status, {"Location": "/"}, "no\nentry")] * 9) as door:
        judge = Judge(lake, rubrics, door.url, "it", **QUICK, workers=1)
        with pytest.raises(LakeError, match=rf"judge it at {door.url}: .*\? It answers status {status}: no entry$"):
            judge.judge(items)
        assert len(door.requests) == 2
    assert [v is None for v in Judge(lake, rubrics, model="it").cached(items)] == [False, True, True, True]


def test_waits_for_as_long_as_the_server_asks(lake: Layout, server: str, rubrics: dict[str, Rubric]) -> None:
    with serving.Door(server, (429, {"Retry-After": "1"}, "slow down"), (503, {}, "")) as door:
        judge = Judge(lake, rubrics, door.url, "it", **QUICK)
        assert judge.judge(kinds("rose"))[0].label == "success"
        first, second, third = (request[0] for request in door.requests)
        assert 1 <= second - first < 3 and third - second < 2
    date = formatdate(time.time() + 2.5, usegmt=True)  # whole seconds
    with serving.Door(server, (429, {"Retry-After": date}, ""), (429, {"Retry-After": "soon"}, ""), None) as door:
        Judge(lake, rubrics, door.url, "it", **QUICK).judge(kinds("wolf"))
        first, second, third = (request[0] for request in door.requests[:3])
        assert second - first > 0.5 and third - second < 2
    with serving.Door(server, (429, {"Retry-After": "3600"}, "come back tomorrow")) as door:
        (verdict,) = Judge(lake, rubrics, door.url, "it", **QUICK).judge(kinds("apple"))
        assert verdict == Verdict(None, UNJUDGED, "status 429: come back tomorrow") and len(door.requests) == 1


def test_failures_that_last_leave_the_item_unjudged_and_the_run_goes_on(
    lake: Layout, server: str, rubrics: dict[str, Rubric]
) -> None:
    chat = '{"choices": [{"message": {"content": null, "refusal": "no"}}]}'
    failures = [
        *[(500, {}, "oops")] * 3,
        0.0,  # asked again, which leaves three garbled answers
        (200, {}, "<html>"),
        (200, {}, "{}"),
        (200, {}, "[" * 3000),
        *[(200, {}, chat)] * 3,
        (413, {}, "big"),
    ]
    with serving.Door(server, *failures) as door:
        judge = Judge(lake, rubrics, door.url, "it", **QUICK, workers=1)
        verdicts = judge.judge(kinds("dog", "apple", "wolf", "trout", "rose"))
        assert len(door.requests) == len(failures) + 1
    reasons = ["status 500: oops", "not a chat completion: [[[", "the judge declined: no", "status 413: big"]
    assert all(v.reason.startswith(reason) for v, reason in zip(verdicts[:4], reasons, strict=True))
    assert [v.label for v in verdicts] == [UNJUDGED] * 4 + ["success"]
    with serving.Door(server, 1.0, 1.0) as door:
        quick = Judge(lake, rubrics, door.url, "it", timeout=0.2, tries=2)
        assert quick.judge(kinds("dog")) == [Verdict(None, UNJUDGED, "no answer within 0.2 s")]


def test_a_server_that_refuses_the_request_itself(lake: Layout, server: str, rubrics: dict[str, Rubric]) -> None:
    refusals = (400, {}, "unknown field response_format"), (422, {}, "'max_tokens' is not supported")
    with serving.Door(server, *refusals) as door:
        judge = Judge(lake, rubrics, door.url, "it", timeout=30.0, tries=1, workers=1)
        assert judge.judge(kinds("rose"))[0].label == "success"
        sent = [set(json.loads(body)) for _, _, body in door.requests]
        always = {"model", "temperature", "messages"}
        assert sent == [always | {"response_format", "max_tokens"}, always | {"max_tokens"}, always]
    # The real server knows one model only, and says so with a status that could be about a single question.
    with pytest.raises(
        LakeError, match=r"judge that at http.*: it refuses every question with status 400: Server is pinned to 'it'"
    ):
        Judge(lake, rubrics, server, "that", **QUICK).judge(kinds(*map(str, range(50))))


def test_a_server_without_a_key_gets_none_and_the_client_is_asked_for(
    lake: Layout, server: str, rubrics: dict[str, Rubric], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # another's: the openai client would take it
    with serving.Door(server) as door:
        Judge(lake, rubrics, door.url, "it", **QUICK).judge(kinds("rose"))
        assert len(door.requests) == 1 and not any(KEY in str(request) for request in door.requests)
        assert "authorization" not in door.requests[0][1]
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LakeError, match=r"pip install 'actlake\[judge\]'"):
        Judge(lake, rubrics, "http://127.0.0.1:1/v1", "it").judge(kinds("dog"))


def test_what_judging_needs_is_said_in_one_line(
    lake: Layout, rubrics: dict[str, Rubric], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LakeError, match="set ACTLAKE_JUDGE_URL .* and ACTLAKE_JUDGE_MODEL, and ACTLAKE_JUDGE_KEY if"):
        Judge(lake, rubrics)
    monkeypatch.setenv("ACTLAKE_JUDGE_MODEL", "it")
    judge = Judge(lake, rubrics)
    assert judge.judge([]) == [] and judge.cached(kinds("rose")) == [None]
    with pytest.raises(LakeError, match="set ACTLAKE_JUDGE_URL"):
        judge.judge(kinds("rose"))
    with pytest.raises(LakeError, match="unknown rubric 'KINDS': known are .* did you mean 'KIND'"):
        judge.cached([JudgeItem("KINDS", PROMPT, "")])
    for url in (
        "localhost:8000/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        "https://",
        "http://a:99999/v1",
        "ftp://a/",
        "http://a:x/v1",
    ):
        monkeypatch.setenv("ACTLAKE_JUDGE_URL", url)
        with pytest.raises(LakeError, match="is not of the form https://HOST/v1") as caught:
            Judge(lake, rubrics).judge(kinds("rose"))
        assert KEY not in str(caught.value)


def test_cost_is_known_before(lake: Layout, rubrics: dict[str, Rubric]) -> None:
    judge = Judge(lake, rubrics, model="it", price_in=2.0, price_out=10.0)
    items = kinds("rose", "apple", "rose")
    give(judge, items[1], "sound")
    # "Describe a rose. Answer in JSON." is 32 characters.
    cost = Cost(calls=1, cached=1, tokens_in=8, tokens_out=60, price=(8 * 2 + 60 * 10) / 1e6)
    assert judge.estimate(items) == cost
    assert "1 calls, 1 verdicts in the lake already; about 8 tokens in and 60 out (at 4 characters a token)" in str(
        cost
    )
    assert Judge(lake, rubrics, model="it", price_in=2.0).estimate(items).price is None


def give(judge: Judge, item: JudgeItem, answer: str) -> None:
    """Put a verdict in the judge's lake as if the model had answered so."""
    known = {"key": judge._question(item).key, "answer": answer, "reason": "", "rubric": item.rubric}
    store = VerdictStore(judge._store.folder)
    store.add(known)
    store.flush()


def test_referee_decides_where_two_judges_differ(tmp_path: Path) -> None:
    # (rubric, bulk, second, referee, final); None: no verdict in the lake, and without an address asking is an error.
    cases = [
        ("G1", "3", "3", None, "3"),
        ("G1", "3", "4", None, "3"),
        ("G1", "4", "2", "1", "1"),
        ("G2", "5", "1", "3", "3"),
        ("S1", "REFUSE", "REFUSE", None, "REFUSE"),
        ("S1", "COMPLY", "INCOHERENT", "REFUSE", "REFUSE"),  # equal values, other labels
        ("S2", "0", "1", "1", "1"),
        ("S2", "1", "1", None, "1"),
    ]
    lake = Layout.open(tmp_path / "lake", create=True)
    judges = [Judge(lake, model=name) for name in ("bulk", "second", "referee")]
    items = [JudgeItem(case[0], PROMPT, f"reply {i}") for i, case in enumerate(cases)]
    for item, case in zip(items, cases, strict=True):
        for judge, answer in zip(judges, case[1:4], strict=True):
            if answer is not None:
                give(judge, item, answer)
    final, referee = escalate(items, *judges)
    assert [v.label for v in final] == [case[4] for case in cases]
    assert [v.label if v else None for v in referee] == [case[3] for case in cases]
    for judge, place in zip(judges[:2], (1, 2), strict=True):
        assert [v.label for v in judge.judge(items)] == [case[place] for case in cases]


def test_escalation_goes_on_without_some_verdicts(lake: Layout, server: str, rubrics: dict[str, Rubric]) -> None:
    # Bulk gets garbage from the first question on, and the referee (another lake, the same model) as well.
    items = [JudgeItem("G1", PROMPT, "reply"), *kinds("rose")]
    bulk, second = (Judge(lake, rubrics, server, "it", timeout=30.0, tries=1) for _ in range(2))
    final, referee = escalate(items, bulk, second, second)
    assert [v.label for v in final] == [UNJUDGED, "success"]
    assert referee[0] is not None and referee[1] is None


RUN = """
import sys
from pathlib import Path
from actlake.judge.judge import JudgeItem, Judge
from actlake.judge.rubrics import read_rubrics
from actlake.store.format.paths import Layout
lake, rubrics, url, *words = sys.argv[1:]
judge = Judge(Layout.open(lake), read_rubrics(rubrics), url, "it", workers=1, part=2)
judge.judge([JudgeItem("KIND", {"id": "p", "text": "a"}, word) for word in words])
"""


@pytest.fixture
def run(lake: Layout, tmp_path: Path):
    """Starts another process that judges words: (url, words) -> the process."""
    (tmp_path / "mine.yaml").write_text(RUBRICS)
    command = [sys.executable, "-c", RUN, str(lake.root), str(tmp_path / "mine.yaml")]
    started = []

    def start(url: str, *words: str) -> subprocess.Popen:
        started.append(subprocess.Popen([*command, url, *words]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def good_words(server: str, rubrics: dict[str, Rubric]) -> list[str]:
    """Words on which pocket's verdict can be used."""
    answers = rubrics["KIND"].answers
    return [word for word in WORDS if told(server, f"Describe a {word}. Answer in JSON.")["kind"] in answers]


def test_a_kill_loses_at_most_one_part(
    lake: Layout, server: str, rubrics: dict[str, Rubric], good_words: list[str], run
) -> None:
    words = good_words
    with serving.Door(server, *[None] * 4, 60.0) as door:  # stands still at the fifth
        process = run(door.url, *words)
        deadline = time.monotonic() + 60
        while len(door.requests) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(door.requests) == 5 and process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        asked = len(door.requests)
    judge = Judge(lake, rubrics, server, "it", **QUICK)
    left = judge.estimate(kinds(*words)).calls
    assert len(words) - 4 <= left <= len(words) - asked + 1 + 2  # under way, and one part
    verdicts = judge.judge(kinds(*words))
    elsewhere = Judge(Layout.open(lake.root.parent / "other", create=True), rubrics, server, "it").judge(kinds(*words))
    assert verdicts == elsewhere and UNJUDGED not in {v.label for v in verdicts}


def test_two_processes_judge_into_one_lake(
    lake: Layout, server: str, rubrics: dict[str, Rubric], good_words: list[str], run
) -> None:
    both = run(server, *good_words[:4]), run(server, *good_words[1:5])
    assert [process.wait(60) for process in both] == [0, 0]
    judge = Judge(lake, rubrics, model="it")
    assert judge.estimate(kinds(*good_words[:5])).calls == 0
    assert all(file.suffix == ".jsonl" for file in lake.judge.iterdir())  # nothing temporary is left


def test_damaged_verdicts_are_named(lake: Layout, rubrics: dict[str, Rubric]) -> None:
    judge = Judge(lake, rubrics, model="it")
    give(judge, kinds("rose")[0], "no kind")
    with pytest.raises(CorruptError, match="'no kind' under [0-9a-f]{64} is no answer of KIND"):
        judge.cached(kinds("rose"))
    (lake.judge / "x.jsonl").write_text('{"key": "a", "answer": "b", "reason": ""}\n{"key"')
    with pytest.raises(CorruptError, match=r"x.jsonl:2: not a verdict; delete the file"):
        Judge(lake, rubrics, model="it").cached([])


def test_nothing_of_the_judge_is_loaded_unless_one_judges() -> None:
    code = "import sys, actlake.cli.main; bad = {f'actlake.judge.{n}' for n in ('judge', 'client', 'agreement')}; assert not bad & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
