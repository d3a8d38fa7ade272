"""Names, dimensions, dtypes and chunk shapes of the lake, each said once; docs/FORMAT.md is the same in prose."""

from dataclasses import dataclass

import pyarrow as pa

FORMAT_VERSION = 1
MARKER = "lake.json"  # makes a folder a lake
PROGRESS = ".progress"  # folder of the records of a capture under way
TEMPLATE = "template.json"  # in it: what fixes the capture's arrays, and that it has begun
MANIFEST = "manifest.json"  # seals a capture, a set of probes
PARTIAL = "partial.json"  # says what a copy of a capture lacks
VARIANTS = ("pt", "it")
TOP_K = 64

# Shards hold whole token ranges of all layers. Compression of widened bfloat16 is about 2.88 (STORAGE 2b),
# so that 400 MB raw stay under 150 MB stored; chunks under 1 MiB raw compress and read worse. The shuffle makes four
# byte planes of a chunk and zstd codes 128 KiB at a time: a plane that is not a multiple of that shares a block, and its
# code, with the next one, which costs 2 to 7 % of size.
SHARD_TOKENS = 2048
CHUNK_TOKENS = 256
SHARD_RAW_LIMIT = 400_000_000
CHUNK_RAW_TARGET = 1 << 20
CHUNK_RAW_MULTIPLE = 4 << 17


@dataclass(frozen=True)
class Variable:
    """One array of a capture: its dimension names, its dtype on disk and what it is."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    long_name: str
    gaps: bool = False  # NaN has a meaning here, for instance where a token has no successor

    @property
    def activation(self) -> bool:
        """Activations are sharded and compressed; coordinates are small and whole."""
        return self.dims[0] == "token" and self.name not in TOKEN_COORDS

    @property
    def coordinate(self) -> bool:
        """What every capture has, whatever it keeps."""
        return not (self.activation or self.per_prompt or self.name == "lens_layer")

    @property
    def per_prompt(self) -> bool:
        """One value a prompt: kept beside the shard rows until sealing makes one array of them."""
        return self.name in PROMPT_SITES

    @property
    def unit(self) -> str:
        """Attribute `units` of a floating array."""
        return "nats" if self.name in NATS else "1"

    @property
    def derived(self) -> bool:
        """Computed in float32 from what the model computed, so never a widened bfloat16."""
        return self.name == "logsumexp" or self.dims[-1] == "lens_layer"


NATS = ("logits", "topk_logit", "logsumexp", "attn_entropy") + tuple(
    f"lens_{column}" for column in ("kl_layer_final", "kl_final_layer", "js_next", "entropy")
)
TOKEN_COORDS = ("token_id", "prompt", "position", "step", "is_special")
VARIABLES = {
    variable.name: variable
    for variable in (
        Variable("resid", ("token", "boundary", "d_model"), "float32", "residual stream at each boundary"),
        Variable("mlp_out", ("token", "layer", "d_model"), "float32", "output of the MLP module"),
        Variable("attn_out", ("token", "layer", "d_model"), "float32", "output of the attention module"),
        Variable("logits", ("token", "vocab"), "float32", "next-token logits"),
        Variable("topk_id", ("token", "k"), "int32", "token ids of the largest logits, descending"),
        Variable("topk_logit", ("token", "k"), "float32", "the largest logits, descending"),
        Variable("logsumexp", ("token",), "float32", "log of the summed exponentials of all logits"),
        Variable(
            "attn_entropy",
            ("prompt", "layer", "head"),
            "float32",
            "entropy of the last prompt token's attention row",
            True,
        ),
        Variable("token_id", ("token",), "int32", "token fed to the model"),
        Variable("prompt", ("token",), "int32", "index of the prompt"),
        Variable("position", ("token",), "int32", "position in the prompt's sequence"),
        Variable("step", ("token",), "int32", "index of the continuation token predicted here, else -1"),
        Variable("is_special", ("token",), "bool", "special token of the tokenizer"),
        Variable("prompt_id", ("prompt",), "string", "id of the prompt in its prompt set"),
        Variable("category", ("prompt",), "string", "category of the prompt"),
        Variable("offset", ("prompt_edge",), "int64", "prompt p owns tokens offset[p]:offset[p+1]"),
        Variable("boundary", ("boundary",), "int32", "0 = input of block 0, l+1 = output of block l"),
        Variable("layer", ("layer",), "int32", "block index"),
        Variable("lens_layer", ("lens_layer",), "int32", "layer as in tables: block index, -1 = input of block 0"),
    )
}
SITES = ("resid", "mlp_out", "attn_out")
PROMPT_SITES = ("attn_entropy",)


def shard_tokens(bytes_per_token: int) -> int:
    """Tokens a shard holds: 2048, or the largest power of two (at least 16) that keeps the largest site under 400 MB raw."""
    tokens = SHARD_TOKENS
    while tokens > 16 and tokens * bytes_per_token > SHARD_RAW_LIMIT:
        tokens //= 2
    return tokens


def chunk_tokens(shard: int, row_bytes: int) -> int:
    """Tokens a chunk holds, a divisor of the shard: 256, doubled until a layer's chunk is 1 MiB raw and whole 512 KiB.

    A shard that 256 does not divide is one chunk.
    """
    tokens = CHUNK_TOKENS if shard % CHUNK_TOKENS == 0 else shard
    while shard % (2 * tokens) == 0 and (
        tokens * row_bytes < CHUNK_RAW_TARGET or tokens * row_bytes % CHUNK_RAW_MULTIPLE
    ):
        tokens *= 2
    return tokens


_TEXT = pa.dictionary(pa.int32(), pa.string())
_MODEL = [("pair", _TEXT), ("variant", _TEXT), ("stream", _TEXT)]
_PROMPT = [("prompt", pa.int32()), ("prompt_id", _TEXT), ("category", _TEXT)]
_TOKEN = [*_PROMPT, ("token", pa.int64())]
_PLACE = [("position", pa.int32()), ("step", pa.int32())]
_LAYER = [("layer", pa.int32())]
_FLOAT = pa.float32()
_EVENT = [("event", _TEXT), ("it_token", pa.int32()), ("pt_token", pa.int32())]
_CHOICE = [("margin", _FLOAT), ("it_logit", _FLOAT), ("pt_logit", _FLOAT), ("top1", pa.int32())]

STREAM_SCHEMA = pa.schema(
    [
        *_TOKEN,
        *_PLACE,
        ("token_id", pa.int32()),
        ("is_special", pa.bool_()),
        ("is_continuation", pa.bool_()),
        ("token_text", pa.string()),
    ]
)
_SCORES = [
    *_MODEL,
    ("stream_pt", _TEXT),
    ("sweep", _TEXT),
    ("arm", _TEXT),
    ("dose", _FLOAT),
    ("key", _TEXT),
    *_PROMPT,
    ("metric", _TEXT),
    ("value", _FLOAT),
]
# Free-running texts, one line a prompt and condition; the files lie in outputs/, SQL knows them as the table `outputs`.
OUTPUTS = pa.schema(
    [
        ("pair", pa.string()),
        ("variant", pa.string()),
        ("key", pa.string()),
        ("condition", pa.string()),
        ("template", pa.string()),
        ("prompts", pa.string()),
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("prompt_sha", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("text", pa.string()),
        ("token_id", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
    ]
)
CHOICES = pa.schema([(name, pa.string()) for name in ("prompt_sha", "prompt_id", "said", "generated", "likeliest")])
LIKELY = pa.schema(
    [("prompt_sha", pa.string()), ("prompt_id", pa.string()), ("nats", pa.float64()), ("tokens", pa.int32())]
)
# Schemas of the files in a condition's folder by what their names begin with.
OUTPUT_KINDS = {"texts": OUTPUTS, "choices": CHOICES, "nats": LIKELY}
TABLES = {
    "tokens": pa.schema(
        [
            *_MODEL,
            *_TOKEN,
            *_PLACE,
            ("token_id", pa.int32()),
            ("token_text", pa.string()),
            ("is_special", pa.bool_()),
            ("is_continuation", pa.bool_()),
        ]
    ),
    "lens": pa.schema(
        [
            *_MODEL,
            ("lens", _TEXT),
            *_TOKEN,
            *_PLACE,
            *_LAYER,
            ("kl_layer_final", _FLOAT),
            ("kl_final_layer", _FLOAT),
            ("js_next", _FLOAT),
            ("entropy", _FLOAT),
            ("top1", pa.int32()),
            ("p_target", _FLOAT),
            ("rank_target", pa.int32()),
            ("cos_final", _FLOAT),
        ]
    ),
    "delta": pa.schema(
        [
            *_MODEL,
            *_TOKEN,
            *_PLACE,
            *_LAYER,
            ("block_cos", _FLOAT),
            ("mlp_cos", _FLOAT),
            ("mlp_norm", _FLOAT),
            ("resid_norm", _FLOAT),
        ]
    ),
    "endpoint": pa.schema(
        [
            *_MODEL,
            *_TOKEN,
            *_PLACE,
            *_LAYER,
            ("entropy", _FLOAT),
            ("confidence", _FLOAT),
            ("margin", _FLOAT),
            ("logsumexp", _FLOAT),
        ]
    ),
    "churn": pa.schema([*_MODEL, ("lens", _TEXT), *_TOKEN, *_PLACE, *_LAYER, ("churn", _FLOAT)]),
    "pair_lens": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            *_PROMPT,
            ("step", pa.int32()),
            *_LAYER,
            ("js", _FLOAT),
            ("kl_pt_it", _FLOAT),
            ("kl_it_pt", _FLOAT),
            ("top1_agree", pa.bool_()),
        ]
    ),
    "weights": pa.schema(
        [
            ("pair", _TEXT),
            ("grouping", _TEXT),
            *_LAYER,
            ("group", _TEXT),
            ("rms", _FLOAT),
            ("rms_pt", _FLOAT),
            ("parameters", pa.int64()),
        ]
    ),
    "geometry": pa.schema(
        [*_MODEL, *_LAYER, ("metric", _TEXT), ("draw", pa.int32()), ("value", _FLOAT), ("n", pa.int32())]
    ),
    "attention": pa.schema(
        [
            *_MODEL,
            *_PROMPT,
            ("keys", pa.int32()),
            *_LAYER,
            ("head", pa.int32()),
            ("entropy", _FLOAT),
            ("entropy_norm", _FLOAT),
        ]
    ),
    "directions": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("kind", _TEXT),
            ("name", _TEXT),
            *_LAYER,
            ("other", pa.int32()),
            ("draw", pa.int32()),
            ("value", _FLOAT),
            ("n", pa.int32()),
        ]
    ),
    "factorial": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            *_PROMPT,
            *_PLACE,
            *_EVENT,
            ("upstream", _TEXT),
            ("late", _TEXT),
            ("readout", _TEXT),
            *_CHOICE,
        ]
    ),
    "divergence": pa.schema(
        [*_MODEL, ("stream_pt", _TEXT), *_PROMPT, *_PLACE, *_EVENT, ("condition", _TEXT), *_LAYER, *_CHOICE]
    ),
    "writeout": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            *_PROMPT,
            *_PLACE,
            *_EVENT,
            ("condition", _TEXT),
            *_LAYER,
            *((name, pa.bool_()) for name in ("early", "mid", "late")),
            *((name, _FLOAT) for name in ("support_it", "support_pt", "against", "rest", "cos")),
        ]
    ),
    "lens_eval": pa.schema(
        [
            *_MODEL,
            ("probe_variant", _TEXT),
            ("probes", _TEXT),
            *_PROMPT,
            *_LAYER,
            ("n", pa.int32()),
            ("kl_raw", _FLOAT),
            ("kl_tuned", _FLOAT),
            ("top1_raw", _FLOAT),
            ("top1_tuned", _FLOAT),
        ]
    ),
    "graft": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("condition", _TEXT),
            ("lens", _TEXT),
            ("window_start", pa.int32()),
            ("window_stop", pa.int32()),
            *_PROMPT,
            ("step", pa.int32()),
            *_LAYER,
            ("kl_layer_final", _FLOAT),
            ("kl_final_layer", _FLOAT),
            ("js_next", _FLOAT),
            ("entropy", _FLOAT),
            ("top1", pa.int32()),
            ("p_target", _FLOAT),
            ("rank_target", pa.int32()),
            ("cos_final", _FLOAT),
            ("mlp_cos", _FLOAT),
            ("js_host", _FLOAT),
            ("js_target", _FLOAT),
            ("cross_kl", _FLOAT),
            ("cross_kl_host", _FLOAT),
        ]
    ),
    "mechanism": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("condition", _TEXT),
            *_PROMPT,
            ("step", pa.int32()),
            *_LAYER,
            ("support_teacher", _FLOAT),
            ("anti_top1", _FLOAT),
            ("anti_kl", _FLOAT),
            ("teacher_cos", _FLOAT),
            ("top1_cos", _FLOAT),
            ("kl_cos", _FLOAT),
            ("kl_rest", _FLOAT),
        ]
    ),
    "candidates": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("condition", _TEXT),
            ("lens", _TEXT),
            *_PROMPT,
            ("step", pa.int32()),
            *_LAYER,
            *((f"entered_{group}", pa.int32()) for group in ("format", "content", "function_other")),
            *((f"left_{group}", pa.int32()) for group in ("format", "content", "function_other")),
            ("jaccard", _FLOAT),
        ]
    ),
    "vocab": pa.schema(
        [
            ("pair", _TEXT),
            ("token_id", pa.int32()),
            ("token_text", pa.string()),
            ("is_special", pa.bool_()),
            ("word_class", _TEXT),
        ]
    ),
    "words": pa.schema([*_MODEL, *_TOKEN, *_PLACE, ("target", pa.int32()), ("target_class", _TEXT)]),
    "scores": pa.schema(_SCORES),
    "judged": pa.schema(_SCORES),
    "effects": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("sweep", _TEXT),
            ("metric", _TEXT),
            ("arm", _TEXT),
            ("dose", _FLOAT),
            ("name", _TEXT),
            ("value", _FLOAT),
            ("low", _FLOAT),
            ("high", _FLOAT),
            ("n", pa.int32()),
        ]
    ),
    "patching": pa.schema(
        [
            *_MODEL,
            ("stream_pt", _TEXT),
            ("lens", _TEXT),
            *_PROMPT,
            *_PLACE,
            ("patch_layer", pa.int32()),
            ("patch", _TEXT),
            *_LAYER,
            ("kl_final_layer", _FLOAT),
            ("kl_host", _FLOAT),
        ]
    ),
}

# What a capture may compute while it has the residuals: the columns of these tables as variables [token, lens_layer].
SCALAR_TABLES = ("lens", "delta")
GAPS = ("js_next", "p_target", "cos_final", "block_cos", "mlp_cos", "mlp_norm")


def scalars(table: str) -> dict[str, str]:
    """Column -> variable of a table that a capture may hold in place of residuals: kl_layer_final -> lens_kl_layer_final."""
    names = TABLES[table].names
    return {name: f"{table}_{name}" for name in names[names.index("layer") + 1 :]}


VARIABLES |= {
    variable: Variable(
        variable,
        ("token", "lens_layer"),
        "int32" if pa.types.is_integer(TABLES[table].field(column).type) else "float32",
        f"column {column} of the table {table}",
        gaps=column in GAPS,
    )
    for table in SCALAR_TABLES
    for column, variable in scalars(table).items()
}

# Of the code that makes each table. Raise when its numbers change: rows of another version do not count any more.
TABLE_VERSIONS = {
    "tokens": 1,
    "lens": 1,
    "delta": 2,
    "endpoint": 1,
    "churn": 1,
    "geometry": 1,
    "attention": 1,
    "pair_lens": 1,
    "weights": 1,
    "directions": 1,
    "lens_eval": 2,
    "factorial": 1,
    "divergence": 2,
    "writeout": 2,
    "graft": 1,
    "mechanism": 1,
    "vocab": 1,
    "words": 1,
    "candidates": 1,
    "patching": 1,
    "outputs": 1,
    "scores": 2,
    "judged": 1,
    "effects": 1,
}
# Tables of a pair whose rows are about one of its models: made condition by condition, the variant being the host ...
CONDITIONED = ("graft", "mechanism", "candidates")
# ... or of both models in turn.
PER_VARIANT = ("writeout", "scores", "judged")
