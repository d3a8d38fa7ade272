"""For tests of code that uses actlake: made-up lakes in milliseconds, strategies for hypothesis, and what holds of every lake.

>>> lake = actlake.testing.made_lake(tmp_path / "lake")           # doctest: +SKIP
>>> actlake.testing.check_lens(lake.sql_frame("SELECT * FROM lens"))   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .lake import Lake
from .store.artifacts.models import keep_vocab, write_model
from .store.artifacts.streams import Stream, write_stream
from .store.captures.allocate import Template, create_capture
from .store.captures.manifest import seal
from .store.captures.reader import Capture, find_capture
from .store.captures.writer import ShardWriter
from .store.core.files import hash_json
from .store.format.paths import Layout

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from .capture.edit.edits import Edit
    from .capture.model.load import Model

BOS = 1  # the special token of made-up streams
Row = tuple[str, str, Sequence[int], Sequence[int]]  # prompt id, category, tokens of the prompt, of its continuation
# What model.json says beside id, sha256 and sizes.
RECORD: dict[str, Any] = {
    "template": "chat",
    **{"revision": None, "files": {}, "dtype": "float32", "class": "Made"},
    **dict.fromkeys(("tokenizer_sha256", "chat_template_sha256"), "t"),
}
STORED = ("topk_id", "topk_logit", "logsumexp")


def made_stream(rows: Iterable[Row], prompts: str = "made", **fields: Any) -> Stream:
    """A stream from (prompt id, category, prompt tokens, continuation tokens) rows, without a model; `fields` replace others."""
    rows = list(rows)
    tokens = [np.asarray([*start, *reply], dtype=np.int32) for _, _, start, reply in rows]
    flat = np.concatenate(tokens)
    made: dict[str, Any] = {
        "kind": "raw",
        "prompts": prompts,
        "prompt_ids": [row[0] for row in rows],
        "categories": [row[1] for row in rows],
        "tokens": tokens,
        "starts": [len(row[2]) for row in rows],
        "texts": [f"<{token}>" for token in flat],
        "special": flat == BOS,
        "recipe": {"key": "k", "tokenizer_sha256": "t"},
    }
    return Stream(**{**made, **fields})


def made_values(template: Template, shard: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values [tokens, ...] of one shard row, a function of `seed` and the shard alone."""
    generator = np.random.default_rng([seed, shard])
    rows = min(template.shard_tokens, template.stream.n_tokens - shard * template.shard_tokens)
    made = {}
    for name, size in template.sizes.items():
        values = generator.standard_normal((rows, *size)).astype(np.float32)
        made[name] = (values * 100).astype(np.int32) if name == "topk_id" else values
    return made


def write_values(path: Path, template: Template, order: Iterable[int] | None = None, seed: int = 0) -> None:
    """Create a capture of made-up values and write its shard rows (all, or those of `order`); sealing is left to the caller."""
    create_capture(path, template)
    with ShardWriter(path, template) as writer:
        for shard in range(template.n_shards) if order is None else order:
            writer.put(shard, made_values(template, shard, seed))


def made_lake(
    folder: str | Path,
    models: Sequence[str] = ("made-pt", "made-it"),
    rows: Iterable[Row] = (("p0", "FACT", (1, 5, 6), (7, 8)), ("p1", "FACT", (1, 9), (4, 3, 2))),
    layers: int = 2,
    width: int = 8,
    vocab: int = 32,
    seed: int = 0,
) -> Lake:
    """A lake of made-up numbers: random heads, one stream, residuals and MLP outputs of each model. Needs no torch.

    Equal arguments make equal bytes. The tables are computed from it like any others, which needs torch.
    """
    layout, stream = Layout.open(folder, create=True), made_stream(rows)
    write_stream(layout, stream)
    for number, model in enumerate(models):
        generator = np.random.default_rng([seed, number])
        record = {**RECORD, "id": model, "sha256": hash_json([model, layers, width, vocab, seed])}
        sizes = {"n_layers": layers, "d_model": width, "vocab": vocab, "special_ids": [BOS]}
        arrays = {
            "norm_weight": np.ones(width, np.float32),
            "unembed": generator.standard_normal((vocab, width)).astype(np.float32),
            "real_token": np.ones(vocab, bool),
        }
        attributes = {"norm": "rms", "norm_eps": 1e-5, "softcap": None, "logit_scale": 1.0, "parallel": False}
        write_model(layout, model, {**record, **sizes}, arrays, attributes)
        words = [f"<{token}>" for token in range(vocab)]
        columns = {"id": range(vocab), "text": words, "bytes": [word.encode() for word in words]}
        keep_vocab(layout, model, {**columns, "special": [i == BOS for i in range(vocab)], "real": [True] * vocab})
        template = Template(
            stream,
            {"resid": (layers + 1, width), "mlp_out": (layers, width)},
            tuple(range(layers + 1)),
            tuple(range(layers)),
            "float32",
            {"model": model, "model_sha256": record["sha256"], "tokenizer_sha256": "t", "dtype": "float32", "batch": 1},
        )
        path = layout.capture(model, stream.name)
        write_values(path, template, seed=seed + number)
        seal(path)
    return Lake(layout)


def token_rows(vocab: int = 32, prompts: int = 4, longest: int = 6) -> SearchStrategy[list[Row]]:
    """A strategy for rows of `made_stream`: some prompts, each with tokens and a continuation that may be empty."""
    from hypothesis import strategies as st

    token = st.integers(2, vocab - 1)
    row = st.tuples(st.lists(token, min_size=1, max_size=longest), st.lists(token, max_size=longest))
    return st.lists(row, min_size=1, max_size=prompts).map(
        lambda found: [(f"p{number}", "MADE", start, reply) for number, (start, reply) in enumerate(found)]
    )


def residuals(tokens: int = 5, layers: int = 3, width: int = 8) -> SearchStrategy[np.ndarray]:
    """A strategy for residuals [tokens, layers, width], float32: of sizes from tiny to far beyond float16, never NaN."""
    from hypothesis import strategies as st

    def made(seed: int, exponent: int) -> np.ndarray:
        values = np.random.default_rng(seed).standard_normal((tokens, layers, width))
        return (values * 10.0**exponent).astype(np.float32)

    return st.builds(made, st.integers(0, 2**32 - 1), st.integers(-6, 6))


def check_lens(table: pd.DataFrame, tolerance: float = 1e-4) -> None:
    """Assert what holds of the table `lens`: no KL, JS or entropy below 0, and none between the last layer and itself."""
    for name in table.columns:
        if name.startswith(("kl_", "js_")) or name == "entropy":
            assert table[name].dropna().ge(-tolerance).all(), f"{name} below 0: {table[name].min()}"
    last = table[table["layer"] == table["layer"].max()]
    for name in ("kl_final_layer", "kl_layer_final"):
        raw = last[last["lens"] == "raw"][name].dropna() if "lens" in last else last[name].dropna()
        assert raw.abs().le(tolerance).all(), f"{name} of the last layer is not 0: {raw.abs().max()}"


def check_replay(layout: Layout, model: Model, stream: str, boundary: int, edits: Sequence[Edit] = ()) -> None:
    """Assert that blocks run from a stored boundary on give what a whole forward gave, bit for bit; `edits` are ones without
    effect (a scale by 1, an injection of 0 ...)."""
    from .capture.edit.replay import replay_whole
    from .capture.edit.start import open_start

    capture = Capture(find_capture(layout, model.name, stream))
    found = replay_whole(model, open_start(layout, model.name, stream, boundary), edits, keep=("resid", "mlp_out"))
    assert np.array_equal(found.tokens, np.arange(capture.n_tokens))
    for name in ("resid", "mlp_out"):
        assert _same_bits(found.arrays[name], capture.array(name)[:][:, boundary:]), name
    for name in STORED:
        assert _same_bits(found.arrays[name], capture.array(name)[:]), name


def _same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(found.view(np.uint32), expected.view(np.uint32))
