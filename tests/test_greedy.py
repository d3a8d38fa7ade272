"""Greedy means greedy: whatever a model's generation settings say, its continuation is the plain argmax up to a stop id."""

import json
import shutil

import pytest
import tiny
import torch
from actlake.capture.checkpoint.stops import declared
from actlake.capture.checkpoint.tokens import encode
from actlake.capture.model.load import load_model
from actlake.capture.streams import free
from actlake.capture.streams.greedy import decode
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.errors import LakeError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

NEW = 6
# One setting of generation_config.json at a time, with values that change what the tiny model says (all kinds that
# transformers knows, and some that it does not).
SETTINGS = {
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "sequence_bias": [[[7], 100.0], [[9, 8], 50.0]],
    "guidance_scale": 3.0,
    "suppress_tokens": list(range(40, 300)),
    "begin_suppress_tokens": list(range(40, 300)),
    "bad_words_ids": [[token] for token in range(40, 200)],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": tiny.EOS,
    "forced_decoder_ids": [[1, 7], [2, 8]],
    "exponential_decay_length_penalty": [1, 50.0],
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 50.0, "seeding_scheme": "lefthash"},
    "max_time": 1e-9,
    "min_new_tokens": 6,
    "min_length": 40,
    "max_length": 3,
    "max_new_tokens": 1,
    "stop_strings": ["a", "e", " "],
    "do_sample": True,
    "temperature": 9.0,
    "top_k": 3,
    "top_p": 0.1,
    "min_p": 0.5,
    "top_h": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "num_beams": 3,
    "num_beam_groups": 2,
    "num_return_sequences": 2,
    "diversity_penalty": 1.0,
    "length_penalty": 9.0,
    "early_stopping": True,
    "constraints": [[7]],
    "force_words_ids": [[7]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "num_assistant_tokens": 3,
    "is_assistant": True,
    "use_mtp": True,
    "speculation_type": "dflash",
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "use_cache": False,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "token_healing": True,
    "low_memory": True,
    "custom_generate": "somebody/something",
    "return_dict_in_generate": True,
    "output_logits": True,
    "output_scores": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "decoder_start_token_id": 9,
    "bos_token_id": 9,
    "pad_token_id": 9999,
    "compile_config": {"fullgraph": True},
    "continuous_batching_config": {"block_size": 2},
    "a_setting_of_tomorrow": 5,
}
# Values that transformers itself can't take: they do not count, so they can't hurt.
BROKEN = {
    "temperature": "hot",
    "top_k": -5,
    "num_beams": "many",
    "max_new_tokens": -1,
    "watermarking_config": "yes",
    "suppress_tokens": "all",
    "sequence_bias": {},
    "cache_implementation": 7,
    "do_sample": "maybe",
    "min_length": [],
}


def told(model):
    prompts = [encode(tiny.tokenizer(), row[2], "chat") for row in tiny.TEXTS[:4]]
    return decode(model, prompts, NEW, [tiny.EOS])


@torch.no_grad()
def naive(hf, prompt, steps=NEW, stops=(tiny.EOS,)):
    found = []
    while len(found) < steps and not (found and found[-1] in stops):
        found.append(int(hf(input_ids=torch.tensor([[*prompt, *found]]), use_cache=False).logits[0, -1].argmax()))
    return found


@pytest.fixture(scope="module")
def plain(llama):
    """What the textbook's loop says, without a cache or padding."""
    hf = AutoModelForCausalLM.from_pretrained(llama.it.path)
    return [naive(hf, encode(tiny.tokenizer(), row[2], "chat")) for row in tiny.TEXTS[:4]]


def with_settings(llama, folder, **settings):
    shutil.copytree(llama.it.path, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tiny.EOS, **settings}))
    return tiny.spec(folder, "llama-it")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_nothing(llama, plain, tmp_path, name):
    model = load_model(with_settings(llama, tmp_path / "m", **{name: SETTINGS[name]}))
    assert told(model) == plain


def test_all_settings_at_once_change_nothing_in_a_model_made_elsewhere(llama, plain):
    """The same for settings that a module has by other ways than its files."""
    model = load_model(llama.it)
    odd = GenerationConfig(suppress_tokens=list(range(40, 300)), no_repeat_ngram_size=1, max_time=1e-9)
    model.hf.generation_config = odd
    assert told(model) == plain
    assert model.hf.generation_config is odd


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_setting_is_no_matter(llama, plain, tmp_path, name):
    model = load_model(with_settings(llama, tmp_path / "m", **{name: BROKEN[name]}))
    assert told(model) == plain


@pytest.mark.parametrize("name", ["no_repeat_ngram_size", "suppress_tokens", "max_length", "num_beams", "do_sample"])
def test_a_setting_in_the_config_changes_nothing(llama, plain, tmp_path, name):
    shutil.copytree(llama.it.path, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    tiny.edit_json(tmp_path / "m" / "config.json", **{name: SETTINGS[name]})
    assert told(load_model(tiny.spec(tmp_path / "m", "llama-it"))) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "can't be read as JSON"),
        (b"\xff\xfe", "can't be read as JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"eos_token_id": "2"}', "eos_token_id holds '2'"),
        (b'{"eos_token_id": 2.0}', "eos_token_id holds 2.0"),
        (b'{"eos_token_id": [2, true]}', "eos_token_id holds True"),
        (b'{"eos_token_id": {"a": 1}}', "eos_token_id holds {'a': 1}"),
    ],
)
def test_a_broken_file_is_one_line(llama, tmp_path, content, message):
    shutil.copytree(llama.it.path, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_bytes(content)
    pair = type(llama)("llama", None, tiny.spec(tmp_path / "m", "llama-it"), {})
    for attempt in (
        lambda: load_model(pair.it),
        lambda: tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, variants=("it",)),
    ):
        with pytest.raises(LakeError, match="generation_config.json") as raised:
            attempt()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_stop_ids_are_those_of_the_files(llama, tmp_path):
    """Of generation_config.json, else of the config; ids that no token has are none."""
    shutil.copytree(llama.it.path, tmp_path / "m")
    spec, file = tiny.spec(tmp_path / "m", "llama-it"), tmp_path / "m" / "generation_config.json"

    def found():
        return declared(spec, str(spec.path), AutoConfig.from_pretrained(spec.path))

    for held, expected in ((7, (7,)), ([9, 7], (7, 9)), (None, ()), ([-1, 3], (3,))):
        file.write_text(json.dumps({"eos_token_id": held, "top_k": 3}))
        assert found() == expected
    file.unlink()
    assert found() == (tiny.EOS,)
    tiny.edit_json(tmp_path / "m" / "config.json", eos_token_id=[5, 4])
    assert found() == (4, 5)


def test_the_recipe_says_greedy_and_with_which_stops(llama, tmp_path):
    """Other stop ids make another recipe, other settings none."""
    keys = {}
    for number, settings in enumerate(({}, {"eos_token_id": [tiny.EOS, 40]}, {"top_k": 5})):
        spec = with_settings(llama, tmp_path / f"m{number}", **settings)
        pair = type(llama)("llama", None, spec, {})
        layout = tiny.capture(tmp_path / f"lake{number}", pair, tiny.NATIVE, variants=("it",))
        recipe = read_stream(layout, Capture(find_capture(layout, "llama-it", "native")).manifest["stream"]).recipe
        made = recipe["continuation"]
        assert (made["decoding"], made["turn_end"]) == ("greedy", tiny.EOS)
        assert made["stops"] == sorted(settings.get("eos_token_id", [tiny.EOS]))
        keys[number] = {name: value for name, value in made.items() if name != "model_sha256"}
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "qwen2"])
def test_rows_that_end_leave_the_batch_and_change_no_text(pairs, monkeypatch, family):
    model = load_model(pairs(family).it)
    assert free.drops_rows(model)
    prompts = [encode(tiny.tokenizer(), row[2], "chat") for row in tiny.TEXTS[:6]]
    plain = decode(model, prompts, 24, [])
    stops = sorted({row[at] for at, row in zip((1, 4, 9), plain, strict=False)})
    expected, widths = decode(model, prompts, 24, stops), []
    hook = model.hf.register_forward_pre_hook(
        lambda _m, _a, given: widths.append(len(given["input_ids"])), with_kwargs=True
    )
    found = dict(
        pair for some, told in free.decoded(model, prompts, 24, stops, 6) for pair in zip(some, told, strict=True)
    )
    hook.remove()
    assert [found[place] for place in range(6)] == expected and len({*map(len, expected)}) > 1
    assert widths[0] == 6 and widths[-1] < 6 and widths == sorted(widths, reverse=True)
    monkeypatch.setitem(free._drops_rows, model.hf, False)
    again = dict(
        pair for some, told in free.decoded(model, prompts, 24, stops, 6) for pair in zip(some, told, strict=True)
    )
    assert again == found
