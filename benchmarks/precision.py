"""What rounding costs: the pocket pair captured as it is, as int8 and as fp8; sizes against the exact capture's, and how far
residuals, the logit lens, a row's answer and a replay are from the exact ones.
"""

import argparse
import tempfile
from pathlib import Path

import actlake
import numpy as np
from actlake.capture.edit.replay import load_late, replay_whole
from actlake.capture.edit.start import open_start
from actlake.lake import Lake
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.catalog import load_catalog
from actlake.store.core.schema import SITES
from measure import Row, main

MODELS = ("pocket-pt", "pocket-it")
NONE = float("nan")


def run(dtype: str, limit: int, lake: str) -> list[Row]:
    """Rows of each precision against the exact capture of the same tokens."""
    with tempfile.TemporaryDirectory() as folder:
        lakes = {}
        for word in ("exact", "int8", "fp8"):
            lakes[word] = actlake.open(Path(lake or folder) / word, create=True)
            lakes[word].capture("pocket", limit=limit, dtype=dtype, precision=None if word == "exact" else word)
        return [row for word in ("int8", "fp8") for row in compared(word, lakes["exact"], lakes[word])]


def compared(word: str, exact: Lake, coarse: Lake) -> list[Row]:
    """One precision: bytes, then errors from the arrays to the answers."""
    rows = []
    for site in ("resid", "mlp_out"):
        one, two = (bits(lake, site) for lake in (coarse, exact))
        rows.append(Row(f"{word}: {site}", one, two, "bits a value"))
    captures = [(open_it(exact, model), open_it(coarse, model)) for model in MODELS]
    for site in ("resid", "mlp_out"):
        pairs = [(one.array(site)[:], two.array(site)[:]) for one, two in captures]
        record = [two.manifest["rounding"][site] for _, two in captures]
        rows += [
            Row(f"{word}: {site}, relative error, worst layer", worst(record, "relative"), NONE, "%"),
            Row(f"{word}: {site}, values that became 0, worst layer", worst(record, "zeroed"), NONE, "%"),
            Row(f"{word}: {site}, 1 - cosine, worst token", max(1 - cosines(*pair).min() for pair in pairs), NONE, ""),
        ]
    ask = "SELECT * FROM lens WHERE lens = 'raw' ORDER BY model, stream, prompt, token, layer"
    tables = [lake.sql_frame(ask) for lake in (exact, coarse)]
    kl, other = (table["kl_layer_final"].to_numpy() for table in tables)
    same = float((tables[0]["top1"] == tables[1]["top1"]).mean())
    rows += [
        Row(f"{word}: lens, mean KL(layer || final)", float(other.mean()), float(kl.mean()), "nats"),
        Row(f"{word}: lens, mean change of a token's KL", float(np.abs(other - kl).mean()), float(kl.mean()), "nats"),
        Row(f"{word}: lens, same top-1", 100 * same, 100, "%"),
    ]
    for name in ("L1", "L2"):
        one, two = (lake.run(name, pair="pocket").table for lake in (coarse, exact))
        keys = [column for column in two if column not in ("estimate", "low", "high")]
        first, second = one.iloc[0], two.iloc[0]
        assert first[keys].astype(str).equals(second[keys].astype(str))
        rows.append(Row(f"{word}: row {name}, {first['measure']}", first["estimate"], second["estimate"], ""))
    for boundary in (1, 4):
        rows.append(
            Row(f"{word}: replay from boundary {boundary}, same top-1", 100 * replayed(coarse, boundary), 100, "%")
        )
    return rows


def open_it(lake: Lake, model: str) -> Capture:
    return Capture(find_capture(lake.layout, model, "native"))


def bits(lake: Lake, site: str) -> float:
    """Bits on disk of a value, with what frames and shards need themselves; both models together."""
    assert site in SITES
    found = [open_it(lake, model) for model in MODELS]
    files = [
        entry["bytes"]
        for one in found
        for name, entry in one.manifest["files"].items()
        if name.startswith(f"{site}/c/")
    ]
    return 8 * sum(files) / sum(int(np.prod(one.array(site).shape)) for one in found)


def worst(record: list[dict[str, list[float]]], key: str) -> float:
    return 100 * max(value for one in record for value in one[key])


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = one.astype(np.float64), two.astype(np.float64)
    return (one * two).sum(-1) / np.maximum(np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1), 1e-30)


def replayed(lake: Lake, boundary: int) -> float:
    """Share of tokens whose likeliest next token is the stored one after a replay of the it model."""
    model = load_late(lake.layout, "pocket-it", boundary, load_catalog())
    found = replay_whole(model, open_start(lake.layout, "pocket-it", "native", boundary))
    return float((found.arrays["topk_id"][:, 0] == open_it(lake, "pocket-it").array("topk_id")[:, 0]).mean())


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="auto", help="type the models compute in (auto: bfloat16)")
    parser.add_argument("--limit", type=int, help="only the first N prompts")
    parser.add_argument("--lake", default="", help="folder in which the three lakes stay")


if __name__ == "__main__":
    main("precision", run, __doc__, options)
