"""Chat templates: rendered as Hugging Face does, the prompt found in them, turn ends, dates, limits, and broken ones in one line."""

import json
import shutil

import numpy as np
import pytest
import tiny
from actlake.capture.checkpoint import templates
from actlake.capture.checkpoint.stops import find_stops
from actlake.capture.checkpoint.templates import DATE, frame_of, presence, render, turn
from actlake.capture.checkpoint.tokens import control_ids, encode, encode_all, is_special, is_text, reading
from actlake.capture.model.describe import describe, lines
from actlake.capture.model.load import load_model, load_tokenizer
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import PairSpec, StreamSpec
from actlake.store.core.errors import LakeError
from tokenizers import AddedToken

# In the manner of the released ones.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LLAMA31 = LLAMA3.replace(
    '{%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}', "{%- if false %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "user" %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning + '\\n</think>\\n\\n' + content }}
        {%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token}}{% endif %}{% endfor %}"""
PHI = """{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|turn_end|>\\n'}}\
{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|turn_end|>\\n'}}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
PHI4MINI = """{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|' + 'end' + '|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
SMOLVLM = """<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}\
{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
GLM4 = """[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
HARMONY = """<|start|>system<|message|>You are a model.
Current date: {{ strftime_now("%Y-%m-%d") }}<|end|>{% for m in messages %}{% if m.role == 'assistant' %}\
<|start|>assistant<|channel|>final<|message|>{{ m.content }}{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}\
{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|start|>assistant{% endif %}"""
GRANITE = """{%- if messages[0]['role'] != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>Today\\'s Date: ' + \
strftime_now('%B %d, %Y') + '.<|end_of_text|>\\n' }}{%- endif %}{%- for m in messages %}{{- '<|start_of_role|>' + m['role'] + \
'<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}\
{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""
GENERATION = (
    "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% if loop.last %}\
{% break %}{% endif %}{% endfor %}{{ dict(a=1).a }}{{ {'x': 'é<'} | tojson }}"
)
VICUNA = "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}\n{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"
SHAPES = {
    "llama3": LLAMA3,
    "llama31": LLAMA31,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "phi": PHI,
    "phi4mini": PHI4MINI,
    "smolvlm": SMOLVLM,
    "glm4": GLM4,
    "harmony": HARMONY,
    "granite": GRANITE,
    "generation": GENERATION,
    "vicuna": VICUNA,
    "tiny": tiny.CHAT,
}
DATED = {"llama3", "harmony", "granite"}
# What closes a reply; None: no control token does.
CLOSES = {
    "llama3": "<|eot_id|>",
    "llama31": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "<|eos|>",
    "phi": "<|turn_end|>",
    "phi4mini": "<|end|>",
    "smolvlm": "<end_of_utterance>",
    "glm4": "<|user|>",
    "harmony": "<|return|>",
    "granite": "<|end_of_text|>",
    "generation": "<|eos|>",
    "vicuna": None,
    "tiny": "<|eos|>",
}


def with_template(template, added=(), special=True):
    """The tiny tokenizer with another chat template and more added tokens, special ones or not."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    tokenizer.chat_template = template
    return tokenizer


def refused(call, *parts):
    """The one line that a call is refused with."""
    with pytest.raises(LakeError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 700
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.parametrize("name", SHAPES)
def test_rendered_as_hugging_face_does(name, monkeypatch):
    """Character by character, for prompts of all kinds; the clock apart."""
    tokenizer = with_template(SHAPES[name])
    form = frame_of(tokenizer).form
    assert form == ("parts" if name == "smolvlm" else "string")
    for _, _, text in tiny.TEXTS:
        for turns, ready in (
            ([turn("user", text, form)], True),
            ([turn("user", text, form), turn("assistant", "so <it> is & 'was'", form)], False),
        ):
            (found,) = render(tokenizer, [turns], ready)
            theirs = tokenizer.apply_chat_template(
                turns, add_generation_prompt=ready, tokenize=False, enable_thinking=False
            )
            if name in DATED:
                assert any(day in found.text for day in ("26 Jul 2024", "July 26, 2024", "2024-07-26"))
                assert found.text[-30:] == theirs[-30:]
            else:
                assert found.text == theirs


@pytest.mark.parametrize("name", SHAPES)
def test_every_prompt_stands_in_its_rendering(name):
    tokenizer = with_template(SHAPES[name])
    for (_, _, text), ids in zip(
        tiny.TEXTS, encode_all(tokenizer, [row[2] for row in tiny.TEXTS], "chat"), strict=True
    ):
        assert text in tokenizer.decode(ids)
        assert ids.count(tiny.BOS) == 1 and ids[0] == tiny.BOS


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_the_token_that_ends_a_turn(name, special):
    """Whether it is a special token, one of the extra ones, or just an added one that the template writes."""
    closes = CLOSES[name]
    tokenizer = with_template(SHAPES[name], [closes] if closes and closes not in tiny.SPECIAL else [], special)
    stops = find_stops(tokenizer, (), True)
    if closes is None:
        assert stops.turn is None and stops.ids == (tiny.EOS,)
        assert "'\\nUSER: " in stops.note("vicuna") and "[2]" in stops.note("vicuna")
        return
    index = tokenizer.convert_tokens_to_ids(closes)
    assert stops.turn == index and stops.ids == tuple(sorted({tiny.EOS, index})) and stops.note("m") is None
    assert is_special(tokenizer, np.asarray([index, 40])).tolist() == [True, False]
    assert not is_text(tokenizer, len(tokenizer))[index] and is_text(tokenizer, len(tokenizer))[40]
    assert find_stops(tokenizer, (), False).ids == (tiny.EOS,)


@pytest.mark.parametrize(
    "template",
    [
        tiny.CHAT.replace("{{ eos_token }}", "</s>"),  # text here, no token
        tiny.CHAT.replace("{{ eos_token }}", "<|im_end|>"),
        tiny.CHAT.replace("{{ eos_token }}", "\nUser:"),
        tiny.CHAT.replace("{{ eos_token }}\n", ""),
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% endif %}{% endfor %}",  # drops replies
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}{% else %}A: {{ m.content[:4] }}{% endif %}{% endfor %}",
    ],
)
def test_a_turn_that_ends_with_no_token_is_told(template):
    stops = find_stops(
        with_template(template.replace("<|user|>", "U:").replace("<|{{ m['role'] }}|>", "T:")), (5,), True
    )
    assert (stops.turn, stops.ids) == (None, (tiny.EOS, 5))
    assert stops.recipe(True) == {"decoding": "greedy", "stops": [tiny.EOS, 5], "turn_end": None}
    assert "no control token" in stops.note("m") and "\n" not in stops.note("m")


def test_added_tokens_that_are_text_are_no_control_tokens():
    """Runs of blanks, words and tags that no template writes are text; what the template writes is not."""
    words = ["\n\n", "    ", "<table>", "user", "<think>"]
    tokenizer = with_template(QWEN3, words, special=False)
    table, user, think = (tokenizer.convert_tokens_to_ids(word) for word in words[2:])
    found = control_ids(tokenizer)
    assert think in found and not {table, user} & found
    assert found - {think} == set(range(5))
    assert find_stops(with_template(VICUNA, ["\n"], special=False), (), True).turn is None


# --- the prompt's text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("<|user|>hello{{ eos_token }}", "nothing of 'Actlake Probe 7, no '"),
        ("{{ messages[0].content | lower }}", "nothing of"),
        ("{{ messages[0].content[:10] }}", "from character 11 on"),
        ("{{ messages[0].content | replace('Probe', 'probe') }}", "'Probe 7, no prompt o'"),
        ("{{ messages[0].content | e }}", "became '&#39;"),
        ("{{ messages[0].text }}", "nothing of"),
        ("{{ messages[0].content | truncate(12) }}", "character"),
        ("{{ messages[0].content | reverse }}", "nothing of"),
        ("{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}", "nothing of"),
    ],
)
def test_a_template_that_loses_the_text_is_refused(template, says):
    tokenizer = with_template(template)
    refused(lambda: encode(tokenizer, "The Cat's hat", "chat"), "does not write a prompt's text", says)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}<|user|>{{ messages[0].content | replace('cat', 'dog') }}",
        "{{ bos_token }}{% if messages[0].content | length > 20 %}<|user|>{{ messages[0].content }}{% endif %}",
        "{{ bos_token }}{{ messages[0].content.split('</think>')[-1] }}",
        "{{ bos_token }}{{ messages[0].content[:60] }}",
        "{{ bos_token }}{{ messages[0].content | replace('\n', ' ') }}",
    ],
)
def test_a_prompt_whose_text_is_lost_is_named(template):
    tokenizer = with_template(template)
    texts = ["here is a long text without trouble", "x</think>\nthe cat" + " and so on" * 10, "cat"]
    names = ["prompt 'a' of set s", "prompt 'b' of set s", "prompt 'c' of set s"]
    assert encode_all(tokenizer, texts[:1], "chat", names=names[:1])
    refused(
        lambda: encode_all(tokenizer, texts, "chat", names=names),
        "of set s: the chat template of",
        "does not write its text",
    )


def test_white_space_around_a_text_may_go_but_no_two_prompts_become_one():
    tokenizer = with_template(GEMMA)
    assert encode(tokenizer, " the cat\n", "chat") == encode(tokenizer, "the cat", "chat")
    names = ["prompt 'a'", "prompt 'b'"]
    refused(
        lambda: encode_all(tokenizer, ["the cat", " the cat\n"], "chat", names=names),
        "prompt 'a' and prompt 'b': different texts with the same tokens",
    )
    assert len(encode_all(tokenizer, ["the cat", "the cat"], "chat", names=names)) == 2  # one text twice is one text


def test_presence_sees_short_texts_in_wordy_templates():
    frame = frame_of(with_template("the user asks: {{ messages[0].content }} <|assistant|>"))
    assert presence(frame, "user", "the user asks: user <|assistant|>") == ""
    assert presence(frame, "user", "the user asks:  <|assistant|>")
    twice = frame_of(with_template("{{ messages[0].content }} again: {{ messages[0].content }}"))
    assert twice.before is None and presence(twice, "a", "a again: a") == "" and presence(twice, "b", "a again: a")


def test_parts_are_captured_and_recorded(tmp_path, llama):
    """A model whose template takes lists only reads every prompt whole, and the stream says how."""
    folder = tmp_path / "it"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + SMOLVLM)
    pair = PairSpec("llama", llama.pt, tiny.spec(folder, "llama-it"), {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE)
    stream = read_stream(layout, Capture(find_capture(layout, "llama-it", "native")).manifest["stream"])
    assert stream.recipe["content"] == "parts" and stream.recipe["continuation"]["turn_end"] is None
    tokenizer = load_tokenizer(pair.it)
    for (_, _, text), row, start in zip(tiny.TEXTS, stream.tokens, stream.starts, strict=True):
        assert f"User: {text}<end_of_utterance>" in tokenizer.decode(row[:start])
    raw = read_stream(layout, Capture(find_capture(layout, "llama-pt", "native")).manifest["stream"])
    assert "content" not in raw.recipe


# --- templates that fail ---------------------------------------------------------------------------------------------

FAILING = {
    "random": ("{{ ['Hi', 'Hello'] | random }} {{ messages[0].content }}", "it draws at random"),
    "lipsum": ("{{ lipsum(1) }} {{ messages[0].content }}", "it draws at random"),
    "raises": ("{{ raise_exception('needs a system turn') }}", "needs a system turn"),
    "syntax": ("{% for m in messages %}\n{{ m.content }", "line 2"),
    "unclosed": ("{% for m in messages %}{{ m.content }}", "line 1"),
    "unknown tag": ("{% frobnicate %}", "line 1"),
    "none": ("{{ tools | length }}{{ messages[0].content }}", "TypeError"),
    "undefined": ("{{ messages[0].a.b }}", "UndefinedError"),
    "undefined call": ("{{ frobnicate() }}", "UndefinedError"),
    "security": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "security write": ("{{ messages.append(1) }}", "SecurityError"),
    "namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "Error"),
    "value": ("{{ 'a'.index('b') }}", "ValueError"),
    "zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "filter": ("{{ messages[0].content | frobnicate }}", "line 1"),
    "import": ("{% import 'x' as y %}{{ messages[0].content }}", "Error"),
    "many": ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    "page": ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "longer than"),
    "memory": ("{{ 'x' * 3000000000 }}", "MB of memory"),
    "memory later": (
        "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "MB of memory",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_one_line(name):
    template, says = FAILING[name]
    tokenizer = with_template(template)
    refused(lambda: encode(tokenizer, "the cat", "chat"), "chat template", says)
    assert encode(tokenizer, "the cat", "raw")[0] == tiny.BOS
    assert is_special(tokenizer, np.asarray([tiny.BOS, 40])).tolist() == [True, False]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 9**(9**9) }}",
        "{% if messages[0].content == 'the cat' %}{{ 9**(9**9) }}{% endif %}{{ messages[0].content }}",
    ],
)
def test_an_endless_template_is_one_line(monkeypatch, template):
    monkeypatch.setattr(templates, "SECONDS", 1)
    refused(lambda: encode(with_template(template), "the cat", "chat"), "longer than 1 s")


def test_memory_is_watched_where_the_system_does_not(monkeypatch):
    monkeypatch.setattr(templates, "WATCH", True)
    monkeypatch.setattr(templates, "MEMORY", 200 << 20)
    template = "{% set n = namespace(x='xxxx') %}{% for i in range(28) %}{% set n.x = n.x + n.x %}{% endfor %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    refused(lambda: encode(with_template(template), "the cat", "chat"), "more than 200 MB")


def test_named_templates():
    tokenizer = with_template({"tool_use": "{{ tools }}", "default": tiny.CHAT})
    assert encode(tokenizer, "the cat", "chat") == encode(tiny.tokenizer(), "the cat", "chat")
    del tokenizer.chat_template["default"]
    refused(lambda: encode(tokenizer, "the cat", "chat"), "chat templates tool_use", "none of them named default")
    tokenizer.chat_template = {"default": 7}
    refused(lambda: encode(tokenizer, "the cat", "chat"), "is int, expected text")


def test_model_check_says_what_is_wrong_with_a_template(tmp_path):
    folder = tiny.make_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('needs a system turn') }}")
    found = describe(load_model(tiny.spec(folder, "m-it")))
    assert "needs a system turn" in dict(lines(found))["chat"] and found["stop_ids"] == [tiny.EOS]
    (folder / "chat_template.jinja").write_text(VICUNA)
    text = dict(lines(describe(load_model(tiny.spec(folder, "m-it")))))["chat"]
    assert "USER: " in text and "no control token" in text


# --- where a template lies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.json", {"chat_template": tiny.CHAT}),
        ("processor_config.json", {"processor_class": "X", "chat_template": tiny.CHAT}),
        ("chat_template.json", {"chat_template": {"default": tiny.CHAT, "rag": "{{ documents }}"}}),
        ("chat_template.json", {"chat_template": [{"name": "default", "template": tiny.CHAT}]}),
        ("chat_template.jinja", tiny.CHAT),
        ("additional_chat_templates/default.jinja", tiny.CHAT),
        ("tokenizer_config.json", {"chat_template": tiny.CHAT}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": tiny.CHAT}]}),
    ],
)
def test_templates_are_found_wherever_they_lie(tmp_path, llama, file, content):
    folder = tmp_path / "m"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").unlink()
    spec = tiny.spec(folder, "llama-it")
    assert load_tokenizer(spec).chat_template is None
    target = folder / file
    target.parent.mkdir(exist_ok=True)
    if file == "tokenizer_config.json":
        tiny.edit_json(target, **content)
    else:
        target.write_text(content if isinstance(content, str) else json.dumps(content))
    assert encode(load_tokenizer(spec), "the cat", "chat") == encode(tiny.tokenizer(), "the cat", "chat")


def test_a_broken_template_file_is_one_line(tmp_path, llama):
    folder = tmp_path / "m"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").unlink()
    for content in (b"{", b"\xff", b'{"chat_template": NaN}'):
        (folder / "chat_template.json").write_bytes(content)
        refused(lambda: load_tokenizer(tiny.spec(folder, "llama-it")), "chat_template.json", "JSON")


# --- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_the_date_is_pinned(name, monkeypatch):
    """The day is a fixed one, whatever the clock says; another can be given; streams of other templates know nothing of it."""
    tokenizer = with_template(SHAPES[name])
    known, other = (tokenizer.decode(encode(tokenizer, "the cat", "chat", date=date)) for date in (None, "2031-12-05"))
    asks = name in DATED | {"llama31"}
    assert (known != other) == asks
    assert reading(tokenizer, "chat").get("date") == (DATE if asks else None)
    assert reading(tokenizer, "chat", date="2031-12-05").get("date") == ("2031-12-05" if asks else None)
    if asks:
        said = {"harmony": ("2024-07-26", "2031-12-05"), "granite": ("July 26, 2024", "December 05, 2031")}
        first, second = said.get(name, ("26 Jul 2024", "05 Dec 2031"))
        assert first in known and second in other


@pytest.mark.parametrize(
    "date", ["tomorrow", "2024-2-3", "2024-13-01", "2023-02-29", "20240726", "2024-07-26T10", "", "0999-01-01"]
)
def test_what_is_no_date_is_refused(date):
    if date:
        refused(lambda: encode(with_template(HARMONY), "the cat", "chat", date=date), "expected a day as 2025-01-31")
    with pytest.raises(LakeError, match="2025-01-31"):
        templates.check_date(date)


def test_streams_of_other_days_are_other_streams(tmp_path, llama):
    folder = tmp_path / "it"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ strftime_now('%d %b') }}" + tiny.CHAT[15:])
    pair = PairSpec("llama", None, tiny.spec(folder, "llama-it"), {})
    bare = StreamSpec("bare", "chat", "none", 0)
    days = (None, DATE, "2024-07-27")
    found = []
    for day in days:
        layout = tiny.capture(tmp_path / "lake", pair, StreamSpec("bare", "chat", "none", 0, day), variants=("it",))
        found.append(sorted(path.name for path in layout.streams.glob("*.parquet")))
    assert found[0] == found[1] and len(found[0]) == 1 and len(found[2]) == 2
    assert bare.date is None


def test_a_teachers_day_is_part_of_what_it_says(tmp_path, llama):
    """The base model reads raw text, but the words that it is given depend on the day that the other model's template writes."""
    folder = tmp_path / "it"
    shutil.copytree(llama.it.path, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ strftime_now('%d %b') }}" + tiny.CHAT[15:])
    pair = PairSpec("llama", llama.pt, tiny.spec(folder, "llama-it"), {})
    keys = set()
    for number, (day, double) in enumerate(((None, False), ("2031-12-05", False), (None, True), (DATE, False))):
        spec = StreamSpec("teacher", "native", "it", 2, day)
        layout = tiny.capture(tmp_path / f"lake{number}", pair, spec, double_bos=double)
        recipe = read_stream(layout, Capture(find_capture(layout, "llama-pt", "teacher")).manifest["stream"]).recipe
        assert "date" not in recipe and recipe["continuation"]["date"] == (day or DATE)
        keys.add(recipe["key"])
    assert len(keys) == 3
