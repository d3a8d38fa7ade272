"""Models spread over devices by accelerate: on a CPU the same bytes as without, and clear words where it can't work."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from actlake.capture.model.load import load_model
from actlake.store.core.errors import LakeError
from transformers import AutoModelForCausalLM

accelerate = pytest.importorskip("accelerate")

EVERY = replace(tiny.FULL, sites=("resid", "mlp_out", "attn_out", "attn_entropy"))
LEAN = replace(tiny.FULL, sites=("resid",), boundaries=(0, "last"), scalars=("lens", "delta"))


def captured(lake, pair, profile, **options) -> dict[str, bytes]:
    layout = tiny.capture(lake, pair, tiny.NATIVE, variants=("it",), profile=profile, **options)
    return tiny.tree(layout.root / "captures") | tiny.tree(layout.root / "models")


def places(module: Any, name: str, blocks: str) -> dict[str, str]:
    """A device map as accelerate makes it for several devices, all of them the CPU: blocks stay whole."""
    children = list(module.named_children())
    if not children or list(module.parameters(recurse=False)) or name.startswith(f"{blocks}."):
        return {name: "cpu"}
    return {k: v for n, child in children for k, v in places(child, f"{name}.{n}".lstrip("."), blocks).items()}


@pytest.fixture
def hooked(monkeypatch):
    """Make accelerate hook every part of a model that is loaded with a map, as it does over several devices."""
    load = AutoModelForCausalLM.from_pretrained

    def dispatched(where, **options):
        hf, found = load(where, **options)
        if options["device_map"]:
            blocks = next(entry.blocks for entry in tiny.FAMILIES.values() if entry.config == type(hf.config).__name__)
            accelerate.dispatch_model(hf, device_map=places(hf, "", blocks), force_hooks=True)
        return hf, found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", dispatched)


@pytest.mark.parametrize("profile", [EVERY, LEAN], ids=["every-site", "lean"])
@pytest.mark.parametrize("family", ["llama_tied", "gemma3_wrapper", "gpt2"])
def test_a_map_changes_no_byte(tmp_path, pairs, hooked, family, profile):
    plain = captured(tmp_path / "plain", pairs(family), profile)
    assert captured(tmp_path / "mapped", pairs(family), profile, device_map="auto") == plain


def test_a_map_of_one_device(tmp_path, llama):
    plain = captured(tmp_path / "plain", llama, EVERY)
    for number, device_map in enumerate(({"": "cpu"}, "auto")):
        assert captured(tmp_path / f"{number}", llama, EVERY, device_map=device_map) == plain


def test_blocks_really_are_hooked(pairs, hooked):
    for family in ("llama", "gemma3_wrapper"):
        model = load_model(pairs(family).it, device_map="auto")
        assert all(
            hasattr(module, "_hf_hook") for module in (*model.parts.blocks, model.parts.norm, model.parts.unembed)
        )
        assert (model.device, model.head_device) == (torch.device("cpu"), torch.device("cpu"))


def test_a_model_that_would_be_moved_in_and_out_is_refused(tmp_path, llama):
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    with pytest.raises(
        LakeError, match=r"does not fit on the devices, 27 weights .*first: model\.layers\.0\..*--device cpu"
    ):
        load_model(llama.it, device_map=places | {"model.rotary_emb": "cpu"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda:1", "device_map": "auto"}, "--device cuda:1 and --device-map exclude each other"),
        ({"device_map": "automatic"}, "device map 'automatic': expected one of auto, balanced"),
        ({"device": "gpu"}, "device 'gpu': expected cpu, cuda"),
    ],
)
def test_what_is_refused(tmp_path, llama, options, says):
    with pytest.raises(LakeError, match=says):
        tiny.capture(tmp_path / "lake", llama, tiny.BARE, **options)
    with pytest.raises(LakeError, match=says):
        load_model(llama.it, **options)


def test_without_accelerate(llama, monkeypatch):
    monkeypatch.setattr("actlake.capture.checkpoint.loading.find_spec", lambda name: None)
    with pytest.raises(LakeError, match="--device-map needs the package accelerate: pip install accelerate"):
        load_model(llama.it, device_map="auto")


def test_weights_that_do_not_fit(llama, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(
        LakeError, match="model llama-it: its weights do not fit into the memory of cpu; --device-map auto"
    ):
        load_model(llama.it)


def test_commands_pass_it_on(tmp_path, llama, monkeypatch, command_line):
    (tmp_path / "set.jsonl").write_text('{"id": "a", "text": "the cat"}\n')
    (tmp_path / "catalog.yaml").write_text(
        f"pairs:\n  llama:\n    it: {{path: {llama.it.path}}}\nprompts:\n  tiny: {{path: set.jsonl}}\nlakes: {{default: lake}}\n"
    )
    asked, told = [], ""

    def load(spec, *args, device_map=None, **options):
        asked.append(device_map)
        return load_model(spec, *args, device_map=device_map, **options)

    for place in ("streams.capture_pair", "model.describe", "model.load"):
        monkeypatch.setattr(f"actlake.capture.{place}.load_model", load)
    for words in (
        ["capture", "llama-it", "--prompts", "tiny", "--max-new-tokens", "2"],
        ["verify", "--reforward", "1"],
        ["model", "check", "llama"],
    ):
        code, out, _ = command_line(*words, "--device-map", "auto", "--catalog", str(tmp_path / "catalog.yaml"))
        assert code == 0 and asked.pop() == "auto"
        told += out
    assert "bit for bit equal" in told
