"""The golden lake: what this package computed when its numbers were checked, and a comparison with what it computes now.

    python tests/golden.py            make the golden lake (minutes) and say what differs from tests/golden.json
    python tests/golden.py --write    take what comes out as the truth: for a change of numbers that is meant

The lake holds the packaged pair and three tiny families on 20 prompts: streams native, teacher, reverse and raw, every table,
direction and text that the rows of the index need, and the answers of all rows. Pinned are values as a reader of the lake
gets them, not files, formats or names. Models of the tiny families get their weights from NumPy's generator, so that no
library's way of initialising matters, and the work is done in a process whose arithmetic does not depend on the processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
FILE = HERE / "golden.json"
FAMILIES = ("gemma3", "gpt_neox", "deepseek_v2")  # a sandwich of norms; parallel, layer norm; mixture of experts
PAIRS = ("pocket", *FAMILIES)
COMPLETE = "gpt_neox"  # the pair that answers every row
QUICK = "deepseek_v2"  # the one that takes a third of its time, for every run of the tests
STREAMS = ("native", "teacher", "reverse", "raw")
SETS = {"golden": (20, 6, STREAMS), "wide": (32, 14, ("native",))}  # prompts, new tokens, streams
WIDE = ("L1", "L8", "0J")  # rows that need more prompts, or longer answers
# Rows whose many texts only one pair writes: the others answer enough rows that generate to have every kind of edit.
COSTLY = frozenset({"0C", "0F", "0H", "A1_notmpl", "A1_rand", "A2", "exp10_P4"})
STEERED = COSTLY | {"0D", "0E", "A1"}
LEFT_OUT = {"pocket": COSTLY, "gemma3": STEERED, "gpt_neox": frozenset[str](), "deepseek_v2": STEERED}
# One thread, and kernels that every x86-64 processor has.
ARITHMETIC = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NUMBA_CPU_NAME": "generic",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
CATALOG = """
lakes: {{default: {root}/lake}}
prompts: {{golden: {{path: {root}/golden.jsonl}}, wide: {{path: {root}/wide.jsonl}}}}
profiles:
  golden: {{sites: [resid, mlp_out, attn_out, attn_entropy], logits: topk, dtype: float32, shard_tokens: 256}}
pairs:
  pocket: {{pt: {{path: {package}/models/pocket/pt}}, it: {{path: {package}/models/pocket/it}}}}
"""


# --- the lake --------------------------------------------------------------------------------------------------------


def make(root: Path, pairs: Sequence[str] = PAIRS) -> Any:
    """Capture pairs below `root` through the command line, and return the Lake."""
    import actlake
    from actlake.analyze.tuned.recipes import Adam
    from actlake.queries.probes import choice as probe_choice

    package = Path(actlake.__file__).parent.resolve()
    probe_choice.DEFAULT = Adam(batch=64, steps=20, check_every=10, peak=1e-2)  # they need not be good
    lines = (package / "prompts" / "pocket.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, (count, *_) in SETS.items():
        (root / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    text = CATALOG.format(root=root, package=package)
    for family in FAMILIES:
        folders = [_model(root / family / variant, family, seed) for seed, variant in enumerate(("pt", "it"))]
        text += f"  {family}: {{pt: {{path: {folders[0]}}}, it: {{path: {folders[1]}}}}}\n"
    (root / "catalog.yaml").write_text(text, encoding="utf-8")
    for pair in pairs:
        for name, (_, new, streams) in SETS.items():
            what = [word for stream in streams for word in ("--stream", stream)]
            what += ["--prompts", name, "--profile", "golden", "--max-new-tokens", str(new)]
            _run(root, "capture", pair, *what, "--batch", "8", "--device", "cpu")
    return actlake.Lake(root / "lake", catalog=root / "catalog.yaml")


def _run(root: Path, *words: str) -> str:
    """A command's standard output; what it raises."""
    from actlake.cli.main import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, [*words, "--catalog", str(root / "catalog.yaml")])
    if done.exit_code:
        raise done.exception or SystemExit(done.output)
    return done.stdout


def _model(folder: Path, family: str, seed: int) -> Path:
    """A tiny model whose every weight is a function of its name: matrices 0.15 N, norms and biases 0.1 N around 1 or 0."""
    import tiny
    from safetensors.numpy import load_file, save_file

    tiny.make_model(folder, family, num_hidden_layers=4, max_position_embeddings=256)
    (file,) = folder.glob("*.safetensors")
    found = {}
    for name, old in sorted(load_file(file).items()):
        normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(old.shape)
        around, by = (np.round(old.mean()), 0.1) if old.ndim == 1 else (0, 0.15)
        found[name] = (around + by * normal).astype(old.dtype)
    save_file(found, file, metadata={"format": "pt"})
    return folder


# --- what is pinned --------------------------------------------------------------------------------------------------

Entries = dict[str, dict[str, Any]]
# Whole numbers that a last digit of a logit decides: where two are nearly equal another processor may choose otherwise.
DECIDED = {"topk_id", "top1", "rank_target", "top1_agree", "agree", "it_token", "pt_token", "n"}
# Differences of two layers, next to nothing themselves: what cancels is as good as a hundredth of a layer is compared.
LAYERS, LEAST = ("exp10_P3/pocket/dcommit", "exp10_P3/pocket/excess_dcommit"), 1e-2
# On another processor (AMD EPYC, 2026-11-30) these limits of intervals differ by 3e-4 while the estimates agree within 1e-4.
LIMITS = {"answers/exp10_P3/gemma3": 1e-3}
NAMELESS = {"key", "prompt_sha", "probes", "model", "model_pt", "model_it"}  # columns that name files and models


def entries(lake: Any, pairs: Sequence[str] = PAIRS) -> Entries:
    """Everything that is pinned of some pairs, by name; answers come first, because they make the tables."""
    found = dict(_answers(lake, pairs))
    for more in (_captures, _models, _directions, _tables):
        found |= more(lake, pairs)
    return dict(sorted(found.items()))


def of_pairs(entries: Entries, pairs: Sequence[str]) -> Entries:
    """The entries of some pairs: their name is a part of an entry's."""
    names = {name for pair in pairs for name in (pair, f"{pair}-pt", f"{pair}-it")}
    return {name: one for name, one in entries.items() if names & {*name.replace(" ", "/").split("/")}}


def _answers(lake: Any, pairs: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Estimates with limits and counts: each measure of the first pair that answers a row, each row of the others."""
    from actlake.queries.rows.registry import queries

    root = Path(str(lake.layout.root)).parent
    for pair in pairs:
        rows = [row for row in queries() if row not in LEFT_OUT[pair]]
        for prompts, asked in (("wide", WIDE), ("golden", [row for row in rows if row not in WIDE])):
            said = _run(root, "run", *asked, "--pair", pair, "--prompts", prompts, "--device", "cpu", "--json")
            for answer in json.loads(said):
                first = next(pair for pair in PAIRS if answer["row"] not in LEFT_OUT[pair])
                table = pd.DataFrame(answer["table"])
                kept = [name for name in table if name not in ("estimate", "low", "high")]
                for measure, lines in table.groupby("measure") if pair == first else [("", table)]:
                    where = f"answers/{answer['row']}/{pair}" + (f"/{measure}" if measure else "")
                    least = LEAST if where.removeprefix("answers/").startswith(LAYERS) else 0.0
                    numbers = {
                        name: digest(lines[name].to_numpy(float), least=least, tolerance=tolerance)
                        for name, tolerance in (
                            ("estimate", 0.0),
                            ("low", LIMITS.get(where, 0.0)),
                            ("high", LIMITS.get(where, 0.0)),
                        )
                    }
                    yield where, {"shape": [len(lines)], "sha": _sha([lines[kept].to_csv(index=False)]), **numbers}


def depends_on_others(lake: Any, pair: str) -> list[str]:
    """Rows of a pair that are answered otherwise alone than with all others, in either order, when all tables are there."""
    from actlake.queries.answer.asking import Asking
    from actlake.queries.rows.registry import queries

    catalog, different = Path(str(lake.layout.root)).parent / "catalog.yaml", []
    for prompts, wide in (("wide", True), ("golden", False)):
        asked = [query for name, query in queries().items() if (name in WIDE) == wide]

        def answers(*some: Any, prompts: str = prompts) -> dict[str, Any]:
            found = Asking(lake.layout, some, pair, prompts, "cpu", catalog, resamples=50).answers()
            return {answer.query.id: [answer.sentence, _columns(answer.table)] for answer in found}

        together = [answers(*asked), answers(*reversed(asked))]
        for query in asked:
            alone = answers(query).get(query.id)
            different += [query.id for found in together if found.get(query.id) != alone]
        different += [] if together[0] else ["no row was answered"]
    return different


def _captures(lake: Any, pairs: Sequence[str]) -> Entries:
    """Every array and coordinate of every capture, by the stream that a reader asks for."""
    found = {}
    for pair in pairs:
        for variant in ("pt", "it"):
            for prompts, (_, _, streams) in SETS.items():
                for stream in streams:
                    data = lake.dataset(f"{pair}-{variant}", f"{stream}-{prompts}")
                    for name, array in {**data.coords, **data.data_vars}.items():
                        found[f"captures/{pair}-{variant}/{stream}-{prompts}/{name}"] = digest(
                            np.asarray(array.values), name in DECIDED
                        )
    return found


def _models(lake: Any, pairs: Sequence[str]) -> Entries:
    """Heads and probes."""
    found = {}
    for model in (f"{pair}-{variant}" for pair in pairs for variant in ("pt", "it")):
        parts = {"head": lake.head(model)}
        names = sorted(path.stem for path in lake.layout.lenses(model).glob("tuned-*.zarr"))
        for name in names:
            parts |= {
                f"probes/{name.removeprefix('tuned-').rsplit('-', 1)[0]}/{fold}": one
                for fold, one in enumerate(lake.lenses(model, name))
            }
        for part, whole in parts.items():
            for name, value in vars(whole).items():
                if hasattr(value, "numpy"):
                    found[f"models/{model}/{part}/{name}"] = digest(value.numpy())
    return found


def _directions(lake: Any, pairs: Sequence[str]) -> Entries:
    """The arrays of every group of directions; groups of one kind are told apart by what they hold."""
    import zarr

    found: Entries = {}
    for pair in pairs:
        kinds: dict[str, list[Entries]] = {}
        for folder in lake.layout.directions({v: f"{pair}-{v}" for v in ("pt", "it")}).glob("*.zarr"):
            arrays = {name: digest(array[...]) for name, array in zarr.open_group(folder, mode="r").arrays()}
            kinds.setdefault(folder.stem.rsplit("-", 1)[0], []).append(arrays)
        for kind, groups in kinds.items():
            for number, arrays in enumerate(sorted(groups, key=lambda one: json.dumps(_rounded(one), sort_keys=True))):
                found |= {f"directions/{pair}/{kind}/{number}/{name}": value for name, value in arrays.items()}
    return found


def _rounded(arrays: Entries) -> list[Any]:
    return [(name, one["shape"], f"{one.get('norm', 0):.3g}") for name, one in sorted(arrays.items())]


def _tables(lake: Any, pairs: Sequence[str]) -> Entries:
    """Every column of every table and view, pair by pair, in an order that hangs on the content alone."""
    from actlake.store.tables.sql import connect

    connection, found = connect(lake.layout), {}
    names = connection.sql("SELECT table_name FROM information_schema.tables").fetchall()
    for name in sorted({name for (name,) in names} - {"captures", "pairs", "streams"}):
        table = connection.sql(f"SELECT * FROM {name}").df()
        table = table.drop(columns=[column for column in table if column in NAMELESS])
        for column in {"stream", "stream_pt"} & {*table}:
            table[column] = table[column].astype(str).str.rsplit("-", n=1).str[0]
        for pair in pairs:
            mine = table[table["pair"] == pair].drop(columns="pair")
            if len(mine):
                found |= {
                    f"tables/{name}/{pair} {column}": value for column, value in _columns(_in_order(mine)).items()
                }
    return found


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by what is no measured number first."""
    plain = {name: table[name].map(str) if table[name].dtype == object else table[name] for name in table}
    measured = [name for name in table if table[name].dtype.kind == "f" or name in DECIDED]
    order = [*(name for name in table if name not in measured), *measured]
    return pd.DataFrame(plain).sort_values(order, ignore_index=True)


def _columns(table: pd.DataFrame) -> Entries:
    return {name: digest(table[name].to_numpy(), name in DECIDED) for name in table}


# --- digests ---------------------------------------------------------------------------------------------------------

SHOWN, SKETCHES = 3, 2


def digest(values: np.ndarray, decided: bool = False, least: float = 0.0, tolerance: float = 0.0) -> dict[str, Any]:
    """What stands for an array: its shape and type, a hash, and for numbers a sketch that shows by how much they differ.

    Few floats stand for themselves. sketch: mean, root mean square, and SKETCHES sums with fixed random signs over the root of the count, of the values that
    are finite. `least` is what numbers are compared with where they are smaller, `tolerance` that of a comparison elsewhere
    than on the recording's processor, if it is not the usual one. Floats of 64 bits, which SQL adds in any order, are hashed without their last digits.
    """
    values = np.asarray(values)
    told = {name: value for name, value in (("decided", decided), ("least", least), ("tolerance", tolerance)) if value}
    if values.dtype.kind not in "fiub":
        texts = [str(value) for value in values.ravel()]
        return {"shape": [*values.shape], "sha": _sha(texts), "first": [text[:40] for text in texts[:SHOWN]]}
    if values.dtype == np.float64 and values.size <= SHOWN:
        short: dict[str, Any] = {"values": [None if np.isnan(value) else _short(value) for value in values.ravel()]}
        return {**short, **told}
    found: dict[str, Any] = {"shape": [*values.shape], "type": str(values.dtype), "sha": _sha([_exact(values)]), **told}
    flat = values.ravel().astype(np.float64)
    finite = flat[np.isfinite(flat)]
    if finite.size < flat.size:
        found["gaps"] = int(flat.size - finite.size)
    found["norm"] = _short(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    signs = np.random.default_rng(0).integers(0, 2, (SKETCHES, finite.size), dtype=np.int8) * 2.0 - 1
    sums = signs @ finite / np.sqrt(max(finite.size, 1))
    found["sketch"] = [_short(value) for value in (finite.mean() if finite.size else 0.0, *sums)]
    return found


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _exact(values: np.ndarray) -> bytes:
    if values.dtype == np.float64:
        return " ".join(f"{value:.9g}" for value in (values + 0.0).ravel()).encode()
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values + values.dtype.type(0))
    return np.ascontiguousarray(values).tobytes()


def _sha(parts: list[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


def _processor() -> str:
    """Its kind and cache: libraries cut large products by them, which the training of a lens shows in its last digits."""
    known = ("model name", "cpu family", "model", "stepping", "cache size")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    return ", ".join(value.strip() for name, value in lines.items() if name.strip() in known)


def fingerprint() -> dict[str, str]:
    """Where the same bits may be expected: libraries, and a hash of some arithmetic of each kind that the package does."""
    import scipy
    import torch
    import transformers

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((96, 96)).astype(np.float32) for _ in range(2))
    x, y, wide = torch.from_numpy(a), torch.from_numpy(b), a.astype(np.float64)
    found = [x @ y, x.double() @ y.double(), torch.softmax(x, -1), torch.log_softmax(x.double(), -1), x.exp(), x.tanh()]
    found += [torch.nn.functional.silu(x), torch.nn.functional.gelu(x), torch.rsqrt(x.pow(2).mean(-1)), x.cos()]
    found += [
        torch.nn.functional.layer_norm(x, [96]),
        torch.bmm(x.view(4, 24, 96), y.view(4, 96, 24)),
        x.sum(),
        x.norm(),
    ]
    found += [torch.nn.functional.scaled_dot_product_attention(*(t.view(1, 4, 24, 96) for t in (x, y, x)))]
    arrays = [each.numpy() for each in found]
    arrays += [a @ b, wide @ wide, np.exp(a), np.log(np.abs(wide)), np.tanh(a), np.sqrt(np.abs(a)), a.sum(0), a.mean()]
    arrays += [np.linalg.solve(wide, wide[0]), np.linalg.svd(wide, compute_uv=False), np.linalg.eigvalsh(wide @ wide.T)]
    arrays += [scipy.special.erf(wide), scipy.special.ndtri(np.abs(wide) % 1)]
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        **{module.__name__: module.__version__ for module in (np, torch, transformers)},
        "arithmetic": _sha([np.ascontiguousarray(array).tobytes() for array in arrays]),
    }


# --- comparison ------------------------------------------------------------------------------------------------------

TOLERANCE, DECIDED_TOLERANCE = 1e-4, 1e-2  # of the root mean square
# Recorded on another processor than all else, so that they are compared within the tolerance everywhere.
ELSEWHERE = ("answers/dla/", "tables/dla/")


def differences(old: Entries, new: Entries, exactly: bool) -> list[str]:
    """One line for every entry that is missing, new, or differs: bit by bit if `exactly`, else by more than the tolerance."""
    lines = [f"{name}: missing now" for name in old.keys() - new.keys()]
    lines += [f"{name}: new, not in {FILE.name}" for name in new.keys() - old.keys()]
    for name in old.keys() & new.keys():
        if said := _difference(old[name], new[name], exactly and not name.startswith(ELSEWHERE)):
            lines.append(f"{name}: {said}")
    return sorted(lines)


def _difference(old: dict[str, Any], new: dict[str, Any], exactly: bool) -> str:
    """What differs between two digests, in words; "" when nothing does."""
    for what in ("shape", "type", "gaps"):
        if old.get(what) != new.get(what):
            return f"{what} {new.get(what)}, was {old.get(what)}"
    parts = [name for name, one in old.items() if isinstance(one, dict)]
    if said := [f"{name} {text}" for name in parts if (text := _difference(old[name], new[name], exactly))]:
        return "; ".join(said)
    if old.get("sha", old.get("values")) == new.get("sha", new.get("values")):
        return ""
    if parts:
        return "other dimensions, n, unit or method"
    unknown = [[value is None for value in one.get("values", ())] for one in (old, new)]
    if unknown[0] != unknown[1]:
        return f"{new['values']}, was {old['values']}"
    if "first" in old:
        return f"other texts, first {new['first']}, was {old['first']}"
    numbers = [np.array([value or 0.0 for value in one.get("sketch") or one["values"]]) for one in (new, old)]
    scale = max(np.sqrt(np.mean(part**2)) for part in numbers) if "values" in old else max(old["norm"], new["norm"])
    scale = max(scale, old.get("least", 1e-30))
    apart = max(np.abs(numbers[0] - numbers[1]).max(), abs(old.get("norm", 0) - new.get("norm", 0))) / scale
    whole = old.get("type", "").startswith(("int", "uint", "bool")) and not old.get("decided")
    usual = DECIDED_TOLERANCE if old.get("decided") else TOLERANCE
    if not exactly and not whole and apart <= old.get("tolerance", usual):
        return ""
    shown = [" ".join(f"{value:.6g}" for value in part[:SHOWN]) for part in numbers]
    kind = "" if "values" in old else "mean and sketch "
    return f"{kind}{shown[0]}, was {shown[1]} ({apart:.2g} of the root mean square, {scale:.4g})"


# --- running ---------------------------------------------------------------------------------------------------------


def compute(pairs: Sequence[str] = PAIRS) -> dict[str, Any]:
    """Make the lake in a process with the pinned arithmetic: {"fingerprint": .., "entries": .., "depends on others": ..}."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTLAKE_")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "computed.json"
        environment |= {**ARITHMETIC, "ACTLAKE_CACHE": f"{folder}/mirrors"}
        command = [sys.executable, str(Path(__file__).resolve()), "--make", str(out), "--pairs", *pairs]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the golden lake could not be made:\n{done.stderr[-4000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def recorded() -> dict[str, Any]:
    """What golden.json holds."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def dump(found: dict[str, Any]) -> str:
    """JSON with one entry a line, sorted, so that a diff shows what changed."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(found["entries"].items()))
    return f'{{"fingerprint": {json.dumps(found["fingerprint"], sort_keys=True)},\n"entries": {{\n{lines}\n}}}}\n'


def report(old: dict[str, Any], new: dict[str, Any], most: int = 60) -> str:
    """What differs, for a human; empty when nothing does."""
    exactly = old["fingerprint"] == new["fingerprint"]
    lines = differences(old["entries"], new["entries"], exactly)
    if not lines:
        return ""
    how = "bit by bit" if exactly else f"within {TOLERANCE:g} (other libraries or arithmetic than those of {FILE.name})"
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    meant = "If the change is meant: `python tests/golden.py --write`, and say in the commit what changed and why."
    return "\n".join(
        [f"{len(lines)} of {len(old['entries'])} entries differ, compared {how}:", *lines[:most], *more, meant]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="take what comes out as the truth")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make:
        import torch

        torch.set_num_threads(1)
        lake = make(chosen.make.parent, chosen.pairs)
        found = {"fingerprint": fingerprint(), "entries": entries(lake, chosen.pairs)}
        found["depends on others"] = depends_on_others(lake, COMPLETE) if COMPLETE in chosen.pairs else []
        chosen.make.write_text(json.dumps(found), encoding="utf-8")
        return
    new = compute()
    said = report(recorded(), new) if FILE.exists() else ""
    if chosen.write:
        FILE.write_text(dump(new), encoding="utf-8")
    print(said or "nothing differs")
    sys.exit(bool(said) and not chosen.write)


if __name__ == "__main__":
    main()
