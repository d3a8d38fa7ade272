"""Texts in the lake: made once whoever asks, resumed prompt by prompt, readable by SQL, captured like any stream."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from actlake.analyze.text.scores import score
from actlake.capture.checkpoint.tokens import encode
from actlake.capture.run.ranks import Rank
from actlake.capture.streams import free as engine
from actlake.capture.streams.prompts import Prompt
from actlake.capture.streams.streams import steered
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.queries.engine.context import Context
from actlake.queries.generation.generate import plan, setting_of, write
from actlake.queries.generation.models import hosts, steering
from actlake.queries.makers import ensure
from actlake.store.artifacts.directions import read_directions
from actlake.store.artifacts.streams import write_prompts
from actlake.store.captures.reader import Capture, list_captures
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from actlake.store.tables.sql import connect
from actlake.store.tables.streams import pair_streams, same_prompts
from test_graft_rows import catalog
from test_observed_rows import texts
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

NEW = 6
PAIR = {"pt": "llama-pt", "it": "llama-it"}
STEER = "scale:layers=late,direction=d_mean,alpha=-3"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake of a tiny pair on its own and on IT's answers, its catalog, and the pair."""
    root = tmp_path_factory.mktemp("outputs")
    pair = tiny.make_pair(root / "pair", "llama", num_hidden_layers=4)
    tiny.capture(root / "lake", pair, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)))
    return root / "lake", catalog(root, pair), pair


@pytest.fixture
def lake(made, tmp_path):
    """A copy of it that a test may write to."""
    shutil.copytree(made[0], tmp_path / "lake")
    return Layout.open(tmp_path / "lake")


def kit(layout, made, **options):
    return Context(layout, catalog=made[1], **options)


def scope_of(layout):
    return tiny.scope("llama", same_prompts(pair_streams(layout, {"llama": PAIR}), "llama", "native", None), "native")


def prompts_in(made, count=12):
    return tiny.prompt_set(texts(12)[:count])


def test_texts_are_what_hugging_face_says(lake, made):
    """Against generate of the untouched model, and for a steered one against hooks of the test's own."""
    mine = kit(lake, made)
    wanted = [setting_of(mine, "llama", "it", edits, "native") for edits in ([], [STEER])]
    plain, changed = write(plan(mine, "llama", wanted, prompts_in(made), None, NEW, batch=5))
    path = steering(mine, scope_of(lake)).before(wanted[1].edits)[0].path
    d = dict(enumerate(read_directions(path)[0]["d_mean"][:].astype(np.float64)))
    hf = AutoModelForCausalLM.from_pretrained(made[2].it.path).eval()
    real = torch.tensor(
        [name is not None for name in tiny.tokenizer().convert_ids_to_tokens(range(hf.config.vocab_size))]
    )
    assert real.all()

    def says(prompt):
        ids = torch.tensor([encode(tiny.tokenizer(), prompt.text, "chat")])
        out = hf.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=tiny.EOS, pad_token_id=tiny.PAD)
        return out[0, ids.shape[1] :].tolist()

    prompts = prompts_in(made).prompts
    assert [row["token_id"] for row in plain.rows] == [says(prompt) for prompt in prompts]
    for layer in wanted[1].edits[0].layers:
        unit = torch.from_numpy(d[layer] / np.linalg.norm(d[layer]))
        hf.model.layers[layer].mlp.register_forward_hook(
            lambda _m, _i, out, unit=unit: (out.double() - 4 * (out.double() @ unit)[..., None] * unit).float()
        )
    assert [row["token_id"] for row in changed.rows] == [says(prompt) for prompt in prompts]
    assert plain.key != changed.key and plain.rows != changed.rows
    for row in plain.rows:
        assert row["text"] == tiny.tokenizer().decode(row["token_id"], skip_special_tokens=True)
        assert row["ended"] == (row["token_id"][-1] == tiny.EOS) and row["tokens"] == len(row["token_id"])


def test_equal_conditions_are_generated_once(lake, made, monkeypatch):
    """A sweep's baselines, a subset after the whole, the whole after a subset: what is known is not decoded again.

    Of the twelve prompts two have one text.
    """
    decoded = []
    decode = engine.written
    monkeypatch.setattr(
        engine, "written", lambda model, prompts, *rest: decoded.append(len(prompts)) or decode(model, prompts, *rest)
    )

    def run(edits, count):
        mine = kit(lake, made)
        decoded.clear()
        (done,) = write(
            plan(
                mine, "llama", [setting_of(mine, "llama", "it", edits, "native")], prompts_in(made, count), None, NEW, 4
            )
        )
        assert done.generated == sum(decoded)
        return done

    part = run([], 5)
    assert sum(decoded) == 5
    whole = run(["scale:layers=late,direction=d_mean,alpha=1"], 12)
    assert sum(decoded) == 6 and whole.key == part.key and whole.rows[:5] == part.rows
    assert run(["inject:layers=all,direction=random,beta=0"], 8).rows == whole.rows[:8] and not decoded
    run([STEER], 12)
    assert sum(decoded) == 11


def test_a_kill_loses_one_batch_at_most(lake, made, monkeypatch):
    mine = kit(lake, made)
    wanted = [setting_of(mine, "llama", "pt", [], "native")]
    whole = write(plan(mine, "llama", wanted, prompts_in(made), None, NEW, 12))[0].rows
    shutil.rmtree(lake.root / "texts")
    decode, left = engine.written, iter([True, True, False])

    def dies(model, prompts, *rest):
        if not next(left):
            raise KeyboardInterrupt
        return decode(model, prompts, *rest)

    monkeypatch.setattr(engine, "written", dies)
    with pytest.raises(KeyboardInterrupt):
        write(plan(kit(lake, made), "llama", wanted, prompts_in(made), None, NEW, 4))
    monkeypatch.setattr(engine, "written", decode)
    mine = kit(lake, made)
    again = plan(mine, "llama", wanted, prompts_in(made), None, NEW, 3)
    assert again.missing == 3 and again.tokens == 3 * NEW
    (done,) = write(again)
    assert done.generated == 3 and done.rows == whole
    assert not list((lake.root / "texts").rglob(".parts"))


def test_the_key_holds_all_that_matters(lake, made):
    mine = kit(lake, made)

    def key(variant="it", edits=(), template="native", budget=NEW):
        found = plan(
            mine, "llama", [setting_of(mine, "llama", variant, edits, template)], prompts_in(made), None, budget
        )
        return found.distinct[0].condition.key

    keys = [
        key(),
        key("pt"),
        key(template="raw"),
        key(budget=NEW + 1),
        key(edits=[STEER]),
        key(edits=[STEER.replace("-3", "3")]),
        key(edits=["graft:layers=late"]),
        key(edits=["skip:layers=2", "skip:layers=3"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key(template="chat") == key() and key("pt", template="raw") == key("pt")


@pytest.mark.parametrize("name", ["d_mean", "d_conv", "content", "random", "rotated", "d_mean_top", "d_mean_bottom"])
def test_directions_have_norm_one(lake, made, name):
    mine = kit(lake, made)
    edits = [f"scale:layers=all,direction={each},alpha=0" for each in ("d_mean", name)]
    (done,) = write(plan(mine, "llama", [setting_of(mine, "llama", "it", edits, "native")], prompts_in(made), None, 2))
    assert done.generated == 11
    found = steering(mine, scope_of(lake)).vectors((name, 42), range(4))
    assert set(found) == ({0, 1, 2} if name == "d_conv" else {0, 1, 2, 3})
    assert np.allclose([np.linalg.norm(vector) for vector in found.values()], 1)
    mean = steering(mine, scope_of(lake)).vectors(("d_mean", 42), range(4))
    if name == "rotated":
        assert all(abs(found[layer] @ mean[layer]) < 1e-9 for layer in range(4))
    if name == "content":
        first = hosts(mine, "llama").shape().onset
        expected = sum(mean[layer] for layer in range(first))
        assert np.allclose(found[3], expected / np.linalg.norm(expected)) and np.array_equal(found[0], found[3])


def scored():
    """The prompts with fields that scores read; the captures must have been made from the same."""
    rows = texts(12)
    fields = [{"answer": "cat"}, {"criteria": [{"type": "no_commas", "value": True}]}, {"expect": "refuse"}]
    choice = {"choices": ["cat", "dog", "log"], "answer": "dog"}
    return tuple(Prompt(*row, choice if place % 4 == 3 else fields[place % 4]) for place, row in enumerate(rows))


def test_scores_of_a_sweep(tmp_path, made):
    """Every line against the text it is about, read by SQL; nats and choices against Hugging Face."""
    import hashlib

    from actlake.capture.streams.prompts import PromptSet, canonical_bytes

    prompts = scored()
    data = canonical_bytes(prompts)
    chosen = PromptSet("mine", prompts, hashlib.sha256(data).hexdigest())
    layout = tiny.capture(tmp_path / "lake", made[2], tiny.NATIVE, tiny.TEACHER, prompts=chosen)
    scope = scope_of(layout)
    with pytest.raises(LakeError, match="unknown prompt set 'mine'.*the captures read it, and scores need its fields"):
        ensure(layout, [("scores", "exp15", scope)], catalog=made[1])
    write_prompts(layout, "mine", data)
    with pytest.raises(LakeError, match="generating is switched off: `actlake run exp15 --pair llama`"):
        ensure_without(layout, scope, made)
    assert ensure(layout, [("scores", "exp15", scope)], catalog=made[1])
    assert not ensure(layout, [("scores", "exp15", scope)], catalog=made[1])
    frame = connect(layout).execute("SELECT * FROM scores").df()
    told = connect(layout).execute("SELECT * FROM outputs").df().set_index(["key", "prompt_id"])
    (file,) = layout.table("scores").glob("*.parquet")  # the order is the file's: SQL promises none
    assert list(pd.read_parquet(file).groupby("arm", sort=False).size().index) == [
        "A",
        "B_early",
        "B_mid",
        "B_late",
        "C",
        "D_early",
        "D_mid",
        "D_late",
    ]
    assert set(frame["variant"]) == {"pt", "it"} and frame["dose"].isna().all()
    models = {
        v: AutoModelForCausalLM.from_pretrained(made[2].model(v).path, dtype=torch.float64).eval() for v in ("pt", "it")
    }
    lines = frame.set_index(["arm", "prompt_id", "metric"])["value"].sort_index()
    for prompt in prompts:
        row = told.loc[(frame[frame["arm"] == "B_late"]["key"].iloc[0], prompt.id)]
        found = lines.loc["B_late", prompt.id]
        expected = score(
            row["text"], {**prompt.fields, "id": prompt.id, "category": prompt.category, "text": prompt.text}
        )
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert found["tokens"] == row["tokens"] and found["ended"] == row["ended"]
        reply = list(row["token_id"])[: -1 if row["ended"] else None]
        for variant, template in (("pt", "raw"), ("it", "chat")):
            start = encode(tiny.tokenizer(), prompt.text, template)
            if reply:
                labels = torch.tensor([[-100] * len(start) + reply])
                with torch.no_grad():
                    loss = float(models[variant](torch.tensor([start + reply]), labels=labels).loss)
                assert found[f"nll_{variant}"] == pytest.approx(loss, abs=1e-4)
        assert ("choice_generated" in found) == ("choices" in prompt.fields)
        if "choices" in prompt.fields:
            likely = lines.loc["A", prompt.id]["choice_logprob"]
            start = encode(tiny.tokenizer(), prompt.text, "raw")
            nats = []
            for choice in prompt.fields["choices"]:
                tail = tiny.tokenizer()(f" {choice}", add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    z = models["pt"](torch.tensor([start + tail])).logits[0, len(start) - 1 : -1].log_softmax(-1)
                nats.append(float(z[range(len(tail)), tail].sum()))
            assert likely == (prompt.fields["choices"][int(np.argmax(nats))] == "dog")


def ensure_without(layout, scope, made):
    from actlake.queries.makers import jobs_of

    jobs_of(kit(layout, made, generate=False), ("scores", "exp15", scope))


def test_a_steered_text_is_captured_like_any_other(lake, made):
    mine = kit(lake, made)
    (done,) = write(
        plan(mine, "llama", [setting_of(mine, "llama", "it", [STEER], "native")], prompts_in(made), None, NEW)
    )
    stream = steered(lake, made[2], "it", done.key[:6])
    tiny.capture(lake.root, made[2], stream, prompts=prompts_in(made))
    for variant in ("pt", "it"):
        found = list_captures(lake).query(f"model == 'llama-{variant}' and stream.str.startswith('steered')")
        capture = Capture(lake.capture(f"llama-{variant}", found["stream"].iloc[0]))
        token, offset, step = (capture.array(name)[:] for name in ("token_id", "offset", "step"))
        for place, (row, prompt) in enumerate(zip(done.rows, prompts_in(made).prompts, strict=True)):
            ids = token[offset[place] : offset[place + 1]].tolist()
            start = encode(tiny.tokenizer(), prompt.text, "raw" if variant == "pt" else "chat")
            assert ids == start + row["token_id"]
            assert max(step[offset[place] : offset[place + 1]]) == len(row["token_id"]) - 1
    other = tiny.prompt_set((*texts(12)[:3], ("new", "FACT", "a new prompt")))
    with pytest.raises(LakeError, match="has no text for prompt 'new' of set tiny as it is now; `actlake generate`"):
        tiny.capture(lake.root, made[2], stream, prompts=other)
    with pytest.raises(LakeError, match="no condition begins with 'zz'"):
        steered(lake, made[2], "it", "zz")


def command(lake, made, *words):
    found = CliRunner().invoke(app, [*words, "--lake", str(lake.root), "--catalog", str(made[1])])
    return found.exit_code, " ".join((found.output + str(found.exception or "")).split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--edit", "scale:layers=late,direction=d_up,alpha=0"], "unknown direction 'd_up'; expected one of d_mean, d_conv"),
        (["--edit", "scale:layers=9,direction=d_mean,alpha=0"], "no block 9; the model's blocks are 0 to 3"),
        (["--edit", "scale:layers=1,direction=d_mean,alpha=much"], "alpha is 'much', expected a number"),
        (["--sweep", "A9"], "unknown sweep 'A9'; expected one of A1, A1_rand"),
        (["--condition", "nothing"], "unknown condition 'nothing'"),
        (["pocket", "--edit", "none"], "generate takes one pair, found llama, pocket"),
        (["--limit", "3"], "--limit: needs --prompts"),
        (["--prompts", "none.jsonl", "--edit", "none"], "none.jsonl: no such prompt file"),
    ],
)  # fmt: skip
def test_what_is_refused(lake, made, words, says):
    before = tiny.tree(lake.root)
    code, text = command(lake, made, "generate", "llama", *words)
    assert says in text, text
    assert code and tiny.tree(lake.root) == before


def test_the_command(lake, made, tmp_path):
    rows = [{"id": row[0], "category": row[1], "text": row[2]} for row in texts(12)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    words = ["generate", "llama", "--edit", STEER, "--prompts", str(file), "--max-new-tokens", "5", "--limit", "4"]
    code, text = command(lake, made, *words, "--dry-run")
    assert code == 0 and "1 conditions, 1 distinct: 4 texts, 4 to generate, at most 20 tokens" in text
    assert not (lake.root / "texts").exists()
    code, text = command(lake, made, *words, "--show", "1")
    assert code == 0 and "0 of 4 texts were already in the lake" in text
    code, text = command(lake, made, *words, "--json")
    found = json.loads(text)
    assert code == 0 and found["missing"] == 0 and found["conditions"][0]["generated"] == 0
    frame = Lake(lake.root).sql("SELECT condition, count(*) AS n, max(tokens) AS most FROM outputs GROUP BY ALL").df()
    assert frame.values.tolist() == [["scale:layers=2-3,direction=d_mean,alpha=-3,site=mlp", 4, 5]]
    text = next((lake.root / "texts").rglob("texts-*.parquet"))
    about = json.loads(pq.read_schema(text).metadata[b"actlake"])
    assert about["provenance"]["models"]["it"]["sha256"] == about["recipe"]["model"] and about["provenance"]["torch"]
    sealed = next((lake.root / "texts").rglob("condition.json"))
    assert json.loads(sealed.read_text())["recipe"]["max_new_tokens"] == 5


def test_without_captures(tmp_path, made):
    """An edit without a direction needs none; one with a direction says which."""
    layout = Layout.open(tmp_path / "lake", create=True)
    mine = kit(layout, made)
    (done,) = write(
        plan(
            mine, "llama", [setting_of(mine, "llama", "pt", ["graft:layers=late"], "native")], prompts_in(made), None, 3
        )
    )
    assert done.generated == 11
    with pytest.raises(
        LakeError, match="direction d_mean: comes from captures .*`actlake capture llama --stream native`"
    ):
        plan(mine, "llama", [setting_of(mine, "llama", "it", [STEER], "native")], prompts_in(made), None, 3)


def test_a_prompt_without_the_field_its_category_needs_is_named(tmp_path, made, monkeypatch):
    """One line for each of the first three, a count of the others; all else is scored."""
    import hashlib

    from actlake.capture.streams.prompts import PromptSet, canonical_bytes
    from actlake.queries.generation import scores

    prompts = tuple(Prompt(f"p{place}", "GOV-FORMAT", text) for place, (_, _, text) in enumerate(texts(12)))
    data = canonical_bytes(prompts)
    layout = tiny.capture(
        tmp_path / "lake", made[2], tiny.NATIVE, prompts=PromptSet("mine", prompts, hashlib.sha256(data).hexdigest())
    )
    write_prompts(layout, "mine", data)
    said = []
    monkeypatch.setattr(scores.ERRORS, "print", lambda line, **_: said.append(line))
    ensure(layout, [("scores", "exp12", scope_of(layout))], catalog=made[1])
    named = [line for line in said if "criteria" in line]
    assert len(named) == 3 and "p0" in named[0] and said[-1] == "and 9 prompts more"
    found = connect(layout).execute("SELECT DISTINCT metric FROM scores").df()["metric"]
    assert "str" in set(found) and "format" not in set(found)


def test_ranks_share_the_conditions(lake, made):
    """Each begins with other conditions; what one finds done it does not write again."""
    mine = kit(lake, made)
    wanted = [setting_of(mine, "llama", "it", [f"skip:layers={layer}"], "native") for layer in range(4)]
    decoded = []

    def found():
        return plan(kit(lake, made), "llama", wanted, prompts_in(made), None, NEW)

    second = Rank(1, 2)
    decode = engine.written
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine,
            "written",
            lambda model, prompts, *rest: decoded.append(len(prompts)) or decode(model, prompts, *rest),
        )
        first = found()
        assert [job.condition.key for job in first.distinct] == [job.condition.key for job in found().distinct]
        write(found(), second)
        assert sum(decoded) == 4 * 11
        done = write(found(), Rank(0, 2))
        assert sum(decoded) == 4 * 11 and [one.generated for one in done] == [0] * 4
    begins = [
        path.parent.name for path in sorted(lake.root.rglob("condition.json"), key=lambda path: path.stat().st_mtime_ns)
    ]
    assert begins[0] == first.distinct[2].condition.key
