"""Names, dimensions, dtypes and chunk shapes of the lake, each said once; docs/FORMAT.md is the same in prose."""

from collections.abc import Mapping
from dataclasses import dataclass

from .columns import (
    IS_CONTINUATION,
    IS_SPECIAL,
    PLACE,
    SCALARS,
    SEGMENT,
    SEGMENTS,
    TOKEN,
    TOKEN_ID,
    TOKEN_TEXT,
    TURN,
    Column,
    schema_of,
)

FORMAT_VERSION = 2
MARKER = "lake.json"  # makes a folder a lake
PROGRESS = ".progress"  # folder of the records of a capture under way
TEMPLATE = "template.json"  # in it: what fixes the capture's arrays, and that it has begun
MANIFEST = "manifest.json"  # seals a capture
RECORD = "record.json"  # seals any other artifact
PARTIAL = "partial.json"  # says what a copy of a capture lacks
PULLED = "pulled.json"  # at the top of a lake: where it was pulled from
VARIANTS = ("pt", "it")
TOP_K = 64
PRECISIONS = ("int8", "fp8")  # to which a capture may round what it keeps; never without being asked

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
    unit: str = "1"  # attribute `units` of a floating array

    @property
    def activation(self) -> bool:
        """Activations are sharded and compressed; coordinates are small and whole."""
        return self.dims[0] == "token" and self.name not in TOKEN_COORDS

    @property
    def coordinate(self) -> bool:
        """What every capture has, whatever it keeps and whenever it was made."""
        return not (self.activation or self.per_prompt or self.name == "lens_layer" or self.name in LATER)

    @property
    def per_prompt(self) -> bool:
        """One value a prompt: kept beside the shard rows until sealing makes one array of them."""
        return self.name in PROMPT_SITES

    @property
    def layered(self) -> bool:
        """Whether it has a value of each layer or boundary."""
        return self.dims[1:2] in (("layer",), ("boundary",), ("lens_layer",)) and self.dims[0] == "token"

    @property
    def derived(self) -> bool:
        """Computed in float32 from what the model computed, so never a widened bfloat16."""
        return self.name in ("logsumexp", "router") or self.dims[-1] == "lens_layer"


@dataclass(frozen=True)
class Site:
    """What a capture can keep of every token and layer.

    `axes` follow the token: `layer` or `boundary`, then any. `branch`: the modules of a block whose output it is, a method of
    the model's structure; empty: the residual stream at each boundary. `inside`: what it is inside that branch, `heads` or
    `router`, in place of its output. `gaps`: NaN in blocks that have none.
    """

    name: str
    axes: tuple[str, ...]
    meaning: str
    branch: str = ""
    inside: str = ""
    gaps: bool = False

    def shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape after the token, from the lengths of its axes."""
        return tuple(lengths[axis] for axis in self.axes)


SITES = {
    site.name: site
    for site in (
        Site("resid", ("boundary", "d_model"), "residual stream at each boundary"),
        Site("mlp_out", ("layer", "d_model"), "output of the MLP module", "mlp"),
        Site("attn_out", ("layer", "d_model"), "output of the attention module", "attention"),
        Site("z", ("layer", "head", "d_head"), "output of each attention head", "attention", "heads"),
        Site("router", ("layer", "expert"), "logits of the experts", "mlp", "router", True),
    )
}
PROMPT_SITES = ("attn_entropy",)  # of a prompt's last token alone
LATER = frozenset(("segment", "turn"))  # coordinates that streams and captures of earlier versions lack
UNKNOWN = {"segment": 0, "turn": -1}  # what stands for them there
TOKEN_COORDS = ("token_id", "prompt", "position", "step", "is_special", *sorted(LATER))
VARIABLES = {
    variable.name: variable
    for variable in (
        *(Variable(site.name, ("token", *site.axes), "float32", site.meaning, site.gaps) for site in SITES.values()),
        Variable("logits", ("token", "vocab"), "float32", "next-token logits", unit="nats"),
        Variable("topk_id", ("token", "k"), "int32", "token ids of the largest logits, descending"),
        Variable("topk_logit", ("token", "k"), "float32", "the largest logits, descending", unit="nats"),
        Variable("logsumexp", ("token",), "float32", "log of the summed exponentials of all logits", unit="nats"),
        Variable(
            "attn_entropy",
            ("prompt", "layer", "head"),
            "float32",
            "entropy of the last prompt token's attention row",
            True,
            "nats",
        ),
        Variable("token_id", ("token",), "int32", "token fed to the model"),
        Variable("prompt", ("token",), "int32", "index of the prompt"),
        Variable("position", ("token",), "int32", "position in the prompt's sequence"),
        Variable("step", ("token",), "int32", "index of the continuation token predicted here, else -1"),
        Variable("is_special", ("token",), "bool", "special token of the tokenizer"),
        Variable("segment", ("token",), "int32", "who the token belongs to"),
        Variable("turn", ("token",), "int32", "message that the token is in or after, -1 before the first"),
        Variable("prompt_id", ("prompt",), "string", "id of the prompt in its prompt set"),
        Variable("category", ("prompt",), "string", "category of the prompt"),
        Variable("offset", ("prompt_edge",), "int64", "prompt p owns tokens offset[p]:offset[p+1]"),
        Variable("boundary", ("boundary",), "int32", "0 = input of block 0, l+1 = output of block l"),
        Variable("layer", ("layer",), "int32", "block index"),
        Variable("lens_layer", ("lens_layer",), "int32", "layer as in tables: block index, -1 = input of block 0"),
    )
}


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


# How CF names the numbers of a flag.
FLAGS = {"segment": {"flag_values": [*range(len(SEGMENTS))], "flag_meanings": " ".join(SEGMENTS)}}
STREAM_SCHEMA = schema_of([*TOKEN, *PLACE, TOKEN_ID, IS_SPECIAL, IS_CONTINUATION, SEGMENT, TURN, TOKEN_TEXT])
# Free-running texts, one line a prompt and condition; the files lie in texts/, SQL knows them as the table `outputs`.
OUTPUT_COLUMNS = (
    Column("model", "string", "name of the model that wrote"),
    Column("key", "string", "hash of all that determines the texts"),
    Column("condition", "string", "edits under which the model wrote"),
    Column("template", "string", "template of the prompt: raw or chat"),
    Column("prompts", "string", "name of the prompt set"),
    Column("prompt_id", "string", "id of the prompt"),
    Column("category", "string", "category of the prompt"),
    Column("prompt_sha", "string", "hash of the prompt's tokens"),
    Column("prompt_tokens", "int32", "tokens of the prompt", "tokens"),
    Column("text", "string", "what the model wrote"),
    Column("token_id", "int32[]", "ids of what the model wrote"),
    Column("tokens", "int32", "tokens of the text", "tokens"),
    Column("ended", "bool", "whether the model stopped by itself"),
)
OUTPUTS = schema_of(OUTPUT_COLUMNS)
CHOICES = schema_of(
    Column(name, "string", "") for name in ("prompt_sha", "prompt_id", "said", "generated", "likeliest")
)
LIKELY = schema_of(
    [
        Column("prompt_sha", "string", ""),
        Column("prompt_id", "string", ""),
        Column("nats", "float64", ""),
        Column("tokens", "int32", ""),
    ]
)
# Schemas of the files in a condition's folder by what their names begin with.
OUTPUT_KINDS = {"texts": OUTPUTS, "choices": CHOICES, "nats": LIKELY}
OUTPUTS_VERSION = 1  # of the code that writes texts


def scalars(table: str) -> dict[str, str]:
    """Column -> variable of a table that a capture may hold in place of residuals: kl_layer_final -> lens_kl_layer_final."""
    return {column.name: f"{table}_{column.name}" for column in SCALARS[table]}


VARIABLES |= {
    f"{table}_{column.name}": Variable(
        f"{table}_{column.name}",
        ("token", "lens_layer"),
        column.type,
        f"column {column.name} of the table {table}",
        gaps=column.type == "float32" and bool(column.null),
        unit=column.unit or "1",
    )
    for table, columns in SCALARS.items()
    for column in columns
}
