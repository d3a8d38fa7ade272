"""`actlake model check`: what it says of every family, of paths and pairs, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
from actlake.capture.model.describe import announce, check_models, describe, find_specs, lines, spans
from actlake.capture.model.load import load_model
from actlake.store.core.catalog import ModelSpec, load_catalog
from actlake.store.core.errors import LakeError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_every_family(pairs, family):
    model, entry = load_model(pairs(family).it), tiny.FAMILIES[family]
    found = json.loads(json.dumps(describe(model)))
    assert (found["model"], found["class"]) == (f"{family}-it", type(model.hf).__name__)
    assert (found["blocks"], found["d_model"], found["vocab"], found["max_positions"]) == (3, 32, 300, 128)
    assert found["norm_placement"] == entry.placement and found["head"]["norm"] == entry.norm
    assert ("norm(mlp_out)" in found["mlp_out"]) == bool(entry.post_norms)
    unembed, embedding = (m.weight for m in (model.hf.get_output_embeddings(), model.hf.get_input_embeddings()))
    assert found["tied_embeddings"] == (unembed.data_ptr() == embedding.data_ptr())
    weights = {t.data_ptr(): t.numel() for t in load_file(model.spec.path / "model.safetensors").values()}
    assert found["parameters"] == sum(weights.values())
    assert found["bos"] == {"id": tiny.BOS, "token": "<|bos|>", "raw": 1, "chat": 1}
    assert found["special_ids"].items() >= {token: number for number, token in enumerate(tiny.SPECIAL)}.items()
    assert found["stop_ids"] == [tiny.EOS] and found["chat_template"] and found["real_tokens"] == 300
    assert all(0 <= error < 1e-4 for error in found["errors"].values())
    assert [name for name, text in lines(found) if not text] == []


def test_what_tells_families_apart(tmp_path, pairs):
    def of(family):
        return describe(load_model(pairs(family).pt))

    assert of("deepseek_v2")["mlp"] == [
        {"class": "DeepseekV2MLP", "blocks": "0", "experts": 0},
        {"class": "DeepseekV2Moe", "blocks": "1-2", "experts": 4},
    ]
    assert of("llama")["attention"] == {"full_attention": "0-2"}
    assert of("mistral")["attention"] == {"sliding_attention": "0-2", "window": 5}
    tiny.make_model(tmp_path / "g", "gemma3", num_hidden_layers=7)
    seven = describe(load_model(tiny.spec(tmp_path / "g", "g-pt")))
    assert seven["attention"] == {"sliding_attention": "0-4, 6", "full_attention": "5", "window": 5}
    assert seven["windows"] == {"early": (0, 3), "mid": (2, 5), "late": (4, 7)}
    assert dict(lines(seven))["attention"] == "sliding: 0-4, 6; full: 5 (window 5)"
    assert dict(lines(seven))["windows"] == "early 0-2, mid 2-4, late 4-6"
    assert seven["head"] == {"norm": "rms", "eps": 1e-6, "softcap": 3.0, "logit_scale": 1.0, "bias": False}
    assert of("gemma3_wrapper")["head"]["softcap"] is None  # its class leaves the setting alone
    assert (of("granite")["head"]["logit_scale"], of("llama_tied")["tied_embeddings"]) == (0.25, True)


def test_model_without_chat_template_and_bos(tmp_path):
    folder = tiny.make_model(tmp_path / "m")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tokenizer.bos_token = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    found = describe(load_model(tiny.spec(folder, "m-pt")))
    assert found["bos"] == {"id": None, "token": None} and not found["chat_template"]
    assert dict(lines(found))["BOS"] == "none" and "raw streams only" in dict(lines(found))["chat"]


@given(st.sets(st.integers(0, 30)))
def test_spans_say_the_same_numbers(numbers):
    text = spans(sorted(numbers))
    ends = [[int(n) for n in run.split("-")] for run in text.split(", ") if run]
    assert {n for run in ends for n in range(run[0], run[-1] + 1)} == numbers
    assert all(later[0] > earlier[-1] + 1 for earlier, later in pairwise(ends))  # no run could be joined to the next


def test_names_and_paths(tmp_path, llama, monkeypatch):
    catalog = load_catalog()
    pair = catalog.pair("pocket")
    assert find_specs(catalog, "pocket") == [pair.pt, pair.it]
    (spec,) = find_specs(catalog, str(llama.pt.path))
    assert (spec.name, spec.path, spec.gguf_file) == ("pt", llama.pt.path, None)
    monkeypatch.chdir(llama.pt.path)
    assert find_specs(catalog, ".")[0] == spec  # not the name '.'
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (spec,) = find_specs(catalog, str(tmp_path / "m.gguf"))
    assert (spec.name, spec.path, spec.gguf_file) == ("m", tmp_path, "m.gguf")
    (tmp_path / "m.bin").write_bytes(b"")
    for name, says in (
        ("pockt", "unknown pair 'pockt'.*did you mean 'pocket'"),
        (str(tmp_path / "none"), "no such model folder"),
        ("none.gguf", "no such model folder"),
        (str(tmp_path / "m.bin"), "expected a model folder or a .gguf file"),
    ):
        with pytest.raises(LakeError, match=says):
            find_specs(catalog, name)


def test_models_that_can_not_be_a_pair(tmp_path, llama):
    deeper = tiny.make_model(tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(
        LakeError, match="pair llama-pt and llama-it: pt has 3 blocks of width 32, it 4 blocks of width 32"
    ):
        check_models([llama.pt, replace(llama.it, path=deeper)])
    other = tiny.tokenizer()
    record = json.loads(other.backend_tokenizer.to_str())
    record["model"]["vocab"]["a"], record["model"]["vocab"]["b"] = 67, 66
    shutil.copytree(llama.it.path, tmp_path / "it")
    (tmp_path / "it" / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(LakeError, match="the tokenizers differ"):
        check_models([llama.pt, replace(llama.it, path=tmp_path / "it")])


@pytest.fixture
def check(tmp_path, llama, command_line) -> Callable[..., tuple[int, str, str]]:
    """Run `actlake model check ...` with a catalog of the llama pair; returns exit code and what was printed."""
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama:\n    pt: {{path: {llama.pt.path}}}\n    it: {{path: {llama.it.path}}}\n"
    )

    return lambda *words: command_line("model", "check", *words, "--catalog", str(tmp_path / "catalog.yaml"))


def test_command(check, llama):
    code, out, _ = check("llama")
    assert code == 0 and "llama-pt\n" in out and "llama-it\n" in out and out.rstrip().endswith("captured as a pair")
    assert out.count("head(resid[:, L]) is the model's logits") == 2
    code, out, _ = check(str(llama.it.path), "--json", "--dtype", "bfloat16")
    (found,) = json.loads(out)
    assert code == 0 and (found["model"], found["dtype"], found["norm_placement"]) == ("it", "bfloat16", "pre")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lama"], "unknown pair 'lama'"),
        (["{folder}"], "has no config.json"),
        (["{folder}/nowhere"], "no such model folder"),
        (["{folder}/catalog.yaml"], "expected a model folder or a .gguf file"),
        (["llama", "--dtype", "float8"], "dtype 'float8'"),
        (["llama", "--device", "gpu"], "device 'gpu'"),
    ],
)
def test_command_refuses_in_one_line(check, tmp_path: Path, words, says):
    code, out, err = check(*[word.format(folder=tmp_path) for word in words])
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_loading_that_takes_long_is_said_before(tmp_path: Path) -> None:
    sizes = {"a": ("model-1.safetensors", 1_500_000_000), "b": ("b.Q4.gguf", 200_000_000)}
    for folder, (name, size) in sizes.items():
        (tmp_path / folder).mkdir()
        with open(tmp_path / folder / name, "wb") as file:
            file.truncate(size)
    said: list[str] = []
    whole = tiny.spec(tmp_path / "a", "one")
    announce([whole], said.append)
    announce([whole, ModelSpec("two", tmp_path / "b", None, None, "b.Q4.gguf")], said.append)
    assert said == [
        "loading one, 1.5 GB, about 20 s; `actlake plan` loads none",
        "loading one and two, 1.7 GB, about 2 min; `actlake plan` loads none",
    ]
    announce([ModelSpec("hub", None, "org/model", None, None)], said.append)  # not here yet: no size to tell
    assert len(said) == 2


def test_equal_weights_of_a_pair_are_remarked(tmp_path, pairs):
    pair = pairs("llama")
    shutil.copytree(pair.it.path, tmp_path / "copy")
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    same = [pair.it, replace(pair.it, name="llama-copy", path=tmp_path / "copy")]
    assert ["weights equal" in " ".join(one["notes"]) for one in check_models(same)] == [False, True]
    assert [one["notes"] for one in check_models([pair.pt, pair.it])] == [[], []]
