"""Loading a Hugging Face decoder and finding its parts by what they do, not by what they are called."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..analyze.head import Head
from ..store.catalog import ModelSpec
from ..store.errors import LakeError
from ..store.files import hash_files, hash_json
from ..store.progress import ERRORS
from .tokens import real_token_mask, tokenizer_hash

# What counts as equal in the load-time checks, relative to the largest value: a few roundings of the model's dtype.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
PROBE_TOKENS = 8


def first_tensor(value: Any) -> torch.Tensor:
    """A module's hidden states, whether it returns them alone or first in a tuple."""
    return value[0] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Structure:
    """The parts of a decoder. `post_norms` normalise the MLP output before it is added (Gemma, OLMo 2), else empty."""

    blocks: list[nn.Module]
    mlps: list[nn.Module]
    post_norms: list[nn.Module]
    norm: nn.Module
    unembed: nn.Module
    parallel: bool


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint: the untouched Hugging Face module, its tokenizer, its parts and its head in float32."""

    spec: ModelSpec
    hf: Any
    tokenizer: Any
    parts: Structure
    head: Head
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """PAIR/VARIANT."""
        return f"{self.spec.pair}/{self.spec.variant}"

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.parts.blocks)

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where token ids go."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and so of the activations."""
        return self.hf.dtype

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was made for, in tokens."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    def logits(self, resid: torch.Tensor) -> torch.Tensor:
        """Logits of final residuals [n, d] through the model's own norm and unembedding, in its dtype."""
        out = self.parts.unembed(self.parts.norm(resid)) * self.head.logit_scale
        cap = self.head.softcap
        return torch.tanh(out / cap) * cap if cap else out


def source(spec: ModelSpec) -> str:
    """The folder or hub id a model is loaded from; LakeError when a folder can't hold one."""
    if spec.hub:
        return spec.hub
    folder = spec.path
    assert folder is not None
    if not (folder / "config.json").is_file():
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: {folder} has no config.json; it should be a Hugging Face model folder"
        )
    if not list(folder.glob("*.safetensors")):
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: {folder} has no .safetensors file; actlake loads nothing else (save it with"
            " save_pretrained)"
        )
    return str(folder)


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model, nothing else."""
    try:
        return AutoTokenizer.from_pretrained(source(spec), revision=spec.revision or "main")
    except (OSError, ValueError) as error:
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: can't load its tokenizer: {str(error).splitlines()[0]}"
        ) from error


def load_model(spec: ModelSpec, device: str = "cpu", dtype: str = "auto", attention: str = "sdpa") -> Model:
    """Load a checkpoint from safetensors, find its parts and check them with a small forward.

    Raises LakeError for an unloadable folder, an unknown dtype, or a model whose parts don't add up.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise LakeError(f"dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    if spec.gguf_file:
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: gguf_file is not supported yet; convert it to safetensors first"
        )
    where = source(spec)
    if not ERRORS.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    try:
        hf: Any = AutoModelForCausalLM.from_pretrained(
            where,
            revision=spec.revision or "main",
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation=attention,
            use_safetensors=True,
        )
        hf = hf.to(device).eval()
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: can't load {where}: {str(error).splitlines()[0]}"
        ) from error
    parts, head = discover(hf)
    tokenizer = load_tokenizer(spec)
    config = {
        key: value
        for key, value in hf.config.get_text_config().to_diff_dict().items()
        if not key.startswith("_") and key != "dtype"
    }
    record = {
        **identify(spec, dtype, tokenizer),
        "class": type(hf).__name__,
        "config": config,
        "n_layers": len(parts.blocks),
        "d_model": head.d_model,
        "vocab": head.vocab,
        "parameters": sum(p.numel() for p in hf.parameters()),
        "special_ids": sorted(tokenizer.all_special_ids),
    }
    return Model(spec, hf, tokenizer, parts, head, record)


def identify(spec: ModelSpec, dtype: str = "auto", tokenizer: Any = None) -> dict[str, Any]:
    """What tells one checkpoint from another, without loading its weights.

    Keys: id, revision, files (SHA-256 each, for a local folder), dtype, tokenizer_sha256, chat_template_sha256, and
    sha256 over all that determines activations.
    """
    where = source(spec)
    tokenizer = tokenizer or load_tokenizer(spec)
    try:
        config = AutoConfig.from_pretrained(where, revision=spec.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        raise LakeError(
            f"model {spec.pair}/{spec.variant}: can't read its config: {str(error).splitlines()[0]}"
        ) from error
    path = spec.path
    files = hash_files((f for f in path.iterdir() if f.is_file()), path) if path else {}
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    record: dict[str, Any] = {
        "id": spec.hub or (path.name if path else ""),
        "revision": spec.revision or getattr(config, "_commit_hash", None),
        "files": files,
        "dtype": str(stored if dtype == "auto" else DTYPES[dtype]).removeprefix("torch."),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "chat_template_sha256": hash_json(tokenizer.chat_template),
    }
    weights = {name: sha for name, sha in files.items() if name.endswith((".safetensors", "config.json"))}
    determines = [weights or [record["id"], record["revision"]], record["dtype"], record["tokenizer_sha256"]]
    return {**record, "sha256": hash_json(determines)}


# --- structure -------------------------------------------------------------------------------------------------------


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(p.dim() == 1 for p in parameters) and not list(module.children())


def _find_blocks(hf: Any) -> list[nn.Module]:
    layers = hf.config.get_text_config().num_hidden_layers
    stacks: list[Any] = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not stacks:
        raise LakeError(
            f"{type(hf).__name__}: no stack of {layers} blocks found; is this a decoder-only language model?"
        )
    largest = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))
    return list(largest)


def _only(found: list[nn.Module], what: str, hf: Any) -> nn.Module:
    if len(found) != 1:
        kinds = ", ".join(type(m).__name__ for m in found) or "none"
        raise LakeError(
            f"{type(hf).__name__}: expected exactly one {what}, found {kinds}; this architecture is not supported"
        )
    return found[0]


class _Trace:
    """Inputs and outputs of every module during one small forward."""

    def __init__(self, hf: Any):
        self.inputs: dict[nn.Module, torch.Tensor] = {}
        self.outputs: dict[nn.Module, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        limit = hf.get_input_embeddings().num_embeddings
        ids = torch.randint(0, limit, (1, PROBE_TOKENS), generator=generator).to(next(hf.parameters()).device)
        handles = [module.register_forward_hook(self._keep, with_kwargs=True) for module in hf.modules()]
        try:
            with torch.no_grad():
                self.logits = hf(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        result = first_tensor(output)
        if isinstance(given, torch.Tensor) and isinstance(result, torch.Tensor):
            self.inputs[module], self.outputs[module] = given, result

    def branch(self, block: nn.Module, module: nn.Module) -> tuple[torch.Tensor, nn.Module | None]:
        """What `module` adds to the residual, and the norm of `block` that its output passes first, if any."""
        out = self.outputs[module]
        for norm in block.children():
            if _is_norm(norm) and norm in self.inputs and torch.equal(self.inputs[norm], out):
                return self.outputs[norm], norm
        return out, None


def discover(hf: Any) -> tuple[Structure, Head]:
    """Find blocks, MLPs, norms and head of a decoder from the data that flows in a small forward, and check them.

    Checks: each block adds exactly its attention and MLP branches, and head(resid[:, L]) equals the model's logits.
    """
    blocks = _find_blocks(hf)
    trace = _Trace(hf)
    for index, block in enumerate(blocks):
        if not torch.isfinite(trace.inputs[block]).all() or not torch.isfinite(trace.outputs[block]).all():
            raise LakeError(
                f"{type(hf).__name__}: NaN or infinity around block {index} in a short forward of random tokens; are the"
                " weights damaged, or is the dtype too narrow?"
            )
    mlps, post_norms, parallel = [], [], False
    for index, block in enumerate(blocks):
        heavy = [(name, m) for name, m in block.named_children() if any(p.dim() > 1 for p in m.parameters())]
        attention = _only(
            [m for name, m in heavy if "attn" in name or "attention" in name], "attention module per block", hf
        )
        mlp = _only(
            [m for name, m in heavy if "attn" not in name and "attention" not in name], "MLP module per block", hf
        )
        added, norm = trace.branch(block, mlp)
        start, end = trace.inputs[block], trace.outputs[block]
        total = start + trace.branch(block, attention)[0] + added
        _check(total, end, hf, f"block {index} adds something besides its attention and MLP outputs")
        mlps.append(mlp)
        post_norms += [norm] if norm is not None else []
        parallel = parallel or _reads_block_input(trace, block, mlp)
    if post_norms and len(post_norms) != len(blocks):
        raise LakeError(
            f"{type(hf).__name__}: only {len(post_norms)} of {len(blocks)} blocks norm their MLP output; not supported"
        )
    unembed = hf.get_output_embeddings()
    last = trace.outputs[blocks[-1]]
    norms = [
        m
        for m in trace.outputs
        if _is_norm(m) and torch.equal(trace.inputs[m], last) and torch.equal(trace.outputs[m], trace.inputs[unembed])
    ]
    norm = _only(norms, "final norm between the last block and the unembedding", hf)
    head = _head(hf, norm, unembed, last[0])
    logits = head.logits(last[0].float().cpu())
    _check(logits, trace.logits.cpu(), hf, "head(resid[:, L]) is not the model's logits")
    return Structure(blocks, mlps, post_norms, norm, unembed, parallel), head


def _reads_block_input(trace: _Trace, block: nn.Module, mlp: nn.Module) -> bool:
    """True for parallel blocks, whose MLP starts from the block's input instead of the residual after attention."""
    start, given = trace.inputs[block], trace.inputs[mlp]
    return torch.equal(given, start) or any(
        _is_norm(norm)
        and norm in trace.outputs
        and torch.equal(trace.outputs[norm], given)
        and torch.equal(trace.inputs[norm], start)
        for norm in block.children()
    )


def _check(found: torch.Tensor, expected: torch.Tensor, hf: Any, problem: str) -> None:
    scale = expected.float().abs().max().item() or 1.0
    error = (found.float() - expected.float()).abs().max().item() / scale
    limit = TOLERANCE[hf.dtype]
    if not error <= limit:
        raise LakeError(
            f"{type(hf).__name__}: {problem} (relative error {error:.1e}, allowed {limit:.0e}); this architecture is not"
            " supported"
        )


# --- head ------------------------------------------------------------------------------------------------------------


def norm_parameters(norm: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Kind ('rms' or 'layer'), effective weight, bias and eps of a norm, found by comparing with its own output on `x`."""
    exact = copy.deepcopy(norm).float().cpu()
    x = x.detach().float().cpu().reshape(-1, x.shape[-1])
    weight = getattr(exact, "weight", None)
    bias = getattr(exact, "bias", None)
    eps = next(
        (
            float(getattr(norm, key))
            for key in ("variance_epsilon", "eps", "epsilon")
            if getattr(norm, key, None) is not None
        ),
        1e-6,
    )
    with torch.no_grad():
        expected = exact(x)
        weight = torch.ones(x.shape[-1]) if weight is None else weight.detach()
        centred = x - x.mean(-1, keepdim=True)
        candidates: dict[tuple[str, bool], Callable[[], torch.Tensor]] = {
            ("rms", False): lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight,
            ("rms", True): lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + weight),
            ("layer", False): lambda: (
                centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight
                + (0 if bias is None else bias)
            ),
        }
        errors = {key: (make() - expected).abs().max().item() for key, make in candidates.items()}
    kind, plus_one = min(errors, key=lambda key: errors[key])
    if errors[kind, plus_one] > 1e-3 * expected.abs().max().item():
        raise LakeError(
            f"{type(norm).__name__}: neither an RMS norm nor a layer norm; this architecture is not supported"
        )
    return {
        "norm": kind,
        "weight": weight + 1 if plus_one else weight,
        "bias": bias if kind == "layer" else None,
        "eps": eps,
    }


def _head(hf: Any, norm: nn.Module, unembed: Any, x: torch.Tensor) -> Head:
    text = hf.config.get_text_config()
    found = norm_parameters(norm, x)
    divisor = getattr(text, "logits_scaling", None)
    return Head(
        unembed=unembed.weight.detach().float().cpu(),
        norm_weight=found["weight"],
        norm=found["norm"],
        eps=found["eps"],
        norm_bias=None if found["bias"] is None else found["bias"].detach(),
        bias=None if unembed.bias is None else unembed.bias.detach().float().cpu(),
        softcap=getattr(text, "final_logit_softcapping", None),
        logit_scale=1.0 / divisor if divisor else float(getattr(text, "logit_scale", None) or 1.0),
    )


def head_arrays(model: Model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What the lake keeps of a model's head: float32 arrays (exact widening) and attributes for store.models."""
    head = model.head
    arrays = {
        "norm_weight": head.norm_weight,
        "unembed": head.unembed,
        "norm_bias": head.norm_bias,
        "unembed_bias": head.bias,
    }
    found = {name: value.numpy() for name, value in arrays.items() if value is not None}
    found["real_token"] = real_token_mask(model.tokenizer, head.vocab)
    attrs = {
        "norm": head.norm,
        "norm_eps": head.eps,
        "softcap": head.softcap,
        "logit_scale": head.logit_scale,
        "parallel": model.parts.parallel,
    }
    if model.parts.post_norms:
        x = torch.randn(4, head.d_model, generator=torch.Generator().manual_seed(0))
        norms = [norm_parameters(norm, x) for norm in model.parts.post_norms]
        found["post_norm_weight"] = torch.stack([norm["weight"] for norm in norms]).numpy()
        attrs["post_norm_eps"] = norms[0]["eps"]
    return found, attrs
