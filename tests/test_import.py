"""Captures of other tools: bit for bit in the lake, whatever the format; what is wrong with one is named, bad files refused in a line."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from actlake.capture.model.hooks import Batch
from actlake.capture.model.load import Model, load_model
from actlake.capture.run.forward import forward
from actlake.lake import Lake
from actlake.store.core.catalog import Catalog, PairSpec
from actlake.store.core.errors import LakeError
from actlake.store.format.paths import Layout
from safetensors.torch import save_file

LENGTHS = (7, 4, 11, 5, 9)
Rows = list[tuple[np.ndarray, dict[str, torch.Tensor]]]  # of each prompt its tokens and values [n, places, d] by site


@pytest.fixture(scope="module")
def model(llama: PairSpec) -> Model:
    return load_model(llama.model("it"))


@pytest.fixture(scope="module")
def rows(model: Model) -> Rows:
    """What the model computes of some token sequences, each alone."""
    generator = np.random.default_rng(3)
    found = []
    for length in LENGTHS:
        tokens = generator.integers(5, model.head.vocab, length).astype(np.int32)
        found.append((tokens, own(model, tokens)))
    return found


def own(model: Model, tokens: np.ndarray) -> dict[str, torch.Tensor]:
    layers, width = model.n_layers, model.head.d_model
    sizes: dict[str, tuple[int, ...]] = {
        "resid": (layers + 1, width),
        "mlp_out": (layers, width),
        "attn_out": (layers, width),
    }
    found = forward(model, Batch([tokens], 0, model.device), sizes, range(layers + 1))
    return {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.fixture
def here(tmp_path: Path, llama: PairSpec) -> Lake:
    """A lake whose catalog has the tiny pair."""
    lake = Lake(Layout.open(tmp_path / "lake", create=True))
    lake.__dict__["catalog"] = tiny.catalog_of(llama)
    return lake


def bring(lake: Lake, format: str, path: Path, **more: Any) -> Any:
    """Import a capture; the arrays of the lake."""
    result = lake.add_capture(format, path, "llama-it", **more)
    assert result.sealed
    assert all(report.ok for report in lake.verify())
    return lake.dataset("llama-it", result.path.stem)


def problems_of(lake: Lake, count: int = 5) -> str:
    """What running prompts again says is wrong."""
    return "\n".join(problem for report in lake.verify(reforward=count) for problem in report.problems)


def bits(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def flat(rows: Rows, site: str = "resid", dtype: torch.dtype = torch.float32) -> np.ndarray:
    return torch.cat([values[site].to(dtype).float() for _, values in rows]).numpy()


# --- a file a sequence -------------------------------------------------------------------------------------------------


def vllm(
    folder: Path,
    rows: Rows,
    dtype: torch.dtype = torch.float32,
    change: Callable[[int, torch.Tensor], torch.Tensor] = lambda _, x: x,
) -> Path:
    folder.mkdir()
    for index, (tokens, values) in enumerate(rows):
        states = change(index, values["resid"].to(dtype)).contiguous()
        save_file(
            {"token_ids": torch.from_numpy(tokens), "hidden_states": states},
            folder / f"{folder.name}_{index}.safetensors",
        )
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_are_the_files_bit_for_bit(here: Lake, tmp_path: Path, rows: Rows, dtype: torch.dtype) -> None:
    found = bring(here, "vllm", vllm(tmp_path / "x", rows, dtype))
    assert np.array_equal(bits(found.resid), bits(flat(rows, dtype=dtype)))
    assert found.resid.attrs["source_dtype"] == str(dtype).removeprefix("torch.")
    assert found.token_id.values.tolist() == np.concatenate([tokens for tokens, _ in rows]).tolist()
    assert found.prompt_id.values.tolist() == [f"x_{i}" for i in range(len(rows))]
    assert problems_of(here) == ""


def test_the_record_says_where_it_comes_from(here: Lake, tmp_path: Path, rows: Rows) -> None:
    bring(here, "vllm", vllm(tmp_path / "engine run", rows))
    name = here.streams["stream"][0]
    assert name.startswith("imported-engine-run-")
    made = here.describe(f"llama-it/{name}")["provenance"]["imported"]
    assert (made["format"], made["files"]) == ("vllm", 5) and len(made["sha256"]) == 64
    again = here.add_capture("vllm", tmp_path / "engine run", "llama-it")
    assert again.reused
    assert here.decode([5, 6], "llama-it")  # with the model's vocabulary
    assert here.head("llama-it").d_model == 32


def test_draft_model_stores_have_masks_and_lists(here: Lake, tmp_path: Path, rows: Rows) -> None:
    """speculators of before: a torch file a sample, a list of one tensor a layer; SpecForge: layers side by side, gzip."""
    spec, forge = tmp_path / "spec", tmp_path / "forge" / "rows_0-2000"
    spec.mkdir()
    forge.mkdir(parents=True)
    for index, (tokens, values) in enumerate(rows):
        mask = torch.tensor([0, 0, 0, *[1] * (len(tokens) - 3)])
        states = [values["resid"][:, b].clone() for b in (1, 3)]
        torch.save(
            {"input_ids": torch.from_numpy(tokens), "hidden_states": states, "loss_mask": mask},
            spec / f"data_{index}.pt",
        )
        beside = {
            "input_ids": torch.from_numpy(tokens)[None],
            "aux_hidden_state": torch.cat(states, -1)[None],
            "loss_mask": mask[None],
        }
        with gzip.open(forge / f"data_{index}.ckpt.gz", "wb") as opened:
            torch.save(beside, opened)
    one = bring(here, "speculators", spec, boundaries=[1, 3])
    assert np.array_equal(bits(one.resid), bits(flat(rows)[:, [1, 3]])) and one.boundary.values.tolist() == [1, 3]
    assert one.step.values[:7].tolist() == [-1, -1, 0, 1, 2, 3, -1]  # the mask says where the reply begins
    two = bring(here, "specforge", tmp_path / "forge", boundaries=[1, 3], name="forge")
    assert np.array_equal(bits(two.resid), bits(one.resid))
    assert problems_of(here) == ""


# --- arrays with a batch axis ------------------------------------------------------------------------------------------


def padded(rows: Rows, site: str, place: int, left: bool = False) -> torch.Tensor:
    width = max(len(tokens) for tokens, _ in rows)
    found = torch.zeros(len(rows), width, 32)
    for row, (tokens, values) in enumerate(rows):
        found[row, width - len(tokens) if left else 0 :][: len(tokens)] = values[site][:, place]
    return found


def padded_tokens(rows: Rows, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(tokens) for tokens, _ in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for row, (tokens, _) in enumerate(rows):
        start = width - len(tokens) if left else 0
        ids[row, start : start + len(tokens)] = torch.from_numpy(tokens)
        mask[row, start : start + len(tokens)] = 1
    return ids, mask


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("left", [False, True])
def test_caches_with_padding(here: Lake, tmp_path: Path, rows: Rows, suffix: str, left: bool) -> None:
    ids, mask = padded_tokens(rows, left)
    held = {"tokens": ids, "attention_mask": mask, "blocks.0.hook_resid_pre": padded(rows, "resid", 0, left)}
    for layer in range(3):
        held[f"blocks.{layer}.hook_resid_post"] = padded(rows, "resid", layer + 1, left)
        held[f"blocks.{layer}.hook_mlp_out"] = padded(rows, "mlp_out", layer, left)
        held[f"blocks.{layer}.attn.hook_pattern"] = torch.zeros(5, 4, 11, 11)  # what a lake does not keep
    file = tmp_path / f"cache.{suffix}"
    if suffix == "safetensors":
        save_file(held, file)
    elif suffix == "npz":
        np.savez(file, **{name: value.numpy() for name, value in held.items()})
    else:
        torch.save(held, file)
    found = bring(here, "transformerlens", file)
    assert np.array_equal(bits(found.resid), bits(flat(rows)))
    assert np.array_equal(bits(found.mlp_out), bits(flat(rows, "mlp_out")))
    assert problems_of(here) == ""


def test_trees_of_npy(here: Lake, tmp_path: Path, rows: Rows) -> None:
    """A folder a batch: one flat with offsets, one with a batch axis; a layer a file, or all in one."""
    flat_one, batched = tmp_path / "tree" / "batch_0", tmp_path / "tree" / "batch_1"
    (flat_one / "resid").mkdir(parents=True)
    batched.mkdir()
    np.save(flat_one / "tokens.npy", np.concatenate([tokens for tokens, _ in rows[:3]]))
    np.save(flat_one / "lengths.npy", LENGTHS[:3])
    for boundary in range(4):
        np.save(flat_one / "resid" / f"{boundary}.npy", flat(rows[:3])[:, boundary])
    last = rows[3:4]
    np.save(batched / "tokens.npy", np.stack([last[0][0]]))
    np.save(batched / "resid.npy", last[0][1]["resid"].numpy()[None])
    found = bring(here, "npy", tmp_path / "tree")
    assert np.array_equal(bits(found.resid), bits(flat(rows[:4]))) and found.sizes["prompt"] == 4


def test_memory_maps_of_crosscoders(here: Lake, tmp_path: Path, rows: Rows) -> None:
    values = torch.from_numpy(flat(rows)).to(torch.bfloat16)
    crosscoder(tmp_path / "cache", rows, values)
    found = bring(here, "crosscoder", tmp_path / "cache")
    assert np.array_equal(bits(found.resid), bits(values[:, [1, 3]].float())) and found.boundary.values.tolist() == [
        1,
        3,
    ]


def crosscoder(folder: Path, rows: Rows, values: torch.Tensor, **config: Any) -> None:
    """The files that crosscoder_learning's ActivationCache writes: bits of bfloat16 as int16, two shards."""
    for layer in (0, 2):
        own_folder = folder / f"layer_{layer}_out"
        own_folder.mkdir(parents=True)
        for shard, span in enumerate((slice(0, 20), slice(20, None))):
            part = values[span, layer + 1]
            part.view(torch.int16).numpy().tofile(own_folder / f"shard_{shard}.memmap")
            (own_folder / f"shard_{shard}.meta").write_text(
                json.dumps({"shape": list(part.shape), "dtype": "bfloat16"})
            )
        made = {"shard_count": 2, "io": "out", "total_size": len(values), "shuffle_shards": False, **config}
        (own_folder / "config.json").write_text(json.dumps(made))
    torch.save(torch.from_numpy(np.concatenate([tokens for tokens, _ in rows])).long(), folder / "tokens.pt")
    torch.save(torch.tensor(np.cumsum([0, *LENGTHS])), folder / "sequence_ranges.pt")


# --- tables of lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_tables_of_lists(here: Lake, tmp_path: Path, rows: Rows, suffix: str) -> None:
    table = pa.table(
        {
            "id": [f"row {i}" for i in range(len(rows))],
            "input_ids": [tokens.tolist() for tokens, _ in rows],
            "hidden_states": pa.array(
                [values["resid"].tolist() for _, values in rows], pa.list_(pa.list_(pa.list_(pa.float32())))
            ),
        }
    )
    file = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, file, row_group_size=2)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    found = bring(here, "datasets", tmp_path)
    assert np.array_equal(bits(found.resid), bits(flat(rows))) and found.prompt_id.values[1] == "row 1"


# --- on a stream of the lake, in parts, after a kill -------------------------------------------------------------------


def test_files_without_tokens_go_on_a_stream(here: Lake, tmp_path: Path, rows: Rows) -> None:
    bring(here, "vllm", vllm(tmp_path / "x", rows), name="first")
    stream = here.streams["stream"][0]
    np.save(tmp_path / "resid.npy", flat(rows))
    with pytest.raises(LakeError, match="has no token ids: --stream names"):
        here.add_capture("npy", tmp_path / "resid.npy", "llama-it")
    again = here.add_capture("npy", tmp_path / "resid.npy", "llama-pt", stream=stream[:12])
    assert again.path.stem == stream and again.path.parent.name == "llama-pt"
    assert "no usual mistake explains it: another checkpoint" in problems_of(here)  # they are not llama-pt's


def test_an_import_goes_on_where_it_was_killed(
    here: Lake, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 16 tokens: of three the last one fails, and only that is written by the next run; the bytes are the same."""
    from actlake.exchange import importing
    from actlake.store.captures import allocate

    monkeypatch.setattr(allocate, "shard_tokens", lambda _: 16)
    files, parts, written = vllm(tmp_path / "x", rows), importing._parts, list[int]()

    def failing(found: Any, offset: np.ndarray, start: int, end: int) -> Iterator[dict[str, np.ndarray]]:
        written.append(start)
        if start == 32 and len(written) == 3:
            raise KeyboardInterrupt
        return parts(found, offset, start, end)

    monkeypatch.setattr(importing, "_parts", failing)
    with pytest.raises(KeyboardInterrupt):
        here.add_capture("vllm", files, "llama-it")
    path = here.add_capture("vllm", files, "llama-it").path
    assert written == [0, 16, 32, 32]
    other = Lake(Layout.open(tmp_path / "other", create=True))
    other.__dict__["catalog"] = here.catalog
    assert tiny.tree(other.add_capture("vllm", files, "llama-it").path) == tiny.tree(path)


# --- what is wrong is named -----------------------------------------------------------------------------------


def test_layers_off_by_one(here: Lake, tmp_path: Path, rows: Rows) -> None:
    bring(here, "vllm", vllm(tmp_path / "x", rows, change=lambda _, x: x[:, 1:]), boundaries=[0, 1, 2])
    assert "layers are off by one: boundary 0 holds 1, 1 holds 2, 2 holds 3" in problems_of(here)


def test_the_last_layer_normed(here: Lake, tmp_path: Path, rows: Rows, model: Model) -> None:
    """As hidden_states of Hugging Face end; and the same without the embeddings, which is off by one as well."""

    @torch.no_grad()
    def normed(_: int, states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[:, :-1], model.parts.norm(states[:, -1:])], 1)

    bring(here, "vllm", vllm(tmp_path / "x", rows, change=normed))
    found = problems_of(here)
    assert "boundary 3 went through the final norm (normed last layer)" in found and "off by one" not in found
    bring(
        here,
        "vllm",
        vllm(tmp_path / "y", rows, change=lambda i, x: normed(i, x)[:, 1:]),
        boundaries=[0, 1, 2],
        name="y",
    )
    found = problems_of(here)
    assert "boundary 2 went through the final norm" in found and "boundary 0 holds 1, 1 holds 2" in found


def test_left_padding_by_rows(here: Lake, tmp_path: Path, rows: Rows) -> None:
    """Rows cut from a left-padded batch as if it were padded on the right: they stand too late."""

    def late(index: int, states: torch.Tensor) -> torch.Tensor:
        pads = min(max(LENGTHS) - LENGTHS[index], 2)
        return torch.cat([torch.full_like(states[:pads], 0.3), states])[: len(states)]

    bring(here, "vllm", vllm(tmp_path / "x", rows, change=late))
    assert "left padding: rows of prompt 'x_1' stand 2 positions too late" in problems_of(here)


def test_left_padding_that_was_read(here: Lake, tmp_path: Path, rows: Rows, model: Model) -> None:
    def read(index: int, states: torch.Tensor) -> torch.Tensor:
        pads = max(LENGTHS) - LENGTHS[index]
        return own(model, np.concatenate([np.zeros(pads, np.int32), rows[index][0]]))["resid"][pads:]

    bring(here, "vllm", vllm(tmp_path / "x", rows, change=read))
    assert "left padding: prompt 'x_1' was read behind 7 padding tokens that were not masked" in problems_of(here)


def test_swapped_rows(here: Lake, tmp_path: Path, rows: Rows) -> None:
    """Two tokens of one prompt, and two prompts of equal length (5 of 9 against the first of the other)."""

    def within(_: int, states: torch.Tensor) -> torch.Tensor:
        return states[[1, 0, *range(2, len(states))]]

    bring(here, "vllm", vllm(tmp_path / "x", rows, change=within))
    assert "swapped rows: 2 rows of prompt 'x_0' stand in the place of others" in problems_of(here)
    pair = [rows[4], (rows[0][0], rows[0][1])]
    cut = [(tokens[:7], {"resid": values["resid"][:7]}) for tokens, values in pair]
    crossed = [(cut[0][0], cut[1][1]), (cut[1][0], cut[0][1])]
    bring(here, "vllm", vllm(tmp_path / "y", crossed), name="y")
    assert "swapped rows: the values of prompt 'y_0' are stored as those of 'y_1'" in problems_of(here)


def test_overflow_of_float16(here: Lake, tmp_path: Path, rows: Rows, llama: PairSpec) -> None:
    """A model whose residuals are larger than float16 holds: refused, and named when they are kept all the same."""
    from transformers import AutoModelForCausalLM

    folder = tiny.make_model(tmp_path / "large", seed=1)
    large = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        large.model.embed_tokens.weight.mul_(3e5)
    large.save_pretrained(folder)
    here.__dict__["catalog"] = Catalog(
        **{**vars(here.catalog), "models": {"large": tiny.spec(folder, "large")}, "pairs": {}}
    )
    loaded = load_model(tiny.spec(folder, "large"))
    found = [(tokens, own(loaded, tokens)) for tokens, _ in rows]
    files = vllm(tmp_path / "x", found, torch.float16)
    with pytest.raises(LakeError, match="large: resid is -?inf"):
        here.add_capture("vllm", files, "large")
    here.add_capture("vllm", files, "large", name="kept", allow_nonfinite=True)
    assert "wrong dtype: " in (words := problems_of(here)) and "values overflowed float16" in words


def test_bits_of_another_dtype(here: Lake, tmp_path: Path, rows: Rows) -> None:
    bring(here, "vllm", vllm(tmp_path / "x", rows, torch.bfloat16, lambda _, x: x.view(torch.float16)))
    assert "wrong dtype: bits of bfloat16 were read as float16" in problems_of(here)
    bring(here, "vllm", vllm(tmp_path / "y", rows, change=lambda _, x: 5.5 * x), name="y")
    assert "all values are 5.5 times the model's" in problems_of(here)


# --- bad input ---------------------------------------------------------------------------------------------------------


def spoil(folder: Path, rows: Rows, how: str) -> Path:
    """A folder of vLLM's with one thing wrong."""
    files = vllm(folder, rows)
    file = files / "x_2.safetensors"
    tokens, values = rows[2]
    held = {"token_ids": torch.from_numpy(tokens.copy()), "hidden_states": values["resid"].contiguous()}
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "huge header":
        file.write_bytes((1 << 40).to_bytes(8, "little") + file.read_bytes()[8:])
    elif how == "huge shape":
        header = json.dumps(
            {"hidden_states": {"dtype": "F32", "shape": [1 << 40, 4, 32], "data_offsets": [0, 64]}}
        ).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    elif how == "pickle":
        file.unlink()
        torch.save({"token_ids": Path("x"), "hidden_states": [1]}, files / "x_2.pt")
    else:
        changed = {
            "mixed dtypes": {"hidden_states": held["hidden_states"].half()},
            "unequal lengths": {"hidden_states": held["hidden_states"][:-1].contiguous()},
            "unequal layers": {"hidden_states": held["hidden_states"][:, :3].contiguous()},
            "nan": {"hidden_states": held["hidden_states"].index_fill(0, torch.tensor([3]), float("nan"))},
            "other tokenizer": {"token_ids": held["token_ids"] + 5000},
            "other model": {"hidden_states": torch.zeros(11, 4, 48)},
            "no tokens": {"token_ids": torch.zeros(11)},
        }[how]
        save_file(held | changed, file)
    return files


BAD = {
    "cut short": "x_2.safetensors: can't be read .*cut short",
    "huge header": r"can't be read \(a header of 1,099,511,627,776 bytes in a file of",
    "huge shape": "can't be read .*bytes 0 to 64 of 64 for",
    "pickle": "x_2.pt: can't be read as tensors alone",
    "mixed dtypes": "states of several dtypes: expected one, found float16, float32",
    "unequal lengths": r"hidden_states: \[10, 4, 32\]: expected 11 tokens of width 32",
    "unequal layers": "files of unequal numbers of layers: expected one, found 3, 4",
    "nan": "llama-it: resid is nan, boundary 0, prompt 'x_2', position 3",
    "other tokenizer": "prompt 'x_2': token id 5[0-9]* names no token of llama-it: found tokens of another tokenizer",
    "other model": r"\[11, 4, 48\]: expected 11 tokens of width 32",
    "no tokens": "token_ids: 11 values of float32: expected token ids",
}


@pytest.mark.parametrize("how", BAD)
def test_bad_files_are_refused_in_one_line(here: Lake, tmp_path: Path, rows: Rows, how: str) -> None:
    with pytest.raises(LakeError, match=BAD[how]) as refused:
        here.add_capture("vllm", spoil(tmp_path / "x", rows, how), "llama-it")
    assert "\n" not in str(refused.value)


def test_other_refusals(here: Lake, tmp_path: Path, rows: Rows) -> None:
    files = vllm(tmp_path / "x", rows, change=lambda _, x: x[:, 1:])
    for format, path, more, words in (
        ("vlm", files, {}, "format 'vlm': expected one of crosscoder, datasets, nnsight"),
        ("vllm", tmp_path / "none", {}, "none: no such file or folder"),
        ("vllm", files, {}, "3 layers of states, and nothing says which of the model's 4 boundaries; name them with --boundaries"),
        ("vllm", files, {"boundaries": [2, 3, 4]}, "resid 4: expected 0 to 3, as llama-it has them"),
        ("vllm", files, {"boundaries": [1, 2]}, "3 layers of states: expected 2, as --boundaries says"),
        ("vllm", files, {"stream": "nothing"}, "stream 'nothing': expected the beginning of one stream's name, found none"),
    ):  # fmt: skip
        with pytest.raises(LakeError) as refused:
            here.add_capture(format, path, "llama-it", **more)
        assert words in str(refused.value)
    crosscoder(tmp_path / "cache", rows, torch.from_numpy(flat(rows)).to(torch.bfloat16), shuffle_shards=True)
    with pytest.raises(LakeError, match="rows were shuffled as they were stored"):
        here.add_capture("crosscoder", tmp_path / "cache", "llama-it")
    np.save(tmp_path / "layer_0.npy", np.array([{}], dtype=object))
    with pytest.raises(LakeError, match="it holds Python objects"):
        here.add_capture("npy", tmp_path / "layer_0.npy", "llama-it")


# --- what another engine wrote -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_text_of_another_engine(here: Lake, tmp_path: Path, model: Model, suffix: str) -> None:
    """Two greedy continuations, of which one token is changed: the capture is the model's, one token is not its choice."""
    continued = []
    for start in ([1, 9, 12], [1, 20]):
        ids = torch.tensor([start])
        for _ in range(5):
            ids = torch.cat([ids, model.hf(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        continued.append({"prompt_token_ids": start, "token_ids": ids[0, len(start) :].tolist()})
    continued[1]["token_ids"][4] = (continued[1]["token_ids"][4] + 1) % 250 + 5
    file = tmp_path / f"replies.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(continued), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in continued))
    found = here.add_tokens(file, "llama-it", engine="vllm 0.27", settings={"temperature": "0"})
    assert (found.tokens, found.other, found.first) == (10, 1, 0)
    arrays = here.dataset("llama-it", found.stream)
    assert arrays.step.values.tolist() == [-1, -1, 0, 1, 2, 3, 4, -1, -1, 0, 1, 2, 3, 4, -1]
    record = json.loads((here.layout.streams / f"{found.stream}.json").read_text())
    assert record["recipe"]["imported"]["engine"] == "vllm 0.27" and found.stream.startswith("written-replies-")
    assert here.add_tokens(file, "llama-it", engine="vllm 0.27", settings={"temperature": "0"}).result.reused


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1: expected a JSON object"),
        ('{"text": "x"}', "row 0: text: expected prompt_token_ids"),
        ('{"prompt_token_ids": [1.5]}', "expected a list of token ids, whole numbers"),
        ('{"prompt_token_ids": 5, "token_ids": [6]}', "row 0: 5: expected a list of token ids, whole numbers"),
        ('{"prompt_token_ids": null, "token_ids": [6]}', "row 0: prompt_token_ids is null: expected prompt_token_ids"),
        ("{}", "row 0: an empty row: expected prompt_token_ids"),
        ('{"prompt_token_ids": [1], "token_ids": [99999]}', "token id 99999"),
        ('{"prompt_token_ids": [], "token_ids": []}', "row 0: no token ids"),
        ('{"prompt_token_ids": ' + str([9] * 129) + "}", "129 tokens + 0 new ones, the model's context holds 128"),
    ],
)
def test_bad_text_of_an_engine(here: Lake, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(LakeError) as refused:
        here.add_tokens(tmp_path / "x.jsonl", "llama-it")
    assert words in str(refused.value) and "\n" not in str(refused.value)


# --- files that the tools themselves wrote: tests/imports/make.py ------------------------------------------------------

FIXTURES = Path(__file__).parent / "imports"


@pytest.fixture
def small(tmp_path: Path) -> Lake:
    """A lake whose catalog has the model that the files are of."""
    lake = Lake(Layout.open(tmp_path / "lake", create=True))
    lake.__dict__["catalog"] = Catalog(
        **{**vars(lake.catalog), "models": {"small": tiny.spec(FIXTURES / "model", "small")}, "pairs": {}}
    )
    return lake


TOOLS: dict[str, tuple[str, dict[str, Any], Callable[[Path], dict[str, np.ndarray]]]] = {
    "transformerlens": ("transformerlens.safetensors", {}, lambda file: of_transformerlens(file)),
    "nnsight": (
        "nnsight.pt",
        {},
        lambda file: {
            "resid": stacked([torch.load(file, weights_only=True)[f"model.layers.{i}.output"] for i in (0, 1)])
        },
    ),
    "datasets": ("datasets", {"boundaries": [0, 1]}, lambda file: {"resid": lists(file, "hidden_states")}),
    "saelens": ("saelens", {}, lambda file: {"resid": lists(file, "blocks.1.hook_resid_post")[:, None]}),
}


def stacked(layers: list[torch.Tensor]) -> np.ndarray:
    """Layers [batch, position, d] as [tokens, layers, d]."""
    return torch.stack([layer.float().reshape(-1, layer.shape[-1]) for layer in layers], 1).numpy()


def of_transformerlens(file: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    held = load_file(file)
    return {
        "resid": stacked(
            [held["blocks.0.hook_resid_pre"], held["blocks.0.hook_resid_post"], held["blocks.1.hook_resid_post"]]
        ),
        **{name: stacked([held[f"blocks.{i}.hook_{name}"] for i in (0, 1)]) for name in ("mlp_out", "attn_out")},
    }


def lists(folder: Path, column: str) -> np.ndarray:
    """A column of nested lists, token by token."""
    rows = [
        row
        for file in sorted(folder.glob("*.arrow"))
        for row in pa.ipc.open_stream(file).read_all()[column].to_pylist()
    ]
    return np.concatenate([np.asarray(row, dtype=np.float32) for row in rows])


@pytest.mark.parametrize("format", TOOLS)
def test_files_that_the_tools_wrote(small: Lake, format: str) -> None:
    """Bit for bit what the file says to a reader of its own, and what the model computes."""
    name, more, read = TOOLS[format]
    result = small.add_capture(format, FIXTURES / name, "small", **more)
    found = small.dataset("small", result.path.stem)
    for site, values in read(FIXTURES / name).items():
        assert np.array_equal(bits(found[site]), bits(values)), site
    assert found.token_id.values[:5].tolist() == [1, 9, 12, 30, 44]
    report = small.verify(reforward=2)[0]
    assert report.ok and "imported right" in report.reforward, report.problems


def test_the_command_line(
    here: Lake, tmp_path: Path, rows: Rows, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    catalog = tmp_path / "c.yaml"
    catalog.write_text(f"models: {{llama-it: {{path: {here.catalog.models['llama-it'].path}}}}}\n")
    vllm(tmp_path / "x", rows, change=lambda _, x: x[:, 1:])
    place = ("--lake", str(tmp_path / "other"), "--catalog", str(catalog))
    code, out, err = command_line(
        "import", "vllm", str(tmp_path / "x"), "--model", "llama-it", "--boundaries", "1-3", *place
    )
    assert code == 0 and "36 tokens" in out, err
    code, out, _ = command_line("verify", "--reforward", "2", *place)
    assert code == 0 and "2 prompts run again: imported right" in out
    for wrong in ("1-", "3-1", "\u00b2", "0-99999999999"):
        code, _, err = command_line(
            "import", "vllm", str(tmp_path / "x"), "--model", "llama-it", "--boundaries", wrong, *place
        )
        assert code == 2 and err.count("\n") == 1 and "expected numbers such as 1,2,3 or 0-12" in err
