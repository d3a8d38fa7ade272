"""Lakes of many small artifacts of every kind, all sealed and valid, made without any model.

Pair N has the models small00N-pt and small00N-it. Of each: record and head, a native stream, a capture, a tuned lens, a table
`delta`, a file of verdicts, and texts under two conditions; of both two groups of directions, and the tables `weights` and
`directions`. That makes PER_PAIR artifacts a pair.
"""

from pathlib import Path

import numpy as np
import tiny
from actlake.queries.engine.context import Context, name_columns
from actlake.queries.probes.spec import DEFAULT, ProbeSpec
from actlake.store.artifacts.directions import directions_writer
from actlake.store.artifacts.models import read_model, write_model
from actlake.store.artifacts.probes import write_probes
from actlake.store.artifacts.streams import Stream, write_stream
from actlake.store.artifacts.texts import Condition, VerdictStore, prompt_key
from actlake.store.captures.manifest import seal
from actlake.store.captures.writer import Template
from actlake.store.core.schema import OUTPUTS, VARIANTS
from actlake.store.format.paths import Layout
from actlake.store.tables.declared import TABLES
from actlake.store.tables.files import write_table

LAYERS, WIDTH, VOCAB, PROMPTS, ANSWER = 2, 4, 16, 12, 8
PER_PAIR = 20
WORDS = [f"w{number}" for number in range(VOCAB)]


def pair_name(number: int) -> str:
    """The pair's name; no two are alike in their beginnings."""
    return f"small{number:03d}"


def make_lake(root: Path, pairs: int) -> Layout:
    """A lake of so many pairs."""
    layout = Layout.open(root, create=True)
    for number in range(pairs):
        add_pair(layout, number)
    return layout


def add_pair(layout: Layout, number: int) -> None:
    """All artifacts of one pair."""
    rng, models = np.random.default_rng(number), {v: f"{pair_name(number)}-{v}" for v in VARIANTS}
    names = {}
    for place, (variant, model) in enumerate(models.items()):
        _put_model(layout, model, rng)
        stream = _stream(model, 2 * number + place, rng)
        names[variant] = (model, write_stream(layout, stream))
        _put_capture(layout, model, stream)
    kit = Context(layout)
    for variant, (model, stream) in names.items():
        _put_lens(kit, (model, stream))
        _put_delta(kit, (model, stream), rng)
        _put_verdicts(layout, model)
        for edit in ("scale:layers=late,alpha=0", "zero:layers=mid"):
            _put_texts(layout, model, variant, edit)
    _put_pair(kit, models, names, rng)


def _put_delta(kit: Context, names: tuple[str, str], rng: np.random.Generator) -> None:
    prompt = np.arange(PROMPTS)
    named = {**name_columns(names), "prompt": prompt, "prompt_id": [f"p{p}" for p in prompt], "category": "A"}
    place = {"token": prompt * (ANSWER + 2), "position": np.zeros(PROMPTS), "step": np.full(PROMPTS, -1)}
    values = {column.name: rng.random(PROMPTS) for column in TABLES["delta"].values}
    rows = [{**named, **place, "layer": layer, **values} for layer in range(LAYERS)]
    write_table(kit.layout, "delta", kit.recipe("delta", names, head=True), rows)


def _put_model(layout: Layout, model: str, rng: np.random.Generator) -> None:
    unembed = rng.standard_normal((VOCAB, WIDTH)).astype(np.float32)
    arrays = {"norm_weight": np.ones(WIDTH, np.float32), "unembed": unembed, "real_token": np.ones(VOCAB, dtype=bool)}
    sizes = {"n_layers": LAYERS, "d_model": WIDTH, "vocab": VOCAB, "parameters": 1000}
    record = {"id": model, "sha256": model, **tiny.MODEL, **sizes}
    write_model(layout, model, record, arrays, {"norm": "rms", "norm_eps": 1e-6})


def _stream(model: str, number: int, rng: np.random.Generator) -> Stream:
    # The first token tells streams apart, whatever else is drawn.
    rows = [(f"p{p}", "A", [p, number], rng.integers(0, VOCAB, ANSWER).tolist()) for p in range(PROMPTS)]
    recipe = {"key": model, "tokenizer_sha256": "t", "prompt_set_sha256": "p", "max_new_tokens": ANSWER}
    recipe["continuation"] = {"model_sha256": model}
    return tiny.synthetic_stream(rows, kind="native", recipe=recipe)


def _put_capture(layout: Layout, model: str, stream: Stream) -> None:
    provenance = {"model": model, "model_sha256": model, "dtype": "float32", "batch": 4}
    sizes, layers = {"resid": (LAYERS + 1, WIDTH), "mlp_out": (LAYERS, WIDTH)}, tuple(range(LAYERS))
    template = Template(stream, sizes, (*layers, LAYERS), layers, "float32", provenance, 64)
    path = layout.capture(model, stream.name)
    tiny.write_capture(path, template)
    seal(path)


def _put_lens(kit: Context, names: tuple[str, str]) -> None:
    weight = np.broadcast_to(np.eye(WIDTH, dtype=np.float32), (2, LAYERS, WIDTH, WIDTH))
    bias, kl = np.zeros((2, LAYERS, WIDTH), np.float32), [[1.0] * LAYERS] * 2
    facts = {"steps": [1, 1], "trained_tokens": [64, 64], "kl_raw": kl, "kl_tuned": kl}
    write_probes(kit.layout, ProbeSpec(names, DEFAULT).record(kit), weight, bias, facts)


def _put_texts(layout: Layout, model: str, variant: str, edit: str) -> None:
    recipe = {"models": {variant: model}, "edits": [edit], "template": "chat", "max_new_tokens": ANSWER}
    condition = Condition(layout, model, recipe)
    named = [(f"p{p}", prompt_key([p])) for p in range(PROMPTS)]
    about = {"model": model, "key": condition.key, "condition": edit, "template": "chat", "prompts": "made"}
    ids = list(range(ANSWER))
    text = {"text": " ".join(WORDS[:ANSWER]), "token_id": ids, "tokens": ANSWER, "ended": True, "category": "A"}
    rows = [{**about, **text, "prompt_id": p, "prompt_sha": sha, "prompt_tokens": 1} for p, sha in named]
    condition.seal("texts", condition.file("texts", named), rows, OUTPUTS, {})


def _put_verdicts(layout: Layout, model: str) -> None:
    store = VerdictStore(layout.judge)
    for prompt in range(PROMPTS):
        store.add({"key": f"{model}-p{prompt}", "answer": "4", "reason": "made"})
    store.flush()


def _put_pair(
    kit: Context, models: dict[str, str], names: dict[str, tuple[str, str]], rng: np.random.Generator
) -> None:
    captures = {variant: kit.capture(each).sha256 for variant, each in names.items()}
    for kind in ("own", "contrast"):
        with directions_writer(kit.layout, models, kind, {"captures": captures, "version": 1}) as writer:
            writer.put("layer", np.arange(LAYERS))
            writer.put("d_mean", rng.standard_normal((LAYERS, WIDTH)))
    pair = {f"model_{variant}": model for variant, model in models.items()}
    files = {variant: read_model(kit.layout, model)["sha256"] for variant, model in models.items()}
    recipe = {"models": models, "files": files, "version": TABLES["weights"].version}
    rms = {"rms": rng.random(LAYERS), "rms_pt": rng.random(LAYERS), "parameters": np.full(LAYERS, 9)}
    rows = {"grouping": "seed", "group": "mlp", "layer": np.arange(LAYERS), **rms}
    write_table(kit.layout, "weights", recipe, [{**pair, **rows}])
    streams = {variant: stream for variant, (_, stream) in names.items()}
    recipe = {"models": models, "streams": streams, "captures": captures, "kind": "stability"}
    recipe["version"] = TABLES["directions"].version
    read = {"variant": None, "stream": streams["it"], "stream_pt": streams["pt"], "kind": "stability", "name": "d_mean"}
    values = {
        "layer": np.arange(LAYERS),
        "other": None,
        "draw": 0,
        "value": rng.random(LAYERS),
        "n": np.full(LAYERS, 9),
    }
    write_table(kit.layout, "directions", recipe, [{**pair, **read, **values}])
