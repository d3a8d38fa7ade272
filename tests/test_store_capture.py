"""Captures on disk: what is written is what is read, in any order and shape, and a sealed one is byte for byte the same."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
import zarr
from actlake.capture.model.hooks import ActivationSink, Batch, buffer
from actlake.capture.model.hooks import whole as parts_of
from actlake.queries.engine.blocks import BlockReader
from actlake.store.artifacts.streams import write_stream
from actlake.store.captures.allocate import Template, create_capture
from actlake.store.captures.manifest import read_manifest, seal
from actlake.store.captures.reader import Capture, find_capture, list_captures, open_capture
from actlake.store.captures.verify import verify
from actlake.store.captures.writer import missing_shards
from actlake.store.core.errors import LakeError
from actlake.store.core.schema import (
    CHUNK_TOKENS,
    SHARD_RAW_LIMIT,
    SHARD_TOKENS,
    SITES,
    VARIABLES,
    Site,
    Variable,
    chunk_tokens,
    shard_tokens,
)
from actlake.store.format.partial import cut_shard
from actlake.store.format.paths import Layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALL = ("resid", "mlp_out", "logits", "topk_id", "topk_logit", "logsumexp")


def made_template(lengths=(5, 1, 9, 4), layers=2, d=4, vocab=7, k=3, shard=4, names=ALL, **provenance) -> Template:
    rows = [(f"p{p}", "C", [1], list(range(2, length + 1))) for p, length in enumerate(lengths)]
    sizes = {
        "resid": (layers + 1, d),
        "mlp_out": (layers, d),
        "logits": (vocab,),
        "topk_id": (k,),
        "topk_logit": (k,),
        "logsumexp": (),
    }
    return Template(
        stream=tiny.synthetic_stream(rows),
        sizes={name: sizes[name] for name in names},
        boundaries=tuple(range(layers + 1)),
        layers=tuple(range(layers)),
        source_dtype="float32",
        provenance=tiny.MADE | provenance,
        shard=shard,
    )


def sealed(layout: Layout, template: Template, order=None):
    write_stream(layout, template.stream)
    path = layout.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template, order)
    seal(path)
    return path


def whole(template: Template) -> dict[str, np.ndarray]:
    rows = [tiny.blocks_of(template, shard) for shard in range(template.n_shards)]
    return {name: np.concatenate([row[name] for row in rows]) for name in template.sizes}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_capture_comes_back_in_any_slice(tmp_path_factory, data):
    template = made_template(
        lengths=data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)),
        layers=data.draw(st.integers(1, 3)),
        d=data.draw(st.sampled_from([1, 3, 8])),
        shard=data.draw(st.sampled_from([1, 2, 5, 16, 64])),
        names=data.draw(st.sampled_from([ALL, ("resid",), ("mlp_out", "logsumexp")])),
    )
    order = data.draw(st.permutations(range(template.n_shards)))
    layout = Layout.open(tmp_path_factory.mktemp("any") / "lake", create=True)
    path = sealed(layout, template, order)
    expected, capture, dataset = whole(template), Capture(path), open_capture(path)
    n = template.stream.n_tokens
    for name, values in expected.items():
        assert np.array_equal(capture.array(name)[:], values)
        low, high = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
        key = (slice(low, high), *(data.draw(st.integers(0, size - 1)) for size in values.shape[1:-1]))
        assert np.array_equal(capture.array(name)[key], values[key])
        assert np.array_equal(dataset[name][key].values, values[key])
        assert dataset[name].dtype == VARIABLES[name].dtype and dataset[name].dims == VARIABLES[name].dims
    report = verify(layout, path)
    assert report.ok, report.problems
    assert report.files == len(tiny.tree(path)) - 1


def test_a_site_may_have_any_axes_after_the_layer(tmp_path, monkeypatch):
    """One per head [token, layer, head, d_head] is written, read in any slice, cut to layers and swept like the others."""
    site = Site("heads", ("layer", "head", "d_head"), "output of each head", "attention")
    monkeypatch.setitem(SITES, site.name, site)
    monkeypatch.setitem(VARIABLES, site.name, Variable(site.name, ("token", *site.axes), "float32", site.meaning))
    shape = site.shape({"layer": 3, "head": 2, "d_head": 5})
    template = replace(made_template(layers=3, names=("resid",)), sizes={"resid": (4, 4), "heads": shape})
    path = sealed(Layout.open(tmp_path / "lake", create=True), template)
    values, capture = whole(template)["heads"], Capture(path)
    array = capture.array("heads")
    assert np.array_equal(array[:], values) and np.array_equal(array[3:9, 1], values[3:9, 1])
    for by in ("layer", "token"):
        dataset = open_capture(path, by=by)
        assert np.array_equal(dataset["heads"][2:7, :, 1].values, values[2:7, :, 1])
        assert dataset["heads"].dims == ("token", *site.axes)
    feed = BlockReader(capture, ["heads"])
    blocks = [feed.take(range(first, first + 2))["heads"] for first in (0, 2)]
    assert np.array_equal(np.concatenate(blocks), values)
    file = path / "heads" / "c" / "0" / "0" / "0" / "0"
    data = file.read_bytes()
    (file).write_bytes(b"".join(cut_shard(array.array, lambda a, b: data[a:b], len(data), [1], "heads")))
    cut = zarr.open_array(path / "heads", mode="r")[: template.shard_tokens]
    assert np.array_equal(cut[:, 1], values[: template.shard_tokens, 1]) and np.isnan(cut[:, [0, 2]]).all()


def test_buffers_of_any_axes():
    """What hooks fill is layer by layer in memory, whatever follows the layer."""
    sizes = {"mlp_out": (2, 8), "attn_out": (2, 2, 4)}
    made = {name: buffer(name, size, 3, torch.float32) for name, size in sizes.items()}
    assert {name: tuple(value.shape) for name, value in made.items()} == {
        "mlp_out": (3, 2, 8),
        "attn_out": (3, 2, 2, 4),
    }
    batch = Batch([np.array([1, 2, 3])], 0, torch.device("cpu"))
    sink = ActivationSink(batch, parts_of(batch, made), side=False)
    value = torch.arange(24.0).reshape(1, 3, 8)
    for name in made:
        sink.padded(name, 1, value)
        assert torch.equal(made[name][:, 1].reshape(3, 8), value[0])


def test_order_of_writing_does_not_matter(tmp_path):
    template = made_template()
    trees = []
    for turn, order in enumerate((range(5), reversed(range(5)), (2, 0, 4, 1, 3))):
        layout = Layout.open(tmp_path / str(turn), create=True)
        trees.append(tiny.tree(sealed(layout, template, order)))
    assert trees[0] == trees[1] == trees[2] and len(trees[0]) > 30


def test_sealing_refuses_missing_rows(lake):
    template = made_template()
    path = lake.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template, order=(0, 3))
    before = tiny.tree(path)
    with pytest.raises(LakeError, match=r"3 of 5 shard rows are missing \(first: 1\)"):
        seal(path)
    assert tiny.tree(path) == before and read_manifest(path) is None
    assert missing_shards(path, template.n_shards) == [1, 2, 4]


def test_what_is_not_written_reads_as_nan(lake):
    template = made_template()
    path = lake.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template, order=(1,))
    capture = Capture(path, allow_unsealed=True)
    written = np.zeros(template.stream.n_tokens, bool)
    written[4:8] = True
    for name in ALL:
        values = capture.array(name)[:].reshape(len(written), -1)
        assert not np.isnan(values[written]).any() and np.array_equal(
            values[written], whole(template)[name][4:8].reshape(4, -1)
        )
        # Ids have no NaN: -1 is no token's id.
        assert (values[~written] == -1).all() if name == "topk_id" else np.isnan(values[~written]).all()
    assert np.isnan(open_capture(path, allow_unsealed=True).resid.values[~written]).all()
    with pytest.raises(LakeError, match="not sealed"):
        open_capture(path)


def test_half_written_leftovers_do_not_reach_the_seal(lake, tmp_path):
    """What a kill leaves: temporary files of zarr and of the atomic writer, and a torn shard."""
    template = made_template()
    clean = tiny.tree(sealed(Layout.open(tmp_path / "clean", create=True), template))
    write_stream(lake, template.stream)
    path = lake.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template, order=(0, 1))
    for name in ("resid/c/2/0/0.0123abcd.partial", "zarr.0123abcd.partial", ".manifest.json.7.tmp", "resid/c/2/0/0"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"torn")
    tiny.write_capture(path, template, order=(2, 3, 4))
    seal(path)
    assert tiny.tree(path) == clean


def test_manifest_says_what_is_there(lake):
    template = made_template(note="x")
    path = sealed(lake, template)
    manifest, files = read_manifest(path), tiny.tree(path)
    assert set(manifest["files"]) == set(files) - {"manifest.json"}
    assert all(entry["bytes"] == len(files[name]) for name, entry in manifest["files"].items())
    assert manifest["bytes"] == sum(map(len, files.values())) - len(files["manifest.json"])
    assert (manifest["n_tokens"], manifest["n_prompts"], manifest["n_shards"], manifest["shard_tokens"]) == (
        19,
        4,
        5,
        4,
    )
    assert manifest["provenance"] == tiny.MADE | {"note": "x"}
    for name, values in whole(template).items():
        assert manifest["variables"][name] == {"min": values.min(), "max": values.max(), "nonfinite": 0}
    row = list_captures(lake).iloc[0]
    assert (row.model, row.prompts, row.tokens, row.sealed) == ("made-pt", 4, 19, True)
    assert row.bytes == manifest["bytes"] and row.path == str(path)


def test_shards_and_chunks_lie_where_the_format_says(lake):
    template = made_template()
    path = sealed(lake, template)
    assert sorted(p.relative_to(path).as_posix() for p in path.glob("resid/c/*/*/*")) == [
        f"resid/c/{s}/0/0" for s in range(5)
    ]
    for name, inner in (("resid", (1, 4)), ("mlp_out", (1, 4)), ("logits", (7,)), ("logsumexp", ())):
        meta = json.loads((path / name / "zarr.json").read_text())
        assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [4, *template.sizes[name]]
        (sharding,) = meta["codecs"]
        assert sharding["configuration"]["chunk_shape"] == [4, *inner]
        names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
        assert names == ["bytes", "blosc", "crc32c"]
        blosc = sharding["configuration"]["codecs"][1]["configuration"]
        assert blosc == {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 4, "blocksize": 1 << 20}
        assert meta["fill_value"] == "NaN" and tuple(meta["dimension_names"]) == VARIABLES[name].dims


@given(st.integers(4, 10**9))
def test_shard_size_rule(bytes_per_token):
    tokens = shard_tokens(bytes_per_token)
    assert 16 <= tokens <= SHARD_TOKENS and tokens & (tokens - 1) == 0
    assert tokens * bytes_per_token <= SHARD_RAW_LIMIT or tokens == 16
    assert tokens == SHARD_TOKENS or 2 * tokens * bytes_per_token > SHARD_RAW_LIMIT


@given(st.sampled_from([1, 16, 48, 256, 1024]), st.integers(4, 1 << 22))
def test_chunk_size_rule(shard, row):
    tokens = chunk_tokens(shard, row)
    assert (
        shard % tokens == 0
        and (tokens >= min(shard, CHUNK_TOKENS))
        and (tokens == shard or tokens * row >= 1 << 20 or tokens * 2 > shard)
    )


def test_another_configuration_is_refused_and_nothing_lost(lake):
    template = made_template()
    path = lake.capture("made-pt", template.stream.name)
    tiny.write_capture(path, template, order=(0, 1))
    before = tiny.tree(path)
    for other, key in (
        (made_template(shard=8), "shard_tokens"),
        (made_template(names=("resid",)), "sizes"),
        (made_template(dtype="x"), "provenance"),
    ):
        with pytest.raises(LakeError, match=rf"another configuration is there \({key} differ\)"):
            create_capture(path, other)
    assert tiny.tree(path) == before
    create_capture(path, template)
    assert tiny.tree(path) == before and missing_shards(path, template.n_shards) == [2, 3, 4]


def test_plain_xarray_opens_a_capture_without_actlake(captured, llama):
    """Another process that never imports actlake: dims, dtypes, coordinates, values, selection and grouping."""
    path = find_capture(captured, "llama-it", "native")
    script = textwrap.dedent(
        """
        import json, sys, warnings
        warnings.simplefilter("error")
        import xarray as xr
        data = xr.open_zarr(sys.argv[1])
        assert not any(name.split(".")[0] == "actlake" for name in sys.modules)
        data.coords["prompt"].load()  # xarray groups by what is in memory
        mean = data.resid.sel(boundary=2).groupby("prompt").mean("token")
        print(json.dumps({
            "dims": {name: list(data[name].dims) for name in data.variables},
            "dtypes": {name: str(data[name].dtype) for name in data.variables},
            "coords": sorted(data.coords),
            "data": sorted(data.data_vars),
            "chunked": data.resid.chunks is not None,
            "group": mean.dims,
            "mean": mean.transpose("prompt", "d_model").values.tolist(),
            "layer": data.mlp_out.sel(layer=1).values.tolist(),
            "token_id": data.token_id.values.tolist(),
            "prompt_id": data.prompt_id.values.tolist(),
            "attrs": {"data": data.attrs["format"], "resid": data.resid.attrs},
        }))
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=path.parent, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    found = json.loads(run.stdout)
    assert found["dims"] == {name: list(VARIABLES[name].dims) for name in found["dims"]}
    assert found["data"] == ["logsumexp", "mlp_out", "resid", "topk_id", "topk_logit"]
    assert found["coords"] == sorted(
        ["boundary", "layer", "token_id", "prompt", "position", "step", "is_special", "segment", "turn", "prompt_id"]
        + ["category", "offset"]
    )
    numeric = {name: VARIABLES[name].dtype for name in found["dims"] if VARIABLES[name].dtype != "string"}
    assert {name: found["dtypes"][name] for name in numeric} == numeric
    capture = Capture(path)
    resid, prompt = capture.array("resid")[:, 2], capture.array("prompt")[:]
    means = [resid[prompt == p].mean(0) for p in range(len(tiny.TEXTS))]
    assert np.allclose(found["mean"], means, atol=1e-6)
    assert np.array_equal(np.asarray(found["layer"], np.float32), capture.array("mlp_out")[:, 1])
    assert found["token_id"] == capture.array("token_id")[:].tolist()
    assert found["prompt_id"] == [row[0] for row in tiny.TEXTS]
    assert found["chunked"] and found["attrs"]["data"] == "actlake"
    assert found["attrs"]["resid"] == {
        "long_name": VARIABLES["resid"].long_name,
        "units": "1",
        "source_dtype": "float32",
    }


def test_our_dataset_is_the_plain_one_and_lazy(captured):
    for variant, stream in (("it", "native"), ("pt", "teacher")):
        path = find_capture(captured, f"llama-{variant}", stream)
        ours, plain = open_capture(path), xr.open_zarr(path)
        xr.testing.assert_identical(ours.compute(), plain.compute())
        assert set(ours.coords) == set(plain.coords)
        assert all(ours[name].chunks is not None for name in ours.data_vars)
        assert ours.resid.sel(boundary=3).mean("token").dims == ("d_model",)
        assert ours.resid.groupby("prompt").mean().sizes["prompt"] == len(tiny.TEXTS)


@pytest.mark.parametrize("earlier", [False, True])
def test_slices_can_be_written_as_netcdf(captured, tmp_path, earlier):
    """netCDF has no null: a model of this machine has no revision, and earlier captures have it as null in their attributes."""
    path = find_capture(captured, "llama-it", "native")
    assert read_manifest(path)["provenance"]["model_revision"] is None
    assert None not in xr.open_zarr(path).attrs.values() and "model_revision" not in open_capture(path).attrs
    if earlier:
        old = tmp_path / "captures" / "made-pt" / "s.zarr"
        template = made_template(model_revision=None)
        create_capture(old, template)
        group = json.loads((old / "zarr.json").read_text())
        group["attributes"]["model_revision"] = None
        (old / "zarr.json").write_text(json.dumps(group))
        path = old
    whole = open_capture(path, allow_unsealed=earlier)
    for name, found in (("whole", whole), ("slice", whole.isel(token=slice(2, 7), boundary=[0, 2]))):
        found.to_netcdf(tmp_path / f"{name}.nc")
        with xr.open_dataset(tmp_path / f"{name}.nc") as again:
            assert np.array_equal(again.resid, found.resid, equal_nan=True) and again.attrs == found.attrs
            assert again.boundary.values.tolist() == found.boundary.values.tolist()
            assert [str(each) for each in again.prompt_id.values] == found.prompt_id.values.tolist()
            assert again.is_special.values.astype(bool).tolist() == found.is_special.values.tolist()


def test_consolidated_metadata_is_that_of_the_arrays(captured):
    path = find_capture(captured, "llama-it", "native")
    consolidated = zarr.open_group(path, mode="r", use_consolidated=True)
    plain = zarr.open_group(path, mode="r", use_consolidated=False)
    assert sorted(consolidated.array_keys()) == sorted(plain.array_keys())
    for name in plain.array_keys():  # as text, since NaN is the fill value
        assert str(consolidated[name].metadata.to_dict()) == str(plain[name].metadata.to_dict())


def test_find_capture_takes_a_unique_prefix(captured):
    path = find_capture(captured, "llama-pt", "native")
    assert find_capture(captured, "llama-pt", path.stem) == find_capture(captured, "llama-pt", path.stem[:-2]) == path
    for stream, problem in (("nothing", "no capture of llama-pt"), ("", "several captures of llama-pt")):
        with pytest.raises(LakeError, match=f"{problem} on a stream that starts with '{stream}'"):
            find_capture(captured, "llama-pt", stream)
    for model in ("llama", "llama/xx", "../pt/pt", "llama-pt/it"):
        with pytest.raises(LakeError):
            find_capture(captured, model, "native")
