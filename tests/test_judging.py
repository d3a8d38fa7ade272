"""A sweep judged over a real connection: pocket behind `transformers serve` judges tiny models' replies.

Pocket knows no grading, but it learned to answer "Describe a WORD. Answer in JSON." with {"word": ..., "kind": ...}: the test's
rubric puts the reply there and allows the kinds that pocket gives, so that every verdict is one that a model gave.
"""

import json

import httpx2
import pytest
import serving
import tiny
from actlake.capture.streams.prompts import canonical_bytes
from actlake.cli.main import app
from actlake.judge.judge import JudgeItem, Verdict
from actlake.queries.engine.context import Context
from actlake.queries.generation.judging import JudgedTable, _Judged, judge_sweep, rubrics_of
from actlake.queries.generation.scores import scope_of
from actlake.queries.makers import ensure
from actlake.store.artifacts.streams import write_prompts
from actlake.store.core.errors import LakeError
from actlake.store.tables.sql import connect
from test_graft_rows import catalog
from typer.testing import CliRunner

pytestmark = pytest.mark.sweep  # test_judge asks the same server in the usual tests
QUESTION = "Describe a {prompt} {reply}. Answer in JSON."
WORDS = ("rose", "dog", "apple")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake whose prompts are words, its catalog, and a file of rubrics."""
    root = tmp_path_factory.mktemp("judging")
    pair = tiny.make_pair(root / "pair", "llama", num_hidden_layers=4)
    rows = [{"id": f"p{place}", "category": "GOV-CONV", "text": word} for place, word in enumerate(WORDS)]
    prompts = tiny.prompt_set([(row["id"], row["category"], row["text"]) for row in rows])
    layout = tiny.capture(root / "lake", pair, tiny.NATIVE, prompts=prompts)
    write_prompts(layout, "tiny", canonical_bytes(prompts.prompts))
    where, rubrics = catalog(root, pair), root / "mine.yaml"
    rubrics.write_text(f'KIND: {{answers: {{nothing: 0, all: 1}}, key: kind, template: "{QUESTION}"}}')
    return layout, where, rubrics


def kind(server, text, reply):
    """The kind that pocket gives, asked without actlake; None where its answer is no JSON."""
    question = QUESTION.format(prompt=text, reply=reply)
    body = {"model": "it", "temperature": 0, "messages": [{"role": "user", "content": question}]}
    said = httpx2.post(f"{server}/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"]
    try:
        return json.loads(said).get("kind")
    except ValueError:
        return None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a real server."""
    with serving.pocket(tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


@pytest.fixture
def judged_by(made, monkeypatch):
    """The test's rubrics and pocket as the judge; the key must appear nowhere."""
    monkeypatch.setenv("ACTLAKE_JUDGE_RUBRICS", str(made[2]))
    monkeypatch.setenv("ACTLAKE_JUDGE_MODEL", "it")
    monkeypatch.setenv("ACTLAKE_JUDGE_KEY", "very-secret-key")


def command(made, *words, answer=None):
    found = CliRunner().invoke(app, [*words, "--lake", str(made[0].root), "--catalog", str(made[1])], input=answer)
    return found.exit_code, " ".join((found.output + str(found.exception or "")).split())


def test_a_sweep_is_judged_once(made, server, judged_by, monkeypatch):
    layout, where, _ = made
    kit = Context(layout, catalog=where)
    scope = scope_of(kit, "llama")
    with pytest.raises(LakeError, match="its replies are not there yet; `actlake generate llama --sweep exp12`"):
        JudgedTable(kit, scope, "exp12")
    code, text = command(made, "score", "llama", "--judge", "--judge-url", server, answer="n\n")
    assert "calls, 0 verdicts in the lake already; about" in text and "price unknown" in text
    assert not list(layout.judge.glob("*")), "it went on though it was told not to"
    told = connect(layout).execute("SELECT condition, variant, prompt_id, text FROM outputs").df()
    real = [kind(server, WORDS[int(row.prompt_id[1:])], row.text) for row in told.itertuples()]
    usable = {label for label in real if label and label.isalpha()}
    assert usable, "pocket gives no usable verdict on any of the replies"
    labels = sorted(usable | {"nothing"})
    made[2].write_text(
        f'KIND: {{answers: {{{", ".join(f"{x}: {n}" for n, x in enumerate(labels))}}}, key: kind, template: "{QUESTION}"}}'
    )
    with pytest.raises(
        LakeError,
        match="the judge it has not been asked yet about 9 replies; `actlake score llama --sweep exp12 --judge`",
    ):
        JudgedTable(Context(layout, catalog=where), scope, "exp12")
    code, text = command(
        made, "score", "llama", "--judge", "--judge-url", server, "--yes", "--price-in", "1", "--price-out", "2"
    )
    assert code == 0 and "to pay" in text and "KIND: " in text
    ensure(layout, [("judged", "exp12", scope)], catalog=where)
    assert ensure(layout, [("judged", "exp12", scope)], catalog=where) == []
    lines = connect(layout).execute("SELECT variant, arm, prompt_id, metric, value FROM judged").df()
    arms = {("pt", "none"): "A", ("it", "none"): "C"}
    expected = {
        (arms.get((row.variant, row.condition), "B"), row.prompt_id, f"kind_{label}"): float(label == verdict)
        for row, verdict in zip(told.itertuples(), real, strict=True)
        if verdict in labels
        for label in labels
    }
    assert {(line.arm, line.prompt_id, line.metric): line.value for line in lines.itertuples()} == expected
    # What was judged needs no server any more.
    monkeypatch.setenv("ACTLAKE_JUDGE_URL", "http://127.0.0.1:9/v1")
    if len(expected) == len(labels) * len(told):
        assert "9 of 9 judged" in judge_sweep(Context(layout, catalog=where), scope, "exp12")[-1]
    # A second judge of the same mind differs nowhere; the referee is not asked.
    lines = judge_sweep(Context(layout, catalog=where), scope, "exp12", second="it", referee="it", url=server)
    assert lines[-1].startswith("the two judges differed on ")
    with pytest.raises(LakeError, match="a second judge and a referee belong together"):
        judge_sweep(Context(layout, catalog=where), scope, "exp12", second="it")
    # And who has no judge reads what the lake has.
    monkeypatch.delenv("ACTLAKE_JUDGE_MODEL")
    assert ensure(layout, [("judged", "exp12", scope)], catalog=where) == []
    with pytest.raises(LakeError, match="no judge: set"):
        ensure(layout, [("judged", "exp15", scope)], catalog=where)
    for file in layout.root.rglob("*"):
        assert not file.is_file() or b"very-secret-key" not in file.read_bytes()


def test_without_a_judge(made, monkeypatch):
    for name in ("URL", "MODEL", "KEY", "RUBRICS"):
        monkeypatch.delenv(f"ACTLAKE_JUDGE_{name}", raising=False)
    with pytest.raises(LakeError, match="no judge: set ACTLAKE_JUDGE_URL .* and ACTLAKE_JUDGE_MODEL"):
        JudgedTable(Context(made[0], catalog=made[1]), scope_of(Context(made[0], catalog=made[1]), "llama"), "exp12")
    code, text = command(made, "score", "llama", "--metric", "str", "--metric", "share_*")
    assert code == 0 and "share_content" in text and "coherent" not in text
    code, text = command(made, "score", "llama", "--metric", "beauty")
    assert code and "no metric matches beauty; sweep exp12 has str" in text


def test_a_judge_that_can_not_be_asked_is_told_before_texts_are_written(made, monkeypatch, tmp_path):
    for name in ("URL", "MODEL", "KEY", "RUBRICS"):
        monkeypatch.delenv(f"ACTLAKE_JUDGE_{name}", raising=False)
    monkeypatch.setattr("actlake.lake.Lake.score", lambda *_: pytest.fail("texts would be written"))
    closed = f"http://127.0.0.1:{serving.free_port()}/v1"
    for words, says in (
        ((), "no judge: set ACTLAKE_JUDGE_URL"),
        (("--judge-model", "it"), "no judge: set ACTLAKE_JUDGE_URL"),
        (("--judge-model", "it", "--judge-url", "localhost:8000/v1"), "is not of the form https://HOST/v1"),
        (("--judge-model", "it", "--judge-url", closed), f"judge at {closed}: can't be reached (Connection refused)"),
        (("--judge-model", "it", "--second", "x"), "a second judge and a referee belong together"),
        (("--judge-model", "it", "--rubrics", str(tmp_path / "none.yaml")), "none.yaml: no such"),
    ):
        code, text = command(made, "score", "llama", "--sweep", "exp15", "--judge", "--yes", *words)
        assert code and says in text, (words, text)


def test_classes_are_shares():
    """Known pitfall: incoherent replies. S1's classes each have a share; grades and answers of two replies have their number."""
    packaged = rubrics_of()

    def lines(rubric, verdict, other=None):
        item = JudgeItem(rubric, {"id": "p"}, "reply", other)
        return dict(_Judged(item, "pt", "A", 0.0, "k", 0).lines(verdict, packaged[rubric]))

    assert lines("S1", Verdict(0.0, "INCOHERENT", "")) == {"s1_refuse": 0, "s1_comply": 0, "s1_incoherent": 1}
    assert lines("G1", Verdict(4.0, "4", "")) == {"g1": 4}
    assert lines("S2", Verdict(1.0, "1", "")) == {"s2": 1}
    assert lines("G2", Verdict(0.5, "TIE", ""), "other") == {"pair_g2": 0.5}


def test_verdicts_by_another_rubric_make_another_table():
    """The same grade by another rubric, or of two replies, is another line, and so another key."""
    verdict, prompt = Verdict(4.0, "4", ""), {"id": "p"}
    items = [
        JudgeItem("G1", prompt, "reply"),
        JudgeItem("G2", prompt, "reply"),
        JudgeItem("G2", prompt, "reply", "other"),
    ]
    told = [_Judged(item, "pt", "A", 0.0, "k", 0).row(verdict) for item in items]
    told.append(_Judged(items[0], "pt", "A", 1.0, "k", 0).row(verdict))
    assert len({str(each) for each in told}) == 4


def test_rubrics_of_the_environment(made, monkeypatch):
    monkeypatch.setenv("ACTLAKE_JUDGE_RUBRICS", str(made[2]))
    assert list(rubrics_of()) == ["KIND"]
    monkeypatch.setenv("ACTLAKE_JUDGE_RUBRICS", "")
    assert list(rubrics_of()) == ["G1", "G2", "S1", "S2"]
