"""Who each token belongs to: conversations rendered as Hugging Face does, every token's segment and turn, streams and questions."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from actlake.capture.checkpoint.segments import encode_prompts, prompt_segments, reply_segments
from actlake.capture.checkpoint.templates import DATE
from actlake.capture.checkpoint.tokens import reading
from actlake.capture.edit.replay import replay_whole
from actlake.capture.edit.start import open_start
from actlake.capture.model.load import load_model
from actlake.capture.run.reforward import reforward
from actlake.capture.streams.prompts import add_prompts, canonical_bytes, read_prompts
from actlake.lake import Lake
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.allocate import create_capture
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.captures.verify import verify
from actlake.store.core.catalog import PairSpec, StreamSpec
from actlake.store.core.columns import SEGMENTS
from actlake.store.core.errors import LakeError
from actlake.store.core.files import hash_file
from test_store_capture import made_template
from test_templates import CLOSES, DATED, GENERATION, MISTRAL, QWEN3, SHAPES, VICUNA, refused, with_template

USER, REPLY = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "on the mat"}
MORE = {"role": "user", "content": " a dog\n"}
SYSTEM = {"role": "system", "content": "user"}  # a word that templates write, too
TALK = [USER, REPLY, MORE]
# s, u, a, h, o, t: system, user, assistant, thinking, tool, template; then the turn, - before the first.
LETTER = dict(zip(SEGMENTS, "?suahot", strict=True))
LLAMA = "<|bos|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
EXPECTED = {
    "llama3": [
        ("t-", f"{LLAMA}<|eot_id|>{HEAD.format('user')}"),
        ("u0", "the cat"),
        ("t0", f"<|eot_id|>{HEAD.format('assistant')}"),
        ("a1", "on the mat<|eot_id|>"),
        ("t1", HEAD.format("user")),
        ("u2", "a dog"),
        ("t2", f"<|eot_id|>{HEAD.format('assistant')}"),
    ],
    "qwen3": [
        ("t-", "<|bos|><|im_start|>user\n"),
        ("u0", "the cat"),
        ("t0", "<|im_end|>\n<|im_start|>assistant\n"),
        ("a1", "on the mat<|im_end|>"),
        ("t1", "\n<|im_start|>user\n"),
        ("u2", " a dog\n"),
        ("t2", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
    "gemma": [
        ("t-", "<|bos|><start_of_turn>user\n"),
        ("u0", "the cat"),
        ("t0", "<end_of_turn>\n<start_of_turn>model\n"),
        ("a1", "on the mat<end_of_turn>"),
        ("t1", "\n<start_of_turn>user\n"),
        ("u2", "a dog"),
        ("t2", "<end_of_turn>\n<start_of_turn>model\n"),
    ],
    "mistral": [  # a token that holds the template's blank and a word is the word's
        ("t-", "<|bos|>[INST]"),
        ("u0", " the cat"),
        ("t0", " [/INST]"),
        ("a1", " on the mat<|eos|>"),
        ("t1", "[INST] "),
        ("u2", " a dog\n"),
        ("t2", " [/INST]"),
    ],
    "phi": [
        ("t-", "<|bos|><|user|>\n"),
        ("u0", "the cat"),
        ("t0", "<|turn_end|>\n<|assistant|>\n"),
        ("a1", "on the mat<|turn_end|>"),
        ("t1", "\n<|user|>\n"),
        ("u2", " a dog\n"),
        ("t2", "<|turn_end|>\n<|assistant|>\n"),
    ],
    "phi4mini": [
        ("t-", "<|bos|><|user|>"),
        ("u0", "the cat"),
        ("t0", "<|end|><|assistant|>"),
        ("a1", "on the mat<|end|>"),
        ("t1", "<|user|>"),
        ("u2", " a dog\n"),
        ("t2", "<|end|><|assistant|>"),
    ],
    "smolvlm": [
        ("t-", "<|bos|><|im_start|>User:"),
        ("u0", " the cat"),
        ("t0", "<end_of_utterance>\nAssistant:"),
        ("a1", " on the mat<end_of_utterance>"),
        ("t1", "\nUser: "),
        ("u2", " a dog\n"),
        ("t2", "<end_of_utterance>\nAssistant:"),
    ],
    "glm4": [  # what ends its replies is the mark of the user's next turn
        ("t-", "<|bos|>[gMASK]<sop><|user|>\n"),
        ("u0", "the cat"),
        ("t0", "<|assistant|>\n"),
        ("a1", "on the mat<|user|>"),
        ("t1", "\n"),
        ("u2", " a dog\n"),
        ("t2", "<|assistant|>"),
    ],
    "harmony": [  # <|return|> ends a reply, and an earlier one is written with <|end|>
        (
            "t-",
            f"<|bos|><|start|>system<|message|>You are a model.\nCurrent date: {DATE}<|end|><|start|>user<|message|>",
        ),
        ("u0", "the cat"),
        ("t0", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("a1", "on the mat"),
        ("t1", "<|end|><|start|>user<|message|>"),
        ("u2", " a dog\n"),
        ("t2", "<|end|><|start|>assistant"),
    ],
    "granite": [
        (
            "t-",
            "<|bos|><|start_of_role|>system<|end_of_role|>Today's Date: July 26, 2024.<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|>",
        ),
        ("u0", "the cat"),
        ("t0", "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"),
        ("a1", "on the mat<|end_of_text|>"),
        ("t1", "\n<|start_of_role|>user<|end_of_role|>"),
        ("u2", " a dog\n"),
        ("t2", "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"),
    ],
    "vicuna": [
        ("t-", "<|bos|>USER:"),
        ("u0", " the cat"),
        ("t0", "\nASSISTANT:"),
        ("a1", " on the mat"),
        ("t1", "\nUSER: "),
        ("u2", " a dog\n"),
        ("t2", "\nASSISTANT:"),
    ],
    "tiny": [
        ("t-", "<|bos|><|user|>\n"),
        ("u0", "the cat"),
        ("t0", "<|eos|>\n<|assistant|>\n"),
        ("a1", "on the mat<|eos|>"),
        ("t1", "\n<|user|>\n"),
        ("u2", " a dog\n"),
        ("t2", "<|eos|>\n<|assistant|>\n"),
    ],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "the plain"}}}
CALLING = [
    {"role": "system", "content": "the log"},
    {"role": "user", "content": "rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "it rained"},
]
# Tools in the manner of many: their list in the system's turn, calls and results between tags.
TOOLED = """{{ '<|im_start|>system\\n' + messages[0].content }}{% if tools %}{{ '\\nTools: ' }}{{ tools | tojson }}{% endif %}\
{{ '<|im_end|>\\n' }}{% for m in messages[1:] %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls %}\
{{ '<call>{"name": "' + c.function.name + '", "arguments": ' }}{{ c.function.arguments | tojson }}{{ '}</call>' }}{% endfor %}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
REASONED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.reasoning_content %}{{ '<think>' + \
m.reasoning_content + '</think>' }}{% endif %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' if enable_thinking else '<|im_start|>assistant\\n' }}{% endif %}"""


def said(messages, **more):
    return json.dumps({"messages": messages, **more}).encode()


def runs_of(tokenizer, what, **how):
    """Runs of tokens of one segment and turn, as in EXPECTED."""
    ids = encode_prompts(tokenizer, [what], "chat", names=["prompt 'p'"], **how)
    segments, turns = prompt_segments(tokenizer, [what], ids, "chat", ["prompt 'p'"], **how)
    found = []
    for segment, turn, index in zip(segments[0], turns[0], ids[0], strict=True):
        name = f"{LETTER[SEGMENTS[segment]]}{'-' if turn < 0 else turn}"
        if not found or found[-1][0] != name:
            found.append((name, []))
        found[-1][1].append(index)
    return [(name, tokenizer.decode(run)) for name, run in found]


def theirs(tokenizer, messages, **how):
    """Token ids of Hugging Face's own rendering, with BOS once."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[0] == tiny.BOS else [tiny.BOS, *ids]


def shaped(name):
    closes = CLOSES[name]
    return with_template(SHAPES[name], [closes] if closes and closes not in tiny.SPECIAL else [])


# --- renderings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_conversations_are_rendered_as_hugging_face_does_and_every_token_is_told(name):
    tokenizer = shaped(name)
    assert runs_of(tokenizer, said(TALK)) == EXPECTED[name]
    form = (lambda m: {**m, "content": [{"type": "text", "text": m["content"]}]}) if name == "smolvlm" else dict
    ids = encode_prompts(tokenizer, [said(TALK)], "chat")[0]
    if name not in DATED:  # those take the day from the clock
        assert ids == theirs(tokenizer, [form(m) for m in TALK], add_generation_prompt=True, enable_thinking=False)
        begun = [USER, {"role": "assistant", "content": "on the"}]
        kept = {} if name == "smolvlm" else {"continue_final_message": True}
        if kept:
            found = encode_prompts(tokenizer, [said(begun)], "chat")[0]
            assert found == theirs(tokenizer, begun, enable_thinking=False, **kept)
    first = runs_of(tokenizer, "the cat")
    assert first[:2] == EXPECTED[name][:2] and [run for run, _ in first] == ["t-", "u0", "t0"]


@pytest.mark.parametrize("name", ["llama3", "qwen3", "granite", "phi4mini", "glm4", "tiny"])
def test_a_system_message_is_found_though_the_template_writes_its_word(name):
    found = runs_of(shaped(name), said([SYSTEM, USER]))
    assert [text for run, text in found if run == "s0"] == ["user"] and ("u1", "the cat") in found
    assert [run for run, _ in found] == ["t-", "s0", "t0", "u1", "t1"]


@pytest.mark.parametrize(
    ("name", "messages", "says"),
    [
        ("gemma", [SYSTEM, USER], "fails: TemplateError: System role not supported"),
        ("gemma", [USER, USER], "Conversation roles must alternate"),
        ("mistral", [SYSTEM, USER], "does not write its text: message 0 (system)"),
        ("phi", [SYSTEM, USER], "does not write its text: message 0 (system)"),
        ("tiny", [USER, {"role": "assistant", "content": "x", "tool_calls": [CALL]}, USER], "message 1 (assistant)"),
    ],
)
def test_what_a_template_does_not_write_is_refused(name, messages, says):
    assert "prompt 'p': the chat template of" in refused(lambda: runs_of(shaped(name), said(messages)), says)


def test_a_template_without_tools_refuses_them():
    refused(
        lambda: runs_of(shaped("tiny"), said(TALK, tools=TOOLS)), "has tools, and the chat template of", "writes none"
    )


def test_raw_text_has_no_turns():
    refused(
        lambda: encode_prompts(shaped("tiny"), [said(TALK)], "raw", names=["prompt 'p'"]),
        "raw text, which has no turns",
    )


def test_tool_calls_are_the_assistants_and_results_the_tools():
    tokenizer = with_template(TOOLED, ["<|im_end|>", "<|im_start|>"])
    found = runs_of(tokenizer, said(CALLING, tools=TOOLS))
    assert found == [
        ("t-", "<|bos|><|im_start|>system\n"),
        ("s0", "the log"),
        ("t0", f"\nTools: {json.dumps(TOOLS)}<|im_end|>\n<|im_start|>user\n"),
        ("u1", "rain?"),
        ("t1", "<|im_end|>\n<|im_start|>assistant\n"),
        ("a2", '<call>{"name": "weather", "arguments": {"place": "the plain"}}</call><|im_end|>'),
        ("t2", "\n<|im_start|>tool\n"),
        ("o3", "it rained"),
        ("t3", "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    ids = encode_prompts(tokenizer, [said(CALLING, tools=TOOLS)], "chat")[0]
    assert ids == theirs(tokenizer, CALLING, tools=TOOLS, add_generation_prompt=True)


def test_a_template_that_needs_tools_reads_conversations_with_some():
    needs = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + TOOLED
    tokenizer, plain = (with_template(text, ["<|im_end|>", "<|im_start|>"]) for text in (needs, TOOLED))
    assert runs_of(tokenizer, said(CALLING, tools=TOOLS)) == runs_of(plain, said(CALLING, tools=TOOLS))
    ids = encode_prompts(tokenizer, [said(CALLING, tools=TOOLS)], "chat")[0]
    assert ids == theirs(tokenizer, CALLING, tools=TOOLS, add_generation_prompt=True)
    for bare in (said(TALK), "the cat"):
        refused(
            lambda bare=bare: encode_prompts(tokenizer, [bare], "chat", names=["prompt 'p'"]), "prompt 'p'", "no tools"
        )


def test_thinking_is_found_by_the_templates_marks_and_generation_by_its_own():
    tokenizer = with_template(REASONED, ["<|im_end|>", "<|im_start|>", "<think>", "</think>"], special=False)
    talk = [USER, {**REPLY, "reasoning": "rain, so"}, MORE]
    assert runs_of(tokenizer, said(talk)) == [
        ("t-", "<|bos|><|im_start|>user\n"),
        ("u0", "the cat"),
        ("t0", "<|im_end|>\n<|im_start|>assistant\n"),
        ("h1", "<think>rain, so</think>"),
        ("a1", "on the mat<|im_end|>"),
        ("t1", "\n<|im_start|>user\n"),
        ("u2", " a dog\n"),
        ("t2", "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    assert encode_prompts(tokenizer, [said(talk)], "chat")[0] == theirs(tokenizer, talk, add_generation_prompt=True)
    on = runs_of(tokenizer, said(talk), thinking=True)
    assert on[-1] == ("t2", "<|im_end|>\n<|im_start|>assistant\n<think>")
    assert reading(tokenizer, "chat", thinking=True)["thinking"] == "on" and "thinking" not in reading(
        tokenizer, "chat"
    )
    refused(
        lambda: runs_of(with_template(MISTRAL), "the cat", thinking=False), "has no switch for thinking", "--thinking"
    )


def test_a_reply_that_was_begun_thinks_on():
    tokenizer = with_template(QWEN3, ["<|im_end|>", "<think>", "</think>"], special=False)
    begun = [USER, {"role": "assistant", "content": "<think>rain</think>\n\nso the"}]
    assert runs_of(tokenizer, said(begun))[-3:] == [
        ("h1", "<think>\nrain\n</think>"),
        ("t1", "\n\n"),
        ("a1", "so the"),
    ]
    # Earlier thinking is left out by the template, as it does by design.
    assert [run for run, _ in runs_of(tokenizer, said([*begun, MORE]))] == ["t-", "u0", "t0", "a1", "t1", "u2", "t2"]


def test_what_a_model_writes_is_thinking_up_to_the_mark():
    tokenizer = with_template(QWEN3, ["<think>", "</think>"], special=False)
    cut = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    replies = ["<think>the rain</think> so", "the rain</think> so", "the rain", "so"]
    starts = [cut("a"), cut("assistant\n<think>\n"), cut("<think>"), cut("a")]
    found = reply_segments(tokenizer, starts, [cut(one) for one in replies], True, [False] * 4)
    shown = ["".join(LETTER[SEGMENTS[each]] for each in row) for row in found]
    assert [set(row) for row in shown] == [{"h", "a"}, {"h", "a"}, {"h"}, {"a"}]
    mark = tokenizer.convert_tokens_to_ids("</think>")
    for row, reply in list(zip(shown, replies, strict=True))[:2]:
        at = cut(reply).index(mark)
        assert row == "h" * (at + 1) + "a" * (len(row) - at - 1)
    assert set(reply_segments(tokenizer, starts[2:3], [cut("x")], False, [False])[0]) == {SEGMENTS.index("assistant")}


def test_everything_a_template_marks_as_generated_is_the_assistants():
    found = runs_of(
        with_template(GENERATION.replace("{{ eos_token }}", "").replace("m.content }}", "m.content }}!")), said(TALK)
    )
    assert ("a1", "on the mat!") in found and ("u0", "the cat") in found


def test_a_text_that_is_no_vicuna_word():
    """Short words that stand all over the template are placed where the prompt has them."""
    found = runs_of(
        with_template(VICUNA), said([{"role": "user", "content": "USER"}, {"role": "assistant", "content": "USER"}])
    )
    assert [run for run, _ in found] == ["t-", "u0", "t0", "a1"]


# --- prompt files ------------------------------------------------------------------------------------------------------


def row(**fields):
    return json.dumps({"id": "a", **fields})


def test_conversations_in_a_file_keep_their_columns(tmp_path, lake):
    file = tmp_path / "talks.jsonl"
    file.write_text(f"{row(messages=TALK, note=7)}\n{json.dumps({'id': 'b', 'text': 'x'})}\n")
    found, hashes = read_prompts(file), set()
    assert [prompt.text for prompt in found.prompts] == [" a dog\n", "x"] and found.prompts[0].fields == {"note": 7}
    stored = add_prompts(file, lake, "talks")
    assert read_prompts(stored).prompts == found.prompts and stored.read_bytes() == canonical_bytes(found.prompts)
    assert json.loads(stored.read_text().splitlines()[0])["messages"] == TALK
    for tools in (TOOLS, [dict(reversed(TOOLS[0].items()))]):  # a template writes keys as they come
        file.write_text(row(messages=TALK, tools=tools) + "\n")
        assert json.dumps(json.loads(read_prompts(file).prompts[0].talk)["tools"]) == json.dumps(tools)
        assert read_prompts(file).sha256 not in hashes
        hashes.add(read_prompts(file).sha256)
    table = tmp_path / "talks.csv"
    cells = json.dumps(TALK).replace('"', '""')
    table.write_text(f'id,messages\na,"{cells}"\n')
    assert read_prompts(table).prompts[0].talk == found.prompts[0].talk


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": TALK, "text": "x"}, "has text and messages"),
        ({"messages": []}, "messages is []"),
        ({"messages": "hello"}, 'messages is "hello"'),
        ({"messages": [{"role": "king", "content": "x"}]}, 'message 0: role is "king", expected one of system'),
        ({"messages": [{"role": "user", "content": " "}]}, 'message 0: content is " "'),
        ({"messages": [{"role": "user"}]}, "message 0: content is null"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "only text is read"),
        ({"messages": [USER, SYSTEM]}, "ends in a message of role system"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}, "ends in a tool call"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "tool_calls is a list of calls"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "message 1, call 0: expected an object"),
        ({"messages": [{**USER, "thinking": "x"}]}, "thinking is text of a message of role assistant"),
        ({"messages": TALK, "tools": ["x"]}, "tool 0: expected an object"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path, fields, says):
    file = tmp_path / "talks.jsonl"
    file.write_text(row(**fields) + "\n")
    assert f"{file}:1: " in refused(lambda: read_prompts(file), says)


# --- streams -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talks(tmp_path_factory, llama):
    """A lake of two models that read conversations, both with the chat template, and the prompt file."""
    folder = tmp_path_factory.mktemp("talks")
    rows = [
        {"id": f"t{n}", "messages": [SYSTEM, USER, REPLY, {"role": "user", "content": "the rain " * (n + 1)}]}
        for n in range(3)
    ]
    rows += [{"id": "begun", "messages": [USER, REPLY]}, {"id": "plain", "text": "the log"}]
    (folder / "talks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    prompts = read_prompts(folder / "talks.jsonl")
    layout = tiny.capture(folder / "lake", llama, StreamSpec("native", "chat", "own", 4), prompts=prompts)
    return layout, llama


def test_a_multi_turn_stream_is_captured_replayed_and_asked(talks):
    layout, pair = talks
    path = find_capture(layout, "llama-it", "native")
    stream = read_stream(layout, path.stem)
    assert verify(layout, path).ok
    model = load_model(pair.it)
    assert reforward(layout, model, path, 9).ok
    again = replay_whole(model, open_start(layout, "llama-it", "native", 1), keep=("resid",))
    assert np.array_equal(again.arrays["resid"], Capture(path).array("resid")[:][:, 1:])
    lake = Lake(layout)
    tokens = lake.tokens("llama-it", "native", "t0")
    asked = [USER["content"], REPLY["content"] + "<|eos|>", SYSTEM["content"]]
    for (segment, turn), text in zip((("user", 1), ("assistant", 2), ("system", 0)), asked, strict=True):
        mine = tokens[(tokens["segment"] == segment) & (tokens["turn"] == turn)]
        assert "".join(mine["token_text"]) == text and not mine["is_continuation"].any()
    last = tokens[tokens["is_continuation"]]
    assert set(last["segment"]) == {"assistant"} and set(last["turn"]) == {4}
    begun = lake.tokens("llama-it", "native", "begun")
    assert (
        set(begun[begun["is_continuation"]]["turn"]) == {1}
        and begun.iloc[stream.starts[3] - 1]["segment"] == "assistant"
    )
    data = lake.dataset("llama-it", "native")
    named = dict(zip(data.segment.attrs["flag_meanings"].split(), data.segment.attrs["flag_values"], strict=True))
    assert named == {name: number for number, name in enumerate(SEGMENTS)}
    assert data.segment.values.tolist() == stream.columns["segment"].tolist() and data.segment.dims == ("token",)
    counted = lake.sql(
        "SELECT segment, turn, count(*) AS n, avg(entropy) AS entropy FROM lens JOIN tokens USING (pair, variant, model, stream, token)"
        " WHERE variant = 'it' AND layer = 2 GROUP BY ALL"
    ).df()
    whole = stream.columns
    for segment, turn, n, entropy in counted.itertuples(index=False):
        assert n == ((whole["segment"] == named[segment]) & (whole["turn"] == turn)).sum() and entropy > 0
    assert counted["n"].sum() == stream.n_tokens
    assert len(lake.run("L2", pair="llama", probes=False).table)


def test_raw_streams_are_the_users_and_then_the_assistants(captured):
    found = read_stream(captured, find_capture(captured, "llama-pt", "native").stem)
    segments = np.asarray(SEGMENTS)[found.columns["segment"]]
    continued, first = found.columns["is_continuation"], found.columns["position"] == 0
    assert set(segments[continued]) == {"assistant"} and set(segments[first]) == {"template"}
    assert set(segments[~continued & ~first]) == {"user"}
    assert found.columns["turn"].tolist() == np.where(first, -1, np.where(continued, 1, 0)).tolist()


def test_both_models_agree_on_what_one_of_them_wrote(captured):
    its, pts = (read_stream(captured, find_capture(captured, f"llama-{v}", "teacher").stem) for v in ("it", "pt"))
    parts = [one.columns["segment"][one.columns["is_continuation"]].tolist() for one in (its, pts)]
    assert parts[0] == parts[1]


def test_streams_and_captures_of_earlier_versions_are_unknown(lake_copy, tmp_path, monkeypatch):
    name = find_capture(lake_copy, "llama-it", "native").stem
    file = lake_copy.streams / f"{name}.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["segment", "turn"]), file)
    tiny.edit_json(lake_copy.streams / f"{name}.json", parquet_sha256=hash_file(file))
    columns = read_stream(lake_copy, name).columns
    assert set(columns["segment"]) == {0} and set(columns["turn"]) == {-1}
    old = ("token_id", "prompt", "position", "step", "is_special")
    monkeypatch.setattr("actlake.store.captures.allocate.TOKEN_COORDS", old)
    create_capture(tmp_path / "captures" / "made-pt" / "s.zarr", made_template())
    found = Capture(tmp_path / "captures" / "made-pt" / "s.zarr", allow_unsealed=True)
    assert "segment" not in found and set(found.columns()["segment"]) == {0} and set(found.columns()["turn"]) == {-1}


def test_thinking_is_an_option_and_stands_in_the_recipe(tmp_path, llama, command_line):
    folder = tmp_path / "it"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + REASONED)
    (tmp_path / "set.jsonl").write_text(row(messages=TALK) + "\n")
    (tmp_path / "catalog.yaml").write_text(
        f"models: {{talker: {{path: {folder}, template: chat}}, plain: {{path: {llama.it.path}, template: chat}}}}\n"
        "streams: {chat: {template: chat, continuation: none, thinking: on}}\n"
    )
    where = (
        "--lake",
        str(tmp_path / "lake"),
        "--catalog",
        str(tmp_path / "catalog.yaml"),
        "--prompts",
        str(tmp_path / "set.jsonl"),
    )
    found = {}
    for thinking in ((), ("--thinking", "off"), ("--thinking", "on")):
        code, _, err = command_line("capture", "talker", "--stream", "chat", *where, *thinking)
        assert code == 0, err
        found[thinking] = sorted(path.name for path in (tmp_path / "lake" / "streams").glob("*.parquet"))
    assert len(found[()]) == 1 and len(found[("--thinking", "off")]) == 2 == len(found[("--thinking", "on")])
    for words, says in (
        (("plain", "--thinking", "on"), "has no switch for thinking"),
        (("talker", "--thinking", "hard"), "on or off"),
    ):
        code, _, err = command_line("capture", words[0], "--stream", "chat", *where, *words[1:])
        assert code == 2 and says in err and "Traceback" not in err


def test_a_base_model_that_reads_raw_text_is_told(tmp_path, llama):
    (tmp_path / "set.jsonl").write_text(row(messages=TALK) + "\n")
    pair = PairSpec("llama", llama.pt, None, {})
    refused(
        lambda: tiny.capture(
            tmp_path / "lake", pair, tiny.NATIVE, variants=("pt",), prompts=read_prompts(tmp_path / "set.jsonl")
        ),
        "prompt 'a' of set set: a conversation",
        "raw text",
    )


def test_an_unlucky_template_is_refused_for_conversations_only():
    """One that looks into the texts: a single text is found where it stands once."""
    looks = (
        "{{ bos_token }}{% for m in messages %}{% if m.content | length == 7 %}<|user|>{{ m.content }}{% else %}{{ m.content }}!\
{% endif %}{% endfor %}"
    )
    assert [run for run, _ in runs_of(with_template(looks), "the cat")] == ["t-", "u0"]
    refused(lambda: runs_of(with_template(looks), said(TALK)), "looks into the text")


def test_every_segment_has_its_letter():
    assert len(LETTER) == len(SEGMENTS) and {run[0] for runs in EXPECTED.values() for run, _ in runs} == {"t", "u", "a"}
    with pytest.raises(LakeError):
        runs_of(shaped("gemma"), said([SYSTEM, USER]))


MINE = """-- id: mine
-- title: Entropy of every token
-- needs: lens(raw)
-- models: 1
-- stream: native
-- bootstrap: prompt
-- plot: line x=layer hue=variant
-- says: [Entropy is {entropy_pt} nats. ]
-- about: Entropy of every token.
-- positions: All.
-- pitfalls: none
-- source: this test
SELECT 'entropy_' || variant AS measure, layer, prompt, sum(entropy) AS total, count(*) AS n FROM lens GROUP BY ALL
"""


def test_rows_are_asked_about_segments(talks, tmp_path, command_line):
    """What a row gives of a segment is the mean over its tokens, by the table `tokens`; what can't be narrowed is refused."""
    layout, pair = talks
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.sql").write_text(MINE)
    models = "".join(f"  {v}: {{path: {pair.model(v).path}}}\n" for v in ("pt", "it"))
    (tmp_path / "catalog.yaml").write_text(f"rows: [./rows]\npairs:\n llama:\n{models}")
    lake = Lake(layout, catalog=tmp_path / "catalog.yaml")
    every = {}
    for segment in ("user", "assistant", "template"):
        answer = lake.run("mine", pair="llama", segment=segment)
        by_hand = lake.sql(
            "SELECT layer, avg(entropy) AS entropy, count(*) AS n FROM lens JOIN tokens USING (pair, variant, model, stream, token)"
            f" WHERE variant = 'it' AND segment = '{segment}' GROUP BY ALL"
        ).df()
        its = answer.table[answer.table["measure"] == "entropy_it"].merge(by_hand, on="layer")
        assert len(its) == len(by_hand) and np.allclose(its["estimate"], its["entropy"], rtol=1e-6)
        assert f"only tokens of segment {segment}" in answer.sentence and answer.segments == (segment,)
        assert sorted(each.name for each in answer.save(tmp_path / "out"))[0] == f"mine-llama-{segment}.csv"
        assert len(lake.sql(answer.sql).df()) > 0
        every[segment] = by_hand["n"].max()
    both = lake.run("mine", pair="llama", segment=["user", "assistant", "template", "system"])
    whole = lake.run("mine", pair="llama")
    assert (
        both.table["estimate"].tolist() == pytest.approx(whole.table["estimate"].tolist()) and sum(every.values()) > 50
    )
    assert lake.run("L2", pair="llama", probes=False, segment="assistant").table["estimate"].tolist() == pytest.approx(
        lake.run("L2", pair="llama", probes=False).table["estimate"].tolist(), nan_ok=True
    )
    refused(
        lambda: lake.run("L2", pair="llama", probes=False, segment="user"),
        "L2: it reads no token of segment user of pair",
    )
    refused(
        lambda: lake.run("mine", pair="llama", segment="tool"), "mine: it reads no token of segment tool of pair llama"
    )
    refused(lambda: lake.run("L3", pair="llama", segment="user"), "reads weights, whose lines are no tokens")
    refused(lambda: lake.run("mine", pair="llama", segment="king"), "segment 'king': expected one of system, user")
    answer.lock(tmp_path / "x.lock")
    (same,) = lake.reproduce(tmp_path / "x.lock")
    assert same.same, str(same)
    locked = json.loads((tmp_path / "x.lock").read_text())
    assert locked["rows"][0]["segments"] == ["template"]
    locked["rows"][0]["segments"] = ["user"]  # answered for these, the numbers are others
    (tmp_path / "x.lock").write_text(json.dumps(locked))
    (other,) = lake.reproduce(tmp_path / "x.lock")
    assert not other.same and other.answer
    locked["rows"][0]["segments"] = ["king"]
    (tmp_path / "x.lock").write_text(json.dumps(locked))
    refused(lambda: lake.reproduce(tmp_path / "x.lock"), "segments: expected a list of system, user")
    where = ("--lake", str(layout.root), "--catalog", str(tmp_path / "catalog.yaml"), "--out", str(tmp_path / "out"))
    code, _, err = command_line("run", "mine", "--pair", "llama", "--segment", "tool", *where)
    assert code == 2 and "it reads no token of segment tool" in err
    code, _, err = command_line("run", "mine", "--segment", "user", "--lock", str(tmp_path / "y"), *where)
    assert code == 0, err
    assert json.loads((tmp_path / "y").read_text())["rows"][0]["segments"] == ["user"]
