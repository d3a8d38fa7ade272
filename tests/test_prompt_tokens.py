"""A prompt's tokens: BOS once, nothing behind the text, control tokens, unknown ones, none at all, and padding of any id."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny
from actlake.capture.checkpoint.tokens import control_texts, dropped, encode, encode_all, notes, reading
from actlake.capture.model.hooks import pad_id
from actlake.capture.model.load import load_model, load_tokenizer
from actlake.capture.streams.greedy import decode
from actlake.capture.streams.prompts import Prompt
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import PairSpec, StreamSpec, load_catalog
from actlake.store.core.errors import LakeError
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

SPECIALS = [("<|bos|>", tiny.BOS), ("<|eos|>", tiny.EOS)]


def around(single, tokenizer=None):
    """The tiny tokenizer with another post-processor, `$A` the text."""
    tokenizer = tokenizer or tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=SPECIALS)
    return tokenizer


def words(**tokens):
    """A tokenizer of five words that lower-cases, and knows no others."""
    vocab = {"[UNK]": 0, "the": 1, "cat": 2, "<s>": 3, "</s>": 4}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("\u200b", "")])
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", **tokens)


def refused(call, *parts):
    with pytest.raises(LakeError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("single", "left"),
    [
        ("<|bos|> $A", []),
        ("<|bos|> $A <|eos|>", [tiny.EOS]),
        ("$A <|eos|>", [tiny.EOS]),
        ("<|bos|> $A <|eos|> <|eos|>", [tiny.EOS, tiny.EOS]),
        ("<|bos|> <|bos|> $A", [tiny.BOS]),
        ("<|bos|> <|bos|> $A <|eos|>", [tiny.BOS, tiny.EOS]),
        ("$A <|bos|>", [tiny.BOS]),
        ("<|eos|> $A", []),  # what stands before a text stays
        ("$A", []),
    ],
)
def test_what_a_tokenizer_puts_around_a_text(single, left):
    """The text ends the prompt, BOS stands once; what was left out is recorded, and said in one line by `model check`."""
    tokenizer, plain = around(single), tiny.tokenizer()("the cat", add_special_tokens=False)["input_ids"]
    before = single.partition("$A")[0].split()
    expected = list(dict.fromkeys(dict(SPECIALS)[token] for token in before)) + plain
    assert encode(tokenizer, "the cat", "raw") == expected
    assert dropped(tokenizer, "raw") == left
    assert reading(tokenizer, "raw") == ({"dropped": left} if left else {})
    chat = encode(tokenizer, "the cat", "chat")
    assert chat == encode(tiny.tokenizer(), "the cat", "chat") and "dropped" not in reading(tokenizer, "chat")


def test_double_bos_drops_an_eos_too():
    tokenizer = around("<|bos|> $A <|eos|>")
    assert encode(tokenizer, "the cat", "chat", True) == [tiny.BOS, *encode(tiny.tokenizer(), "the cat", "chat")]
    assert reading(tokenizer, "chat", True)["dropped"] == [tiny.EOS]


def test_a_template_that_writes_bos_twice():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + tiny.CHAT
    assert encode(tokenizer, "the cat", "chat") == encode(tiny.tokenizer(), "the cat", "chat")
    assert reading(tokenizer, "chat")["dropped"] == [tiny.BOS]


def test_bos_that_is_eos_stands_once_at_the_beginning():
    """Chat templates close turns with the token that also begins a text (GPT-2's only special token)."""
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    around("<|eos|> $A", tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = encode(tokenizer, "the cat", "chat")
    assert ids[0] == tiny.EOS and ids[1] != tiny.EOS and ids[-1] == tiny.EOS
    assert encode(tokenizer, "the cat", "raw").count(tiny.EOS) == 1


def test_a_stream_says_what_was_dropped(tmp_path, llama, capfd):
    folder = tmp_path / "pt"
    shutil.copytree(llama.pt.path, folder)
    around("<|bos|> $A <|eos|>").save_pretrained(folder)
    pair = PairSpec("llama", tiny.spec(folder, "llama-pt"), None, {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("pt",))
    stream = read_stream(layout, Capture(find_capture(layout, "llama-pt", "raw")).manifest["stream"])
    assert stream.recipe["dropped"] == [tiny.EOS]
    for row, start in zip(stream.tokens, stream.starts, strict=True):
        assert row[0] == tiny.BOS and tiny.EOS not in row[:start]
    assert "'<|eos|>' (2) around prompts; left out" in capfd.readouterr().err


def test_a_template_that_ends_prompts_with_eos_is_remarked():
    tokenizer = tiny.tokenizer()
    assert not notes("m", tokenizer, {"template": "chat"})
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert "ends a prompt with EOS ('<|eos|>')" in notes("m", tokenizer, {"template": "chat"})[0]
    assert not notes("m", tokenizer, {"template": "raw"})


# --- control tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("<|bos|>the river", "'<|bos|>' (1)"),
        ("the <|eos|> river <|user|>", "'<|eos|>' (2)"),
        ("the river<|assistant|>", "'<|assistant|>' (4)"),
        ("<|pad|>", "'<|pad|>' (0)"),
    ],
)
def test_control_tokens_in_a_text_are_refused_by_name(template, text, token):
    tokenizer = tiny.tokenizer()
    refused(
        lambda: encode_all(tokenizer, ["the cat", text], template, names=["prompt 'a'", "prompt 'b' of set s"]),
        f"prompt 'b' of set s: its text holds the control token {token}",
        "--control-tokens",
    )


def test_control_tokens_that_are_allowed_are_recorded_and_bos_stands_once():
    tokenizer = tiny.tokenizer()
    ids = encode(tokenizer, "the <|eos|> river <|user|>", "raw", control=True)
    assert ids[0] == tiny.BOS and ids.count(tiny.BOS) == 1 and tiny.EOS in ids and ids[-1] == tiny.USER
    assert encode(tokenizer, "<|bos|>the river", "raw", control=True) == encode(tokenizer, "the river", "raw")
    refused(lambda: encode(tokenizer, "the <|bos|> river", "raw", control=True), "'<|bos|>' (1)", "BOS stands once")
    refused(lambda: encode(tokenizer, "<|bos|>the river", "chat", control=True), "'<|bos|>' (1)", "BOS stands once")
    assert reading(tokenizer, "raw", control=True) == {"control_tokens": "allowed"}


def test_a_bos_that_begins_every_turn_is_allowed_where_the_tokenizer_adds_none():
    """As in SmolLM2, whose BOS is <|im_start|>: texts that bring their own turns are possible."""
    tokenizer = around("$A")
    tokenizer.bos_token = "<|user|>"
    text = "<|user|>the cat<|assistant|>sat<|user|>"
    refused(lambda: encode(tokenizer, text, "raw"), "'<|user|>' (3)")
    assert encode(tokenizer, text, "raw", control=True).count(tiny.USER) == 2


def test_tokens_of_the_template_count_though_they_are_not_special():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<|im_end|>", "<table>")])
    tokenizer.chat_template = tiny.CHAT.replace("{{ eos_token }}", "<|im_end|>")
    assert encode(tokenizer, "a <table>", "chat")
    refused(lambda: encode(tokenizer, "so <|im_end|> he", "chat"), "'<|im_end|>' (300)")


@pytest.mark.parametrize("token", ["!", ".", "\n", "cat", "the", "~", "  "])
def test_special_tokens_that_look_like_text_are_text(token):
    """Some models pad with '!': prompts may hold it."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = token
    assert not any(text == token for text in control_texts(tokenizer).values())
    for template in ("raw", "chat"):
        ids = encode(tokenizer, f"the{token}dog", template)
        assert "dog" in tokenizer.decode(ids) and ids.count(tiny.BOS) == 1


def test_an_option_and_a_catalog_allow_control_tokens(tmp_path, llama):
    from actlake.cli.main import app

    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        f"pairs: {{llama: {{pt: {{path: {llama.pt.path}}}}}}}\n"
        "streams:\n"
        "  strict: {template: raw, continuation: none}\n"
        "  loose: {template: raw, continuation: none, control_tokens: allow, date: 2025-01-31}\n"
    )
    assert load_catalog(catalog).stream("loose") == StreamSpec("loose", "raw", "none", 0, "2025-01-31", True)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "the <|user|> said"}\n')
    words = ["capture", "llama-pt", "--catalog", str(catalog), "--prompts", str(tmp_path / "p.jsonl")]
    words += ["--lake", str(tmp_path / "lake")]
    strict = CliRunner().invoke(app, [*words, "--stream", "strict"])
    assert isinstance(strict.exception, LakeError) and "prompt 'a' of set p: its text holds" in str(strict.exception)
    assert not list((tmp_path / "lake").rglob("*.parquet"))
    for more in (["--stream", "strict", "--control-tokens"], ["--stream", "loose"]):
        assert CliRunner().invoke(app, [*words, *more]).exit_code == 0
    for wrong in ("date: yesterday", "date: [1]", "control_tokens: maybe", "control_tokens: true"):
        catalog.write_text(f"streams: {{a: {{template: raw, continuation: none, {wrong}}}}}\n")
        with pytest.raises(LakeError, match=r"catalog.yaml:1: stream a, (date|control_tokens)"):
            load_catalog(catalog)


def test_a_prompt_of_another_models_tokens_is_refused_before_anything_is_loaded(tmp_path, llama, monkeypatch):
    """An added token without an embedding, in a capture and in free generation."""
    from actlake.cli.main import app

    folder = tmp_path / "it"
    shutil.copytree(llama.it.path, folder)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    pair = PairSpec("llama", None, tiny.spec(folder, "llama-it"), {})
    monkeypatch.setattr("actlake.capture.streams.capture_pair.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(
        LakeError, match=r"prompt 'z' of set tiny: token id 300 \('zebra'\), llama-it has 300 embeddings"
    ):
        tiny.capture(
            tmp_path / "lake", pair, tiny.RAW, variants=("it",), prompts=tiny.prompt_set([("z", "", "a zebra")])
        )
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"pairs: {{llama: {{pt: {{path: {llama.pt.path}}}, it: {{path: {folder}}}}}}}\n")
    (tmp_path / "p.jsonl").write_text('{"id": "z", "text": "a zebra"}\n')
    words = ["generate", "llama", "--catalog", str(catalog), "--prompts", str(tmp_path / "p.jsonl")]
    found = CliRunner().invoke(app, [*words, "--lake", str(tmp_path / "lake")])
    assert isinstance(found.exception, LakeError) and "prompt 'z' of set p: token id 300" in str(found.exception)


# --- texts without tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_prompts_without_tokens_are_refused(template):
    tokenizer = words(chat_template="{{ messages[0].content }} the")
    for text in ("\u200b\u200b", "\x07"):
        if text == "\x07":
            tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
        refused(
            lambda text=text: encode_all(tokenizer, ["the", text], template, names=["prompt 'a'", "prompt 'b'"]),
            "prompt 'b': the tokenizer of this model gives no token",
        )
    for text in ("", " ", "\n\t", "\u3000"):
        refused(lambda text=text: encode(tokenizer, text, template), "is blank")


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_text_that_a_tokenizer_does_not_know_is_refused(template):
    tokenizer = words(chat_template="{{ messages[0].content }} the")
    assert encode(tokenizer, "the cat", template)
    refused(lambda: encode(tokenizer, "the 雨 cat", template), "has no token for a part of its text ([UNK]")
    tokenizer.unk_token = tokenizer.eos_token  # GPT-2's, which stands for no unknown text
    assert encode(tokenizer, "the cat", template)


def test_different_texts_with_the_same_tokens_are_refused():
    refused(
        lambda: encode_all(words(), ["the cat", "The CAT"], "raw", names=["prompt 'a'", "prompt 'b'"]),
        "prompt 'a' and prompt 'b': different texts with the same tokens",
    )


def test_blank_prompts_of_a_set_made_in_python_are_refused(tmp_path, llama):
    for text in (" ", "\n"):
        with pytest.raises(LakeError, match="prompt 'x' of set tiny: is blank"):
            tiny.capture(tmp_path / "lake", llama, tiny.BARE, prompts=tiny.prompt_set([("x", "", text)]))
    assert Prompt("x", "", " ").text == " "


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [300, 100000])
def test_a_pad_token_without_an_embedding_is_no_matter(tmp_path, llama, pad):
    """`[PAD]` added beyond the embedding (an old habit with Llama 2): the same tokens and values as without it."""
    folder = tmp_path / "m"
    shutil.copytree(llama.pt.path, folder)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([AddedToken(f"[{number}]", special=True) for number in range(pad - 300)][:50])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= 300
    tokenizer.save_pretrained(folder)
    model, plain = load_model(tiny.spec(folder, "llama-pt")), load_model(llama.pt)
    assert 0 <= pad_id(model) < 300
    prompts = [encode(model.tokenizer, row[2], "raw") for row in tiny.TEXTS]
    assert decode(model, prompts, 6, [tiny.EOS]) == decode(plain, prompts, 6, [tiny.EOS])
    pair = PairSpec("llama", model.spec, None, {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("pt",))
    assert len(Capture(find_capture(layout, "llama-pt", "raw")).manifest["files"]) > 0


@pytest.mark.parametrize("pad", [-1, 299, 300, None])
def test_pad_id_has_an_embedding(tmp_path, llama, pad):
    folder = tmp_path / "m"
    shutil.copytree(llama.pt.path, folder)
    model = load_model(tiny.spec(folder, "llama-pt"))
    model = replace(model, tokenizer=Padded(pad))
    assert pad_id(model) == (pad if pad == 299 else 0)


class Padded:
    """A tokenizer of which only the pad id matters."""

    eos_token_id = bos_token_id = None

    def __init__(self, pad):
        self.pad_token_id = pad


def test_tokenizer_files_of_a_folder_keep_their_template(tmp_path, llama):
    """Saving and loading a tokenizer with all of this changes no token."""
    assert encode(load_tokenizer(llama.it), "the cat", "chat") == encode(tiny.tokenizer(), "the cat", "chat")
    assert json.loads((llama.it.path / "tokenizer_config.json").read_text())
