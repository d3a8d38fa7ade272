"""Columns of tables, each declared once: name, type, meaning, unit, range, when it is NULL, whether it tells rows apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

TYPES = {
    "text": "VARCHAR",  # few different values: a dictionary in the file
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string[]": "VARCHAR[]",
    "int32[]": "INTEGER[]",
}
NONNEGATIVE, COSINE, SHARE, JENSEN_SHANNON = (0.0, math.inf), (-1.0, 1.0), (0.0, 1.0), (0.0, 0.6932)


@dataclass(frozen=True)
class Column:
    """One column. `type` is a key of TYPES, `unit` of its numbers ('' for names, ids and flags), `range` what they may be.

    `null` says when there is no value; empty: never. A `key` tells rows apart, one with `null` may be missing; `fill` is the
    SQL, over other columns, of a key that an imported file lacks.
    """

    name: str
    type: str
    meaning: str
    unit: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)
    null: str = ""
    key: bool = False
    fill: str = ""

    @property
    def sql_type(self) -> str:
        """DuckDB's name of its type."""
        return TYPES[self.type]

    @property
    def comment(self) -> str:
        """Meaning, unit and when it is NULL, in a line."""
        unit = {"": "", "1": ""}.get(self.unit, f" ({self.unit})")
        return f"{self.meaning}{unit}{f'; NULL: {self.null}' if self.null else ''}"

    @cached_property
    def field(self) -> pa.Field:
        """Name and type for Parquet."""
        import pyarrow as pa

        kind, many = self.type.removesuffix("[]"), self.type.endswith("[]")
        found = pa.dictionary(pa.int32(), pa.string()) if kind == "text" else pa.type_for_alias(kind)
        return pa.field(self.name, pa.list_(found) if many else found)


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """The Parquet schema of some columns."""
    import pyarrow as pa

    return pa.schema([column.field for column in columns])


def label_column(name: str, meaning: str, kind: str = "text", null: str = "", fill: str = "") -> Column:
    """A column that tells rows apart."""
    return Column(name, kind, meaning, null=null, key=True, fill=fill)


ALL = "a mean over all"
PAIR = label_column("pair", "name of the pair")
VARIANT = label_column("variant", "model of the pair: pt or it; both in tables that compare the two")
STREAM = label_column("stream", "stream that was read; of a pair the IT's", fill="'published'")
STREAM_PT = label_column("stream_pt", "stream that the PT read", fill="stream")
MODEL = (label_column("model", "name of the model"), STREAM)
MODELS = (
    label_column("model_pt", "name of the pair's base model", null="the pair has none"),
    label_column("model_it", "name of the pair's post-trained model", null="the pair has none"),
)
SIDE = (*MODELS, VARIANT, STREAM)  # of one capture, with the pair's other model taken into account
BOTH = (*SIDE, STREAM_PT)
LENSES = ("raw", "tuned", "jacobian")
LENS = label_column("lens", "lens: raw, tuned or jacobian", fill="'raw'")
PROMPT = (
    label_column("prompt", "index of the prompt in its set", "int32", null=ALL),
    label_column("prompt_id", "id of the prompt", null=ALL),
    label_column("category", "category of the prompt", null=ALL),
)
TOKEN = (*PROMPT, label_column("token", "index of the token in its stream", "int64", null=ALL))
POSITION = label_column("position", "place of the token in its prompt's sequence", "int32", null=ALL)
STEP = label_column(
    "step", "index of the continuation token predicted here; -1 before the last prompt token", "int32", null=ALL
)
PLACE = (POSITION, STEP)
LAYER = label_column("layer", "block whose output is read; -1: the input of block 0", "int32")
TOKEN_ID = label_column("token_id", "id of the token", "int32")
IS_SPECIAL = Column("is_special", "bool", "whether the token stands for no text")
IS_CONTINUATION = Column("is_continuation", "bool", "whether the token is of the continuation")
# Who a token belongs to, by its number in captures.
SEGMENTS = ("unknown", "system", "user", "assistant", "thinking", "tool", "template")
SEGMENT = Column(
    "segment",
    "text",
    "who the token belongs to: system, user, assistant, thinking, tool or template; unknown where nobody has said",
    null="imported without",
)
TURN = Column(
    "turn",
    "int32",
    "message of the conversation that the token is in or after, from 0 on; -1 before the first one's text, and unknown",
    null="imported without",
)
TOKEN_TEXT = Column("token_text", "string", "what the token adds to a running text; '' where it stands for none")
CONDITION = label_column("condition", "which model, with whose MLPs in which blocks (METHODS 8)")
NO_TARGET, ZERO, LAST = "no next token", "a zero vector", "at the last layer"
EVENT = (
    label_column("event", "what the place is: first_diff, where the two answers first differ", fill="'first_diff'"),
    Column("it_token", "int32", "id of the token that the IT goes on with"),
    Column("pt_token", "int32", "id of the token that the PT goes on with"),
)
CHOICE = (
    Column("margin", "float32", "logit of it_token minus logit of pt_token", "logits"),
    Column("it_logit", "float32", "logit of it_token", "logits"),
    Column("pt_logit", "float32", "logit of pt_token", "logits"),
    Column("top1", "int32", "id of the likeliest token that is real for both models", null="before the last layer"),
)
# What a capture may compute while it has the residuals (SCALARS): columns of these tables, and variables of the capture.
LENS_VALUES = (
    Column("kl_layer_final", "float32", "KL(layer || final) of the lens' distributions", "nats", NONNEGATIVE),
    Column("kl_final_layer", "float32", "KL(final || layer) of the lens' distributions", "nats", NONNEGATIVE),
    Column("js_next", "float32", "Jensen-Shannon divergence of this layer and the next", "nats", JENSEN_SHANNON, LAST),
    Column("entropy", "float32", "entropy of the layer's distribution", "nats"),
    Column("top1", "int32", "id of the likeliest token, the lowest among equals"),
    Column("p_target", "float32", "probability of the next token", "1", SHARE, NO_TARGET),
    Column("rank_target", "int32", "1 + number of tokens likelier than the next one", null=NO_TARGET),
    Column("cos_final", "float32", "cosine of the residual, as the lens reads it, and the last one", "1", COSINE, ZERO),
)
DELTA_VALUES = (
    Column(
        "block_cos",
        "float32",
        "cosine of what the block adds and what it reads",
        "1",
        COSINE,
        "layers -1 and 0; " + ZERO,
    ),
    Column(
        "mlp_cos",
        "float32",
        "cosine of the MLP's output and the residual it reads",
        "1",
        COSINE,
        "layer -1; no mlp_out",
    ),
    Column("mlp_norm", "float32", "norm of the MLP's output", "1", null="layer -1; no mlp_out"),
    Column("resid_norm", "float32", "norm of the residual", "1"),
)
SCALARS = {"lens": LENS_VALUES, "delta": DELTA_VALUES}


def by_lens(kind: str) -> dict[str, str]:
    """The columns that tell rows of a kind of lens, as in `lens(tuned)`; the raw lens is the usual one."""
    return {"lens": kind or "raw"}
