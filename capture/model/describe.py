"""A model's structure as it was found, and the results of the checks at load, for people."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from ...store.artifacts.models import weights_of
from ...store.core.catalog import Catalog, ModelSpec
from ...store.core.errors import LakeError
from ...store.core.progress import Estimate, say
from ...store.core.schema import VARIANTS
from ...store.core.specs import default_windows
from ..checkpoint.configs import load_tokenizer
from ..checkpoint.loading import attention_of, check_device_map, check_dtype
from ..checkpoint.stops import check_glance, find_stops, stop_ids
from ..checkpoint.templates import PROBE, has_template
from ..checkpoint.tokens import check_same_tokenizer, encode, reading, real_token_mask
from .load import Model, load_model
from .structure import Structure

# What the residual gets, by where norms stand around the MLP (METHODS 1.2).
ADDED = {
    "pre": "h = r + mlp_out: the MLP's output itself is added to the residual r",
    "none": "h = r + mlp_out: the MLP's output itself is added to the residual r",
    "parallel": "h = input + attn_out + mlp_out: attention and MLP both read the block's input",
    "sandwich": "h = r + norm(mlp_out): the MLP's output passes a norm before it is added to the residual r",
    "post": "h = r + norm(mlp_out): the MLP reads the residual r unnormed, and its output passes a norm before it is added",
}

# Seconds until a model is loaded, and bytes of its files a second: hashed, read and tried out; a GGUF is unpacked, too.
STARTING, READ, UNPACKED = 4.0, 100e6, 2e6
SHARED = "each is as wide as the late one, which begins at 60 % of the depth: they may share blocks"
EAGER = "; eager (its own code): this class has no sdpa"


def find_specs(catalog: Catalog, name: str) -> list[ModelSpec]:
    """A model of the catalog, those of a pair, or the one at the path of a folder or a .gguf file."""
    path = Path(name).expanduser()
    pair, _, role = name.partition("/")
    if pair in catalog.pairs and role in VARIANTS:
        return [catalog.pair(pair).model(role)]
    if name in catalog.models:
        return [catalog.model(name)]
    if name in catalog.pairs or not path.exists():
        if "/" in name or name.endswith(".gguf"):
            raise LakeError(f"{name}: no such model folder or .gguf file, and no pair of {catalog.where}")
        found = catalog.pair(name)
        return [spec for spec in (found.pt, found.it) if spec]
    if path.is_file():
        if path.suffix != ".gguf":
            raise LakeError(f"{name}: expected a model folder or a .gguf file")
        return [ModelSpec(path.stem, path.parent.absolute(), None, None, path.name)]
    return [ModelSpec(path.absolute().name, path.absolute(), None, None, None)]


def announce(specs: Sequence[ModelSpec], tell: Callable[[str], None] = say) -> None:
    """Say what loading local models takes, where that is longer than some seconds."""
    local = [(spec, spec.path) for spec in specs if spec.path]
    sizes = {
        spec.name: sum(file.stat().st_size for file in path.glob(spec.gguf_file or "*.safetensors") if file.is_file())
        for spec, path in local
    }
    seconds = sum(STARTING + sizes[spec.name] / (UNPACKED if spec.gguf_file else READ) for spec, _ in local)
    what = f"loading {' and '.join(sizes)}"
    Estimate(what, sum(sizes.values()), seconds, "`actlake plan` loads none").announce(tell)


def check_models(
    specs: list[ModelSpec], device: str = "cpu", dtype: str = "auto", device_map: Any = None
) -> list[dict[str, Any]]:
    """Load models one after the other and describe them; two of them must be able to be a pair.

    Raises LakeError for what `load_model` refuses, for tokenizers that differ and for models of different shape.
    """
    check_dtype(dtype)
    check_device_map(device_map, device)
    both = " and ".join(spec.name for spec in specs)
    check_glance(specs, pair=both)
    if len(specs) == 2:
        check_same_tokenizer(load_tokenizer(specs[0]), load_tokenizer(specs[1]), both)
    announce(specs)
    found = [describe(load_model(spec, device, dtype, device_map=device_map)) for spec in specs]
    shapes = [f"{one['blocks']} blocks of width {one['d_model']}" for one in found]
    if len(set(shapes)) > 1:
        raise LakeError(f"pair {both}: pt has {shapes[0]}, it {shapes[1]}; a pair has one architecture")
    if len(found) == 2 and found[0]["weights"] and found[0]["weights"] == found[1]["weights"]:
        found[1]["notes"].append(
            "its weights equal those of the other model, byte for byte: tokenizers, templates or configs may differ, not training"
        )
    return found


def describe(model: Model) -> dict[str, Any]:
    """Everything that `model check` prints, JSON-ready; `errors` are those of the checks at load, relative."""
    text, head, parts, tokenizer = model.hf.config.get_text_config(), model.head, model.parts, model.tokenizer
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    read = _prompts(model)
    return {
        "model": model.name,
        "class": type(model.hf).__name__,
        "parameters": model.record["parameters"],
        "dtype": model.record["dtype"],
        "sha256": model.record["sha256"],
        "quantized_from": model.record.get("quantized_from"),
        "quantized": model.record.get("quantized"),
        "weights": list(weights_of(model.record)),
        "notes": list(model.notes),
        "blocks": model.n_layers,
        "d_model": head.d_model,
        "vocab": head.vocab,
        "max_positions": model.max_positions,
        "windows": default_windows(model.n_layers) if model.n_layers > 1 else {},
        "norm_placement": parts.placement,
        "mlp_out": _added(parts),
        "mlp": _mlps(model),
        "attention": _attention(text, model.n_layers),
        "attention_kernel": attention_of(model.hf),
        "head": {
            "norm": head.norm,
            "eps": head.eps,
            "softcap": head.softcap,
            "logit_scale": head.logit_scale,
            "bias": head.bias is not None,
        },
        "tied_embeddings": parts.unembed.weight is model.hf.get_input_embeddings().weight,
        "tokens": len(tokenizer),
        "real_tokens": int(real_token_mask(tokenizer, head.vocab).sum()),
        "bos": {
            "id": tokenizer.bos_token_id,
            "token": tokenizer.bos_token,
            **{template: one["bos"] for template, one in read.items() if "bos" in one},
        },
        "chat_template": has_template(tokenizer),
        "prompts": read,
        "special_ids": special,
        "stop_ids": stop_ids(tokenizer, model.hf.generation_config, "error" not in read.get("chat", {"error": ""})),
        "errors": parts.errors,
    }


def _added(parts: Structure) -> str:
    """How MLP outputs are added to the residual, in words."""
    scales = sorted({mlp.scale for mlp in parts.added if mlp is not None})
    times = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    return ADDED[parts.placement] + ("" if scales == [1.0] else f"; the block multiplies it by {times}")


def _mlps(model: Model) -> list[dict[str, Any]]:
    """Runs of blocks with one kind of MLP: class, blocks as text, experts (0: dense)."""
    kinds = [
        (" + ".join(type(m).__name__ for m in mlp.whole), max(map(_experts, mlp.whole)))
        for mlp in model.parts.added
        if mlp is not None
    ]
    found = []
    for (kind, experts), run in groupby(range(len(kinds)), key=lambda index: kinds[index]):
        found.append({"class": kind, "blocks": spans(list(run)), "experts": experts})
    return found


def _experts(mlp: Any) -> int:
    """Experts of a mixture: the length of a list of them, or of the first axis of stacked weights; 0 for a dense MLP."""
    stacked = [p.shape[0] for p in mlp.parameters() if p.dim() == 3]
    return max(stacked + [len(m) for m in mlp.modules() if isinstance(m, nn.ModuleList)], default=0)


def _attention(text: Any, layers: int) -> dict[str, Any]:
    """Which blocks attend to everything and which through a sliding window, as the config says."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    found: dict[str, Any] = {
        kind: spans([index for index, one in enumerate(kinds) if one == kind]) for kind in Counter(kinds)
    }
    return found | ({"window": window} if "sliding_attention" in found else {})


def _prompts(model: Model) -> dict[str, dict[str, Any]]:
    """How a prompt is read under `raw` and `chat`: what a recipe says of it, how often it has a BOS, and for chat the token
    that ends a turn; or the `error`, in one line."""
    tokenizer, found = model.tokenizer, dict[str, dict[str, Any]]()
    bos = tokenizer.bos_token_id
    for template in ("raw", "chat") if has_template(tokenizer) else ("raw",):
        try:
            ids = encode(tokenizer, PROBE, template)
            found[template] = reading(tokenizer, template) | ({} if bos is None else {"bos": ids.count(bos)})
            if template == "chat":
                stops = find_stops(tokenizer, (), True)
                found[template] |= {"turn_end": stops.turn, "note": stops.note("chat")}
        except LakeError as error:
            found[template] = {"error": str(error)}
    return found


def _chat(found: dict[str, Any]) -> str:
    """The line on the chat template."""
    if not found["chat_template"]:
        return "no chat template: raw streams only"
    read = found["prompts"]["chat"]
    if "error" in read:
        return f"raw streams only: {read['error']}"
    parts = ["has a chat template"]
    parts += ["content as a list of parts"] if read["content"] == "parts" else []
    parts += [f"writes the date ({read['date']} unless --date says another)"] if "date" in read else []
    parts += [read["note"].removeprefix("chat: ")] if read["note"] else []
    return "; ".join(parts)


def spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _quantised(found: dict[str, Any]) -> str:
    """How a checkpoint's weights are packed, in words."""
    bits = f", {found['bits']} bits" if found["bits"] else ""
    return f"{found['method']}{bits}" + ("; unpacked to plain weights while it loads" if found["dequantized"] else "")


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The description as (name, text) lines."""
    head, bos, attention, kernel = (found[key] for key in ("head", "bos", "attention", "attention_kernel"))
    attention = dict(attention)
    sliding = attention.pop("window", None)
    kinds = [f"{kind.removesuffix('_attention')}: {blocks}" for kind, blocks in attention.items()]
    mlps = [
        f"{one['class']} in {one['blocks']}" + (f" ({one['experts']} experts)" if one["experts"] else " (dense)")
        for one in found["mlp"]
    ]
    errors = {name: f"relative error {error:.0e}" if error else "exact" for name, error in found["errors"].items()}
    extras = [f"soft cap {head['softcap']}" if head["softcap"] else "no soft cap"]
    extras += [f"logits x {head['logit_scale']:g}"] if head["logit_scale"] != 1 else []
    extras += ["bias"] if head["bias"] else []
    source = f", dequantised from {found['quantized_from']['file']}" if found["quantized_from"] else ""
    begins = [f"{bos[template]} in a {template} prompt" for template in ("raw", "chat") if template in bos]
    special = ", ".join(f"{token} {number}" for token, number in list(found["special_ids"].items())[:12])
    more = len(found["special_ids"]) - 12
    return [
        ("class", f"{found['class']}, {found['parameters']:,} parameters, {found['dtype']}{source}"),
        ("shape", f"{found['blocks']} blocks, d_model {found['d_model']}, {found['vocab']:,} logits"),
        ("context", f"{found['max_positions'] or 'not said'}"),
        ("norms", f"{found['norm_placement']}; {found['mlp_out']}"),
        ("mlp", "; ".join(mlps)),
        (
            "attention",
            "; ".join(kinds) + (f" (window {sliding})" if sliding else "") + (EAGER if kernel == "eager" else ""),
        ),
        ("head", f"{head['norm']} norm, eps {head['eps']:g}, {', '.join(extras)}"),
        ("embeddings", "tied to the unembedding" if found["tied_embeddings"] else "apart from the unembedding"),
        (
            "windows",
            ", ".join(f"{name} {spans(list(range(*window)))}" for name, window in found["windows"].items()) or "none",
        ),
        *([("", SHARED)] if found["windows"] else []),
        (
            "tokenizer",
            f"{found['tokens']:,} tokens; {found['real_tokens']:,} of {found['vocab']:,} logits belong to a real token",
        ),
        ("BOS", f"{bos['token']} ({bos['id']}), {', '.join(begins)}" if bos["id"] is not None else "none"),
        *[
            (template, f"special tokens left out around a prompt: {', '.join(map(str, one['dropped']))}")
            for template, one in found["prompts"].items()
            if "dropped" in one
        ],
        *[("raw", one["error"]) for template, one in found["prompts"].items() if template == "raw" and "error" in one],
        ("chat", _chat(found)),
        ("special", special + (f" and {more} more" if more > 0 else "")),
        ("stop ids", ", ".join(map(str, found["stop_ids"]))),
        *([("quantised", _quantised(found["quantized"]))] if found["quantized"] else []),
        *[("note", note) for note in found["notes"]],
        (
            "checks",
            f"a block's output is its input plus its attention and MLP outputs ({errors['blocks']}),"
            f" head(resid[:, L]) is the model's logits ({errors['head']})",
        ),
    ]
