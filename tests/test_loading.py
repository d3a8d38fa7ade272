"""How checkpoints load: the kernel and the dtype that run are those of the record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from actlake.capture.checkpoint.configs import load_tokenizer
from actlake.capture.edit.replay import load_late
from actlake.capture.edit.start import loaded_as
from actlake.capture.model.describe import announce, describe, lines
from actlake.capture.model.load import Model, identify, load_model
from actlake.capture.run.reforward import reforward
from actlake.cli import main
from actlake.lake import Lake
from actlake.queries.rows.registry import find
from actlake.store.artifacts.models import read_model
from actlake.store.captures.manifest import noise_warning
from actlake.store.captures.reader import Capture, find_capture, list_captures
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.core.progress import remark
from asking import answer
from safetensors.torch import load_file, save_file
from test_observed_rows import texts
from test_replay import catalog, check_identity
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.llama.modeling_llama import LlamaMLP

NO_SDPA = {
    "gemma2": tiny.Family("Gemma2Config", {**tiny.GEMMA3, "attn_logit_softcapping": 2.0}),
    "gpt_oss": tiny.Family(
        "GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5}
    ),
}


@pytest.mark.parametrize("family", NO_SDPA)
def test_a_class_without_sdpa_runs_eager_and_says_so(tmp_path: Path, monkeypatch, family: str) -> None:
    """The capture's provenance has the kernel that ran, and a replay with it gives what is stored, bit for bit."""
    monkeypatch.setitem(tiny.FAMILIES, family, NO_SDPA[family])
    pair = PairSpec(family, None, tiny.spec(tiny.make_model(tmp_path / "it", family), f"{family}-it"), {})
    found = describe(load_model(pair.it))
    assert found["attention_kernel"] == "eager"
    assert dict(lines(found))["attention"].endswith("; eager (its own code): this class has no sdpa")
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    path = find_capture(layout, f"{family}-it", "raw")
    options = loaded_as(Capture(path).manifest["provenance"], path)
    assert options == {"dtype": "float32", "attention": "eager"}
    check_identity(layout, load_late(layout, f"{family}-it", 1, catalog(pair), **options), 1)


# --- dtype -----------------------------------------------------------------------------------------------------------


def without_dtype(folder: Path, value: object = "gone") -> Path:
    """Take the dtype out of a config.json and of the configs inside it, or put `value` in its place."""
    config = json.loads((folder / "config.json").read_text())
    for part in [config, *(held for held in config.values() if isinstance(held, dict) and "model_type" in held)]:
        part.pop("dtype", None)
        part |= {} if value == "gone" else {"dtype": value}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(folder: Path, **tensors: torch.Tensor) -> None:
    """Put tensors beside those of a checkpoint."""
    held = load_file(folder / "model.safetensors")
    save_file({**held, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gemma3_wrapper", "gpt2"])
@pytest.mark.parametrize(
    ("dtype", "said", "single"),
    [("bfloat16", "gone", ()), ("float16", None, ()), ("bfloat16", "gone", ("norm", "ln_")), ("float64", "gone", ())],
    ids=["bfloat16", "float16-null", "float32-norms", "float64"],
)
def test_the_dtype_is_that_of_the_module(tmp_path: Path, family: str, dtype: str, said: object, single: tuple) -> None:
    """Without a dtype in its config a model has that of its weights: record, capture and Hugging Face agree."""
    folder = without_dtype(tiny.make_model(tmp_path / "it", family, dtype=getattr(torch, dtype)), said)
    if single:
        held = load_file(folder / "model.safetensors")
        change(folder, **{name: held[name].float() for name in held if any(part in name for part in single)})
    spec = tiny.spec(folder, f"{family}-it")
    model = load_model(spec)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == loaded.dtype == getattr(torch, dtype)
    assert identify(spec)["dtype"] == model.record["dtype"] == dtype
    assert identify(spec)["sha256"] == model.record["sha256"]
    layout = tiny.capture(tmp_path / "lake", PairSpec(family, None, spec, {}), tiny.RAW, variants=("it",))
    path = find_capture(layout, f"{family}-it", "raw")
    manifest = Capture(path).manifest
    assert manifest["source_dtype"] == manifest["provenance"]["dtype"] == dtype
    again = reforward(layout, load_model(spec, dtype=dtype), path, 2)
    assert again.ok and again.exact
    if dtype == "float64":  # what is stored is float32: rounding allows no more than there
        assert all(value < 1e-3 for value in again.allowed.values())


def test_shards_without_a_dtype(tmp_path: Path) -> None:
    """The first shard's header says it, or the index itself."""
    folder = without_dtype(tiny.make_model(tmp_path / "m", dtype=torch.bfloat16))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    without_dtype(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load_model(tiny.spec(folder, "m-pt")).record["dtype"] == "bfloat16"


# --- what the files hold beside --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; copy it before you spoil it."""
    return tiny.make_model(tmp_path_factory.mktemp("llama") / "m")


def loaded(llama: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> Model:
    shutil.copytree(llama, tmp_path / "m")
    spoil(tmp_path / "m")
    return load_model(tiny.spec(tmp_path / "m", "m-pt"))


def refused(llama: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> str:
    with pytest.raises(LakeError) as caught:
        loaded(llama, tmp_path, spoil)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model m-pt: ")
    return str(caught.value)


def add(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: change(folder, **{name: torch.ones(shape)})


def add_block(folder: Path, extra: str = "") -> None:
    """A copy of the last block behind it, with one tensor more."""
    held = load_file(folder / "model.safetensors")
    more = {name.replace("layers.2.", "layers.3."): held[name].clone() for name in held if "layers.2." in name}
    change(folder, **more, **({f"model.layers.3.{extra}": torch.ones(3)} if extra else {}))


def to_float8(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    change(folder, **{name: held[name].to(torch.float8_e4m3fn) for name in held if "mlp" in name})


BLOCK = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (add_block, "they reach to block 3, its config says num_hidden_layers 3"),
        (add(f"{BLOCK}.bias", 32), f"1 tensor that LlamaForCausalLM does not take ({BLOCK}.bias): biases"),
        (add("score.weight", 1, 32), "does not take (score.weight)"),
        (add("model.layers.1.mlp.router.weight", 4, 32), "(model.layers.1.mlp.router.weight)"),
        (add(f"{BLOCK}.lora_A.default.weight", 4, 32), "1 tensor of an adapter"),
        (add(f"base_model.model.{BLOCK}.lora_B.weight", 32, 4), "merge_and_unload"),
        (add(f"{BLOCK}.lora_magnitude_vector", 32), "of an adapter"),
        (to_float8, "of type F8_E4M3"),
        (
            lambda d: change(d, **{f"{BLOCK}.weight": torch.ones(32, 32, dtype=torch.int8)}),
            "1 tensor of the files of type I8",
        ),
        (add(f"{BLOCK}.weight_scale_inv", 1, 1), "1 tensor of a quantisation"),
        (add(f"{BLOCK}.qweight", 4, 4), "no quantization_config"),
    ],
)
def test_tensors_without_a_place_are_refused_by_name(llama, tmp_path, spoil, says) -> None:
    assert says in refused(llama, tmp_path, spoil)


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (add("model.layers.0.self_attn.rotary_emb.inv_freq", 4), None),
        (add("model.layers.0.self_attn.rotary_emb.cos_cached", 128, 8), None),
        (add("model.layers.0.self_attn.k_proj.k_scale", 1), None),
        (add("model.layers.0.attn.masked_bias"), None),
        (add("model.layers.0.attn.bias", 1, 1, 128, 128), None),
        (add("mtp.layers.0.mlp.up_proj.weight", 8, 32), "1 tensor of draft heads in the files, not run"),
        (add("v_head.summary.weight", 1, 32), "of a value head"),
        (add("vision_tower.encoder.weight", 4, 4), "of the part for pictures or sound"),
        (lambda folder: add_block(folder, "eh_proj.weight"), "10 tensors of layers that predict further tokens (MTP)"),
    ],
)
def test_leftovers_and_parts_beside_load_with_a_note(llama, tmp_path, spoil, note) -> None:
    model = loaded(llama, tmp_path, spoil)
    assert [note in one for one in model.notes] == [True] * bool(note)
    assert [name for name, _ in lines(describe(model))].count("note") == bool(note)


def test_a_tied_head_may_lie_in_the_files_twice(tmp_path: Path) -> None:
    folder = tiny.make_model(tmp_path / "m", "llama_tied")
    change(folder, **{"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()})
    assert not load_model(tiny.spec(folder, "m-pt")).notes


# --- files that are not what they seem -------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n"
WEIGHTS = "model.safetensors"


def only(folder: Path, **files: str) -> None:
    for file in folder.iterdir():
        file.unlink()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/0f")


def renamed(folder: Path, old: str, new: str) -> None:
    held = load_file(folder / WEIGHTS)
    save_file({name.replace(old, new): held[name] for name in held}, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path, then: Callable[[list[Path]], object]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    then(sorted(folder.glob("model-*.safetensors")))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / WEIGHTS).write_text(POINTER), f"{WEIGHTS}: a Git LFS pointer"),
        (lambda d: (d / "tokenizer.json").write_text(POINTER), "tokenizer.json: a Git LFS pointer"),
        (lambda d: (d / "config.json").write_text(POINTER), "config.json: a Git LFS pointer"),
        (lambda d: shard(d, lambda files: files[1].write_text(POINTER)), "-00002-of-00005.safetensors: a Git LFS pointer"),
        (lambda d: shard(d, lambda files: files[2].unlink()), "lacks 1 of the 5 files"),
        (lambda d: shard(d, lambda _: (d / f"{WEIGHTS}.index.json").unlink()), "no model.safetensors.index.json beside its 5"),
        (lambda d: shard(d, lambda _: (d / f"{WEIGHTS}.index.json").write_text("{}")), "is no index of shards"),
        (lambda d: (d / WEIGHTS).write_text("<html>"), "a web page"),
        (lambda d: torch.save({}, d / WEIGHTS), "a zip file, as torch.save writes it"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-1]), "ends too early"),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:99]), "ends inside its header"),
        (lambda d: (d / WEIGHTS).rename(d / "consolidated.safetensors"), "only consolidated.safetensors: the original"),
        (lambda d: (d / WEIGHTS).rename(d / "diffusers.safetensors"), "rename the file that holds the weights"),
        (lambda d: link(d / WEIGHTS), "is a link to ../../blobs/0f, which is not there"),
        (lambda d: link(d / "config.json"), "is a link to ../../blobs/0f, which is not there"),
        (lambda d: (d / WEIGHTS).rename(d / "model.bin"), "pickled weights can run code"),
        (lambda d: (d / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}'), "a LORA adapter of rank 8"),
        (lambda d: only(d, adapter_config__json='{"base_model_name_or_path": "a/b"}'), "a PEFT adapter of a/b; merge it"),
        (lambda d: only(d, **{"a-Q4__gguf": "", "b__gguf": ""}), "2 .gguf files: name one of them (a-Q4.gguf, b.gguf)"),
        (lambda d: only(d, params__json="{}"), "the original format of Llama or Mistral"),
        (lambda d: only(d, model_index__json="{}"), "a diffusion pipeline"),
        (lambda d: (d / "tokenizer.json").write_text("[]"), "tokenizer.json is no JSON object"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer files (tokenizer.json"),
        (lambda d: [(d / "tokenizer.json").unlink(), (d / "tekken.json").write_text("{}")], "has only tekken.json"),
        (lambda d: [(d / "tokenizer.json").unlink(), (d / "vocab.json").write_text("{}")], "has no tokenizer.json, and no tokenizer can be made from what is there (vocab.json)"),
        (lambda d: tiny.edit_json(d / "tokenizer.json", model={"type": "Weird"}), "m/tokenizer.json: data did not match"),
        (lambda d: tiny.edit_json(d / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}), "take auto_map out of tokenizer_config.json to use its tokenizer.json"),
        (lambda d: tiny.edit_json(d / "config.json", num_hidden_layers=30), "asks for 297,632 weights, the files hold 47,072"),
        (lambda d: tiny.edit_json(d / "config.json", hidden_size=2**20, num_attention_heads=2**18), "the files hold 47,072: the folder is incomplete"),
        (lambda d: renamed(d, "model.", "model.language_model."), "config.json is that of the text part alone (llama)"),
        (lambda d: tiny.edit_json(d / "config.json", transformers_weights="x.safetensors"), "transformers_weights is 'x.saf"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_they_seem(llama, tmp_path, spoil, says) -> None:
    assert says in refused(llama, tmp_path, spoil)


def test_a_dangling_link_is_one_line_before_its_size_is_asked(llama, tmp_path) -> None:
    shutil.copytree(llama, tmp_path / "m")
    link(tmp_path / "m" / WEIGHTS)
    with pytest.raises(LakeError, match="is a link to"):
        announce([tiny.spec(tmp_path / "m", "m-pt")])
        load_model(tiny.spec(tmp_path / "m", "m-pt"))


def test_a_tokenizers_own_limit_is_none_of_a_prompt(llama, tmp_path, caplog) -> None:
    """transformers would say that such prompts lead to errors; how long they may be is the model's context."""
    shutil.copytree(llama, tmp_path / "m")
    tiny.edit_json(tmp_path / "m" / "tokenizer_config.json", model_max_length=4)
    assert len(load_tokenizer(tiny.spec(tmp_path / "m", "m-pt"))("the cat sat on the mat and the dog")["input_ids"]) > 4
    assert "longer than" not in caplog.text


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rms_norm_eps", "1e-05", "Field 'rms_norm_eps' expected float, got str (value: '1e-05')"),
        ("num_hidden_layers", 3.0, "Field 'num_hidden_layers' expected int, got float"),
        ("tie_word_embeddings", "false", "Field 'tie_word_embeddings' expected bool"),
        ("hidden_size", 30, "The hidden size (30) is not a multiple of the number of attention heads (4)"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is NaN, expected a number"),
        ("num_attention_heads", 0, "num_attention_heads is 0, expected a whole number from 1"),
        ("torch_dtype", "torch.float16", "torch_dtype is 'torch.float16', expected the bare name of a torch dtype"),
        ("dtype", "bf16", "dtype is 'bf16', expected the bare name of a torch dtype"),
        ("dtype", "float8_e5m2", "dtype float8_e5m2, in which no forward runs; expected float32, bfloat16"),
        ("use_return_dict", False, "use_return_dict can't be set in a config; take it out"),
        ("hidden_act", "swishglu", "hidden_act is 'swishglu', expected one of gelu"),
        (
            "rope_parameters",
            {"rope_type": "spiral", "rope_theta": 1e4},
            "rope_parameters.rope_type is 'spiral', expected",
        ),
        (
            "rope_parameters",
            {"rope_type": "yarn", "rope_theta": 1e4},
            "can't read its config.json: Missing required keys",
        ),
        (
            "id2label",
            5,
            "AttributeError: 'int' object has no attribute 'items' (without the key id2label, now 5, it can be)",
        ),
        ("text_config", {"a": 1}, '(without the key text_config, now {"a": 1}, it can be)'),
        (
            "eos_token_id",
            "2",
            "Field 'eos_token_id' with value '2' doesn't match any type in (int, list[int], NoneType)",
        ),
        ("model_type", ["llama"], "model_type is ['llama'], expected the name of an architecture"),
        ("num_key_value_heads", 0, "(without the key num_key_value_heads, now 0, it can be)"),
        ("model_type", "llama9", "model_type is 'llama9', which transformers"),
        ("is_encoder_decoder", True, "LlamaConfig is an encoder-decoder; actlake captures decoders only"),
    ],
)
def test_configs_at_fault_are_one_line_with_the_key(llama, tmp_path, key, value, says) -> None:
    message = refused(llama, tmp_path, lambda folder: tiny.edit_json(folder / "config.json", **{key: value}))
    assert says in message and "tokenizer" not in message


def test_code_of_its_own_is_never_run(llama, tmp_path) -> None:
    edit = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    message = refused(llama, tmp_path, lambda folder: tiny.edit_json(folder / "config.json", **edit))
    assert "needs code of its own (auto_map: AutoConfig), which actlake never runs" in message


@pytest.mark.parametrize(
    "change", [{"return_dict": False}, {"max_position_embeddings": -1}, {"output_attentions": True}]
)
def test_switches_that_change_no_number(llama, tmp_path, change) -> None:
    """What comes out is told by the checkpoint, not by what a config says of the form of outputs."""
    model = loaded(llama, tmp_path, lambda folder: tiny.edit_json(folder / "config.json", **change))
    plain, ids = load_model(tiny.spec(llama, "m-pt")), torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(model.hf(input_ids=ids).logits, plain.hf(input_ids=ids).logits)


# --- quantised -------------------------------------------------------------------------------------------------------


def test_a_float8_checkpoint_is_unpacked_and_recorded(tmp_path: Path) -> None:
    """Blocks of float8 with scales: what runs is weight x scale in bfloat16, and the record says how it was packed."""
    folder = tiny.make_model(tmp_path / "m", dtype=torch.bfloat16, hidden_size=128, intermediate_size=256)
    held, packed, plain = load_file(folder / WEIGHTS), {}, {}
    for name, weight in held.items():
        if weight.dim() != 2 or "_proj" not in name:
            packed[name] = plain[name] = weight
            continue
        scale = weight.float().abs().amax() / 448
        grid = [-(-size // 128) for size in weight.shape]
        packed[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv"] = scale.expand(grid).contiguous()
        plain[name] = (packed[name].float() * scale).to(torch.bfloat16)
    shutil.copytree(folder, tmp_path / "plain")
    save_file(plain, tmp_path / "plain" / WEIGHTS, metadata={"format": "pt"})
    save_file(packed, folder / WEIGHTS, metadata={"format": "pt"})
    said = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    tiny.edit_json(folder / "config.json", quantization_config=said)
    pair = PairSpec("m", None, tiny.spec(folder, "m-it"), {})
    model, expected = load_model(pair.it), load_model(tiny.spec(tmp_path / "plain", "m-it"))
    assert model.record["quantized"] == {"method": "fp8", "bits": 8, "dequantized": True}
    assert "quantized" not in expected.record
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(model.hf(input_ids=ids).logits, expected.hf(input_ids=ids).logits)
    assert dict(lines(describe(model)))["quantised"] == "fp8, 8 bits; unpacked to plain weights while it loads"
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    assert read_model(layout, "m-it")["quantized"]["method"] == "fp8"
    check_identity(layout, load_late(layout, "m-it", 1, catalog(pair)), 1)


def test_gpt_oss_as_it_is_released(tmp_path: Path, monkeypatch) -> None:
    """Experts in mxfp4: what runs are the values that blocks of 4-bit floats and their scales say, and a replay repeats them."""
    monkeypatch.setitem(tiny.FAMILIES, "gpt_oss", NO_SDPA["gpt_oss"])
    folder = tiny.make_model(tmp_path / "m", "gpt_oss", dtype=torch.bfloat16)
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values, draw, packed, plain = torch.cat([magnitudes, -magnitudes]), torch.Generator().manual_seed(0), {}, {}
    for name, weight in load_file(folder / WEIGHTS).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = plain[name] = weight
            continue
        experts, width, out = weight.shape
        codes = torch.randint(0, 16, (experts, out, width // 32, 32), generator=draw, dtype=torch.uint8)
        scales = torch.randint(122, 126, codes.shape[:-1], generator=draw, dtype=torch.uint8)
        packed |= {f"{name}_blocks": codes[..., 0::2] | (codes[..., 1::2] << 4), f"{name}_scales": scales}
        unpacked = values[codes.long()] * torch.exp2(scales.float() - 127)[..., None]
        plain[name] = unpacked.reshape(experts, out, width).transpose(1, 2).to(torch.bfloat16).contiguous()
    shutil.copytree(folder, tmp_path / "plain")
    save_file(plain, tmp_path / "plain" / WEIGHTS, metadata={"format": "pt"})
    save_file(packed, folder / WEIGHTS, metadata={"format": "pt"})
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    tiny.edit_json(
        folder / "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": left}
    )
    pair = PairSpec("m", None, tiny.spec(folder, "m-it"), {})
    model, ids = load_model(pair.it), torch.tensor([[1, 5, 6, 7]])
    assert model.record["quantized"] == {"method": "mxfp4", "bits": 4, "dequantized": True}
    expected = load_model(tiny.spec(tmp_path / "plain", "m-it")).hf(input_ids=ids).logits
    assert torch.equal(model.hf(input_ids=ids).logits, expected)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",))
    check_identity(layout, load_late(layout, "m-it", 1, catalog(pair), attention="eager"), 1)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "it is quantised (gptq, 4 bits) and can't be loaded here: ImportError: "),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "it is quantised (bitsandbytes, 8 bits) and can't"),
        ({"quant_method": "awq", "w_bit": 4}, "it is quantised (awq"),
        ({"quant_method": "fp8"}, "says it is quantised (fp8, 8 bits), its files hold no packed tensor"),
        ({"quant_method": "folding"}, "quant_method 'folding', expected one of"),
        ({"bits": 4}, "quant_method None, expected one of"),
    ],
)
def test_quantised_checkpoints_that_can_not_be_loaded_here(llama, tmp_path, config, says) -> None:
    edit = lambda folder: tiny.edit_json(folder / "config.json", quantization_config=config)  # noqa: E731
    assert says in refused(llama, tmp_path, edit)


# --- the noise floor -------------------------------------------------------------------------------------------------


def test_a_capture_that_hangs_on_its_batches_is_remarked(tmp_path, monkeypatch, capsys) -> None:
    """A model whose outputs depend on padding: a warning at sealing, in `show`, and in answers that use the capture."""
    pair = tiny.make_pair(tmp_path / "pair")
    quiet = tiny.capture(tmp_path / "quiet", pair, tiny.RAW, variants=("pt",), prompts=tiny.prompt_set(tiny.TEXTS[:1]))
    manifest = Capture(find_capture(quiet, "llama-pt", "raw")).manifest
    assert manifest["noise_floor"]["prompts"] == 1 and noise_warning(manifest) is None
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) * (1 + 0.02 * x.shape[1]))
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(12)))
    said = capsys.readouterr().err
    assert said.count("warning: capture llama-") == 3 and "depends on padding" in said
    path = find_capture(layout, "llama-it", "native")
    warning = noise_warning(Capture(path).manifest)
    assert warning and warning.startswith("capture llama-it/native-tiny-") and "--batch 1" in warning
    assert warning in answer(layout, find("exp16"), "llama").sentence
    main.app(["show", "llama-it/native", "--lake", str(layout.root)], standalone_mode=False)
    assert "depends on padding" in capsys.readouterr().out
    main.app(["ls", "--lake", str(layout.root)], standalone_mode=False)
    assert capsys.readouterr().out.count("noisy: `actlake show` says more") == 3
    assert "warning" not in list_captures(quiet)
    for ask, captures in (
        ("SELECT count(*) FROM captures", 0),
        ("SELECT count(*) FROM lens", 3),
        ("SELECT avg(js) FROM pair_lens", 3),
        ("SELECT count(*) FROM delta WHERE model = 'llama-pt'", 2),
        ("SELECT count(*) FROM lens WHERE model = 'llama-it'", 1),
    ):
        remark.cache_clear()
        for _ in range(2):
            main.app(["sql", ask, "--lake", str(layout.root), "--json"], standalone_mode=False)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert len(said) == bool(captures), ask
        assert not said or "depends on padding" in said[0]
        more = [line.rpartition("(and ")[2].partition(" captures more")[0] for line in said if "(and " in line]
        assert more == [str(captures - 1)] * (captures > 1), ask
    quiet_lake = Lake(quiet.root)
    quiet_lake.sql("SELECT count(*) FROM lens")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["shortest", "longest"])
def test_padding_that_changes_few_prompts_is_remarked(tmp_path, monkeypatch, changed) -> None:
    """As in sparse attention: the first prompts of a set may be those that padding leaves alone."""
    pair = tiny.make_pair(tmp_path / "pair")
    lengths = (9, 31, 30, 29, 28, 25, 20, 3, 15, 14)
    prompts = tiny.prompt_set([(f"p{i}", "FACT", "x" * n) for i, n in enumerate(lengths)])
    forward = LlamaMLP.forward

    def padded(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        found = forward(self, x)
        if x.shape[1] == 1 + max(lengths):  # the only batch: change one row of it, which is not the first prompt's
            row = lengths.index({"shortest": min(lengths), "longest": max(set(lengths) - {max(lengths)})}[changed])
            found[sorted(range(len(lengths)), key=lambda i: (lengths[i], i)).index(row)] *= 1.5
        return found

    monkeypatch.setattr(LlamaMLP, "forward", padded)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.BARE, variants=("pt",), prompts=prompts, batch=16)
    assert noise_warning(Capture(find_capture(layout, "llama-pt", "bare")).manifest)


# --- classes ---------------------------------------------------------------------------------------------------------

SIGHT = {**tiny.VISION, "patch_size": 14}
TOWER = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
WRAPPERS = {
    "mistral3": (
        "Mistral3Config",
        {"text_config": {"model_type": "mistral", "head_dim": 8}, "vision_config": {**SIGHT, "model_type": "pixtral"}},
    ),
    "llava": (
        "LlavaConfig",
        {"text_config": {"model_type": "llama"}, "vision_config": {**SIGHT, "model_type": "clip_vision_model"}},
    ),
    "qwen2_vl": ("Qwen2VLConfig", {"text_config": MROPE, "vision_config": TOWER}),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text_config": {**MROPE, "head_dim": 8},
            "vision_config": {**TOWER, "out_hidden_size": 32, "intermediate_size": 64, "deepstack_visual_indexes": [0]},
        },
    ),
}


def save_wrapper(folder: Path, family: str) -> Path:
    """A small random model whose class reads pictures and text, with its tokenizer."""
    name, parts = WRAPPERS[family]
    ids = {"vocab_size": 300, "bos_token_id": tiny.BOS, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    text = {**tiny.SIZES, **ids, **parts["text_config"]}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(getattr(transformers, name)(**{**parts, "text_config": text}))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", WRAPPERS)
def test_text_of_a_class_that_has_none_for_text_alone(tmp_path: Path, family: str) -> None:
    """The decoder inside is captured as any: blocks as its own hooks see them, replayed from the middle bit for bit."""
    spec = tiny.spec(save_wrapper(tmp_path / "it", family), f"{family}-it")
    pair = PairSpec(family, None, spec, {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.RAW, variants=("it",), batch=1)
    hf = AutoModelForImageTextToText.from_pretrained(spec.path).eval()
    capture = Capture(find_capture(layout, f"{family}-it", "raw"))
    ids = torch.as_tensor(capture.array("token_id")[: capture.offset()[1]].astype("int64"))[None]
    with torch.no_grad():
        states = hf(input_ids=ids, output_hidden_states=True).hidden_states
    for boundary in range(3):  # Hugging Face norms the last one
        found = torch.from_numpy(capture.array("resid")[: capture.offset()[1]][:, boundary])
        assert torch.allclose(found, states[boundary][0], atol=1e-5)
    check_identity(layout, load_late(layout, f"{family}-it", 1, catalog(pair)), 1)


@pytest.mark.parametrize(
    ("config", "head", "says"),
    [
        (transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4), "MaskedLM", "an encoder"),
        (transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64), "MaskedLM", "is an encoder"),
        (transformers.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4), "Seq2SeqLM", "is an encoder-decoder"),
        (transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=64), "CausalLM", "is an encoder"),
        (transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4), "ImageClassification", "no lang"),
    ],
    ids=["bert", "distilbert", "t5", "xlnet", "vit"],
)  # fmt: skip
def test_what_is_no_decoder_is_refused_as_that(tmp_path: Path, config, head: str, says: str) -> None:
    getattr(transformers, f"AutoModelFor{head}").from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LakeError) as caught:
        load_model(tiny.spec(tmp_path, "m-pt"))
    assert says in str(caught.value) and "captures decoders only" in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_that_fails_on_tokens_is_one_line(llama, tmp_path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise TypeError("tuple indices must be integers")

    monkeypatch.setattr(LlamaMLP, "forward", fails)
    message = refused(llama, tmp_path, lambda _: None)
    assert "LlamaForCausalLM can't run on tokens alone: TypeError: tuple indices must be integers" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_that_a_wrapper_of_training_left(llama, tmp_path, prefix) -> None:
    def rename(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        save_file({prefix + name: weight for name, weight in held.items()}, folder / WEIGHTS, metadata={"format": "pt"})

    assert f"begin with '{prefix}', as a wrapper of training leaves them" in refused(llama, tmp_path, rename)


def test_old_buffers_of_gpt2_load_and_a_bias_under_their_name_does_not(tmp_path: Path) -> None:
    """`attn.bias` is a causal mask [1, 1, T, T] in old files, which the class passes over; a vector there is a weight."""
    folder = tiny.make_model(tmp_path / "m", "gpt2")
    masks = {f"h.{block}.attn.bias": torch.ones(1, 1, 128, 128) for block in range(3)}
    held = {name.removeprefix("transformer."): weight for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(
        {**held, **masks, "h.0.attn.masked_bias": torch.tensor(-1e4)}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    assert load_model(tiny.spec(folder, "m-pt")).notes == ()
    change(folder, **{"h.1.attn.bias": torch.ones(32)})
    with pytest.raises(LakeError, match=r"1 tensor that GPT2LMHeadModel does not take \(h\.1\.attn\.bias\): biases"):
        load_model(tiny.spec(folder, "m-pt"))
