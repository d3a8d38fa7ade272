"""The Jacobian lens: against finite differences, against TransformerLens, resumed, imported, and in tables."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from actlake.capture.model.load import Model, load_model
from actlake.capture.run import jacobian as kernel
from actlake.capture.run.jacobian import JacobianSums, fit
from actlake.lake import Lake
from actlake.queries.probes import jacobian as fitting
from actlake.store.artifacts.probes import list_probes, read_probes, training_file
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import find_capture
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout
from test_observed_rows import texts

SKIP = 3
FAMILIES = ["llama", "qwen3", "gemma3", "olmo2", "gpt_neox", "granite"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Layout:
    """A lake with 24 prompts of the tiny pair."""
    root = tmp_path_factory.mktemp("base") / "lake"
    (root.parent / "catalog.yaml").write_text(
        f"pairs: {{llama: {{pt: {{path: {llama.pt.path}}}, it: {{path: {llama.it.path}}}}}}}\n", encoding="utf-8"
    )
    return tiny.capture(root, llama, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(24)), batch=16)


@pytest.fixture
def lake(base: Layout, tmp_path: Path) -> Lake:
    """A copy of it to fit in."""
    shutil.copytree(base.root, tmp_path / "lake")
    return Lake(tmp_path / "lake", catalog=base.root.parent / "catalog.yaml")


def fitted(lake: Lake, model: str = "llama-it", **options: Any) -> tuple[Path, dict[str, Any]]:
    ((path, record),) = lake.fit_lens(model, "jacobian", **{"skip": SKIP, **options}).items()
    return path, record


def sequences(*lengths: int, vocab: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(5, vocab, length) for length in lengths]


def mean_jacobian(model: Model, rows: list[np.ndarray], skip: int = SKIP, tokens: int = 64) -> np.ndarray:
    """The mean J [L, d, d] of some sequences."""
    sums = JacobianSums(1, model.n_layers, model.head.d_model, model.dtype, "cpu")
    fit(model, sorted(rows, key=len), np.zeros(len(rows), np.int64), skip, sums, tokens)
    return (sums.total[0] / len(rows)).numpy()


# --- the estimator -----------------------------------------------------------------------------------------------------


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and rotations that transformers computes in float32 whatever the model's dtype stay in float64."""
    to, single = torch.Tensor.to, torch.Tensor.float

    def kept(self: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if self.dtype == torch.float64:
            given = tuple(torch.float64 if one is torch.float32 else one for one in given)
            more |= {"dtype": torch.float64} if more.get("dtype") is torch.float32 else {}
        return to(self, *given, **more)

    monkeypatch.setattr(torch.Tensor, "to", kept)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))


@torch.no_grad()
def last(model: Model, ids: np.ndarray, boundary: int, step: torch.Tensor, valid: slice) -> torch.Tensor:
    """Sum of the last residuals [d] over tokens, with `step` [T, d] added to what passes a boundary."""
    from actlake.capture.model.hooks import at_boundary

    held: list[torch.Tensor] = []
    with (
        at_boundary(model.parts.blocks, boundary, 0, lambda value: value + step),
        at_boundary(model.parts.blocks, model.n_layers, 0, held.append),
    ):
        model.hf(input_ids=torch.from_numpy(ids[None]), use_cache=False)
    return held[0][0, valid].sum(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_j_is_that_of_central_differences(family: str, tmp_path: Path, double: None) -> None:
    folder = tiny.make_model(tmp_path / family, family, dtype=torch.float64)
    model = load_model(tiny.spec(folder, "one-pt"), dtype="float64")
    (ids,) = sequences(9)
    valid, width = slice(SKIP, len(ids) - 1), model.head.d_model
    found = mean_jacobian(model, [ids])
    count = len(ids) - 1 - SKIP
    for boundary in range(model.n_layers):
        for unit in (0, width // 2, width - 1):
            each = []
            for token in range(valid.start, valid.stop):
                step = torch.zeros(len(ids), width, dtype=torch.float64)
                step[token, unit] = 1e-5
                each.append((last(model, ids, boundary, step, valid) - last(model, ids, boundary, -step, valid)) / 2e-5)
            expected = (sum(each) / count).numpy()
            apart = np.linalg.norm(found[boundary, :, unit] - expected) / np.linalg.norm(expected)
            assert apart < 1e-6, (boundary, unit, apart)


def test_batches_and_their_padding_change_nothing(llama: PairSpec) -> None:
    model = load_model(llama.it, dtype="float32")
    rows = sequences(6, 9, 9, 14, 20)
    together, alone = (mean_jacobian(model, rows, tokens=tokens) for tokens in (1000, 1))
    each = np.mean([mean_jacobian(model, [row]) for row in rows], axis=0)
    assert np.allclose(together, alone, atol=1e-6) and np.allclose(each, alone, atol=1e-6)


def test_the_error_is_the_spread_over_the_root_of_the_prompts(llama: PairSpec) -> None:
    model, rows, fold = load_model(llama.it, dtype="float32"), sequences(8, 9, 10, 11, 12, 13), np.array([0, 1] * 3)
    sums = JacobianSums(2, model.n_layers, model.head.d_model, model.dtype, "cpu")
    fit(model, rows, fold, SKIP, sums, 30)
    weight, bias, error = sums.lenses(centred=True)
    each = np.stack([mean_jacobian(model, [row]) for row in rows])
    for k in range(2):
        mine = each[fold != k]
        assert np.allclose(weight[k], mine.mean(0), atol=1e-6)
        spread = np.sqrt(np.square(mine - mine.mean(0)).sum((0, 2, 3)) / (len(mine) - 1))
        expected = spread / np.sqrt(len(mine)) / np.sqrt(np.square(mine.mean(0)).sum((1, 2)))
        assert np.allclose(error[k], expected, rtol=1e-3)
        means = sums.mean[1 - k].numpy() / len(mine)
        mapped = np.einsum("led,ld->le", weight[k], means[:-1]) + bias[k]
        assert np.allclose(mapped, means[-1], atol=1e-5)
    assert not sums.lenses()[1].any()


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("saves", [1, 32, 45])
def test_a_fit_that_was_killed_goes_on_to_the_same_bytes(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    whole = fitted(lake, count=8, batch=64)[0]
    expected = tiny.tree(whole)
    shutil.rmtree(whole)
    monkeypatch.setattr(kernel, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(kernel, "SAVE_SHARE", 0)
    save, row, saved, rows = fitting.save_training, kernel._row, list[Any](), list[int]()

    def kept(*given: Any) -> None:
        save(*given)
        saved.append(given)
        if len(saved) == saves:
            raise Killed

    monkeypatch.setattr(fitting, "save_training", kept)
    monkeypatch.setattr(kernel, "_row", lambda *given: rows.append(given[4]) or row(*given))
    with pytest.raises(Killed):
        fitted(lake, count=8, batch=64)
    assert training_file(whole).exists() and not whole.exists() and len(rows) == saves
    assert fitted(lake, count=8, batch=64)[0] == whole and tiny.tree(whole) == expected
    assert not training_file(whole).exists() and rows[saves] == saves % 32 and len(rows) % 32 == 0


# --- in a lake -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_says_how_good_it_is(lake: Lake) -> None:
    path, record = fitted(lake, count=12)
    weight, bias, again = read_probes(path)
    assert again == record and path.stem.startswith("jacobian-native-") and weight.shape == (2, 3, 32, 32)
    assert not bias.any() and sum(record["prompts"]) == 12 and record["recipe"]["prompts"] == 12
    stream = read_stream(lake.layout, find_capture(lake.layout, "llama-it", "native").stem)
    assert sum(record["trained_tokens"]) <= stream.n_tokens
    halves = [np.linalg.norm(a - b) / np.linalg.norm((a + b) / 2) for a, b in zip(*weight, strict=True)]
    assert np.allclose(record["halves"], halves, rtol=1e-5)
    errors = np.array(record["error"])
    assert errors.shape == (2, 3) and (errors > 0).all() and (errors[:, 0] > errors[:, 2]).all()
    for name in ("kl_raw", "kl_jacobian", "top1_raw", "top1_jacobian"):
        assert len(record[name]) == 3 and np.isfinite(record[name]).all()
    (line,) = lake.lenses().to_dict("records")
    assert line["name"] == path.stem and line["error"] == errors.max() and line["recipe"] == "jacobian"
    assert line["kl_jacobian"] == pytest.approx(np.mean(record["kl_jacobian"])) and np.isnan(line["kl_tuned"])
    assert torch.equal(lake.lenses("llama-it", "jacobian")[1].weight, torch.from_numpy(weight[1]))
    assert all(report.ok for report in lake.verify())


def test_the_command_says_what_it_takes_and_what_came_of_it(
    lake: Lake, command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "speed_of", lambda device: 1e6)
    words = ["fit-lens", "llama/it", "--kind", "jacobian", "--skip", "3", "--count", "8", "--centred"]
    code, said, error = command_line(*words, "--lake", str(lake.layout.root), "--catalog", str(lake._catalog))
    line = next(line for line in " ".join(error.split()).split("; ") if "fitting" in line)
    assert code == 0 and line.startswith("fitting the Jacobian lens of llama-it on cpu in ")
    assert "of memory, 8 prompts, " in line and " tokens, 24.6 KB, about " in line, line
    ((path, record),) = list_probes(lake.layout, "llama-it", "jacobian")
    assert str(path) in said and read_probes(path)[1].any()
    told = {" ".join(line.split()[:-3]): line.split()[-3:] for line in said.splitlines()}
    assert told["difference of two halves of the prompts"] == [f"{value:.4g}" for value in record["halves"]]
    assert told["share of the final top token, jacobian"] == [f"{value:.4g}" for value in record["top1_jacobian"]]
    worst = max(record["error"][0])
    assert f"at the worst layer 10% from {int(np.ceil(record['prompts'][0] * (worst / 0.1) ** 2)):,} prompts on" in said
    with pytest.raises(LakeError, match="model llama-pt: no weights found"):
        Lake(lake.layout.root).fit_lens("llama-pt", "jacobian", skip=SKIP)


def test_a_fold_is_the_mean_over_the_prompts_of_the_other(lake: Lake, llama: PairSpec) -> None:
    from actlake.analyze.tuned.folds import fold_of

    path, _ = fitted(lake, count=100, length=20)
    stream = read_stream(lake.layout, find_capture(lake.layout, "llama-it", "native").stem)
    model, weight = load_model(llama.it, dtype="float32"), read_probes(path)[0]
    rows = {p: row[:20] for p, row in enumerate(stream.tokens) if min(len(row), 20) > SKIP + 1}
    fold = fold_of(stream.prompt_ids, 2)
    for k in range(2):
        mine = mean_jacobian(model, [row for p, row in rows.items() if fold[p] != k])
        assert np.allclose(weight[k], mine, atol=1e-5)
    one = read_probes(fitted(lake, count=100, length=20, folds=1)[0])[0]
    assert np.allclose(one[0], mean_jacobian(model, list(rows.values())), atol=1e-5)


@torch.no_grad()
def test_rows_of_the_table_are_the_models_own_head_on_j_times_the_residual(lake: Lake, llama: PairSpec) -> None:
    from actlake.analyze.tuned.folds import fold_of
    from test_observed_rows import Forward

    path, _ = fitted(lake)
    sql = "SELECT * FROM lens WHERE lens = 'jacobian' AND model = 'llama-it' ORDER BY prompt, position, layer"
    rows = lake.sql(sql).df()
    weight, forward = read_probes(path)[0], Forward(llama.it.path)
    stream = read_stream(lake.layout, find_capture(lake.layout, "llama-it", "native").stem)
    for p, (name, tokens) in enumerate(zip(stream.prompt_ids, stream.tokens, strict=True)):
        resid = torch.from_numpy(forward(tokens)["resid"])  # of the blocks
        final = forward.hf.lm_head(forward.hf.model.norm(resid[:, -1])).log_softmax(-1)
        mine = torch.from_numpy(weight[fold_of([name], 2)[0]]).double()
        part = rows[rows["prompt"] == p]
        for layer in (0, 1):
            mapped = resid[:, layer] @ mine[layer + 1].T
            logp = forward.hf.lm_head(forward.hf.model.norm(mapped)).log_softmax(-1)
            here = part[part["layer"] == layer]
            kl = (final.exp() * (final - logp)).sum(-1)
            assert np.allclose(here["kl_final_layer"], kl, atol=1e-4)
            assert np.array_equal(here["top1"], logp.argmax(-1))
    assert (rows[rows["layer"] == 2]["kl_final_layer"] < 1e-6).all()


def test_rows_show_it_where_it_was_fitted_and_are_else_what_they_were(lake: Lake) -> None:
    rows = {
        "L2": "cg_jacobian",
        "0G": "commit_top1_jacobian_median",
        "exp11": "dkl_final20_late_jacobian",
        "exp16": "js_jacobian",
    }

    def answers() -> dict[str, Any]:
        return {row: lake.run(row, "llama", probes=False) for row in rows}

    without = answers()
    assert not any("acobian" in answer.sentence for answer in without.values())
    fitted(lake, "llama-it")
    half = answers()
    for row in ("L2", "0G"):
        assert (
            "(without lens(jacobian): no Jacobian lens of llama-pt is here; `actlake fit-lens llama-pt"
            in half[row].sentence
        )
    assert "(without pair_lenses(jacobian): no Jacobian lens of llama-pt is here" in half["exp16"].sentence
    assert half["exp11"].sentence == without["exp11"].sentence  # it is read by the PT's lens alone
    fitted(lake, "llama-pt")
    for row, answer in answers().items():
        before, now = without[row].table, answer.table
        assert rows[row] in set(now["measure"]), row
        assert ("Jacobian lens" in answer.sentence) == (row != "0G")  # whose sentence is about longer answers
        old = now[~now["measure"].str.contains("jacobian")]
        old = old[old["lens"] != "jacobian"] if "lens" in old else old
        keys = [name for name in before if name not in ("estimate", "low", "high", "n", "method")]
        both = before.merge(old, on=keys, suffixes=("", "_now"), validate="one_to_one")
        assert len(both) == len(before) == len(old), row
        for name in ("estimate", "low", "high"):
            assert np.allclose(both[name].astype(float), both[f"{name}_now"].astype(float), atol=1e-9, equal_nan=True)
        answer.figure()


def test_two_models_are_compared_each_through_its_own(lake: Lake) -> None:
    from actlake.analyze.lens import pair_lens
    from actlake.analyze.tuned.folds import fold_of

    for model in ("llama-pt", "llama-it"):
        fitted(lake, model)
    sql = "SELECT * FROM pair_lenses WHERE stream LIKE 'native%' AND stream_pt LIKE 'teacher%' AND lens = 'jacobian'"
    rows = lake.sql(f"{sql} ORDER BY prompt, step, layer").df()
    assert set(rows["history"]) == {"shared"} and set(rows["lens"]) == {"jacobian"}
    read = []
    for model, stream in (("llama-pt", "teacher"), ("llama-it", "native")):
        data, folds = lake.dataset(model, stream), lake.lenses(model, "jacobian")
        fold = fold_of(data.prompt_id.values, 2)[data.prompt.values]
        resid = np.stack(
            [folds[k](torch.from_numpy(h[None]))[0].numpy() for k, h in zip(fold, data.resid.values, strict=True)]
        )
        read.append(resid[data.step.values >= 0])
    expected = pair_lens(lake.head("llama-pt"), lake.head("llama-it"), *read, mask=np.ones(300, bool))
    assert np.allclose(rows["js"].to_numpy().reshape(expected["js"].shape), expected["js"], atol=1e-3)
    with pytest.raises(LakeError, match=r"pair_lenses\(raw\): the raw lens is in pair_lens"):
        from actlake.queries.makers import ensure

        streams = {"pt": rows["stream_pt"][0], "it": rows["stream"][0]}
        ensure(lake.layout, [("pair_lenses", "raw", tiny.scope("llama", streams, "teacher"))])


def test_a_prompt_is_shown_through_it(lake: Lake) -> None:
    fitted(lake)
    with pytest.raises(LakeError, match="no jacobian lens of llama-pt here"):
        lake.prompt("p3").lens("llama", "native", lens="jacobian")
    fitted(lake, "llama-pt")
    seen = Lake(lake.layout.root, catalog=lake._catalog).prompt("p3").lens("llama", "native", lens="jacobian").grids
    for grid, model in zip(seen, ("llama-pt", "llama-it"), strict=True):
        assert model in grid.name
        where = f"lens = 'jacobian' AND model = '{model}' AND prompt_id = 'p3' AND step >= 0 AND stream LIKE 'native%'"
        rows = lake.sql(f"SELECT kl_final_layer FROM lens WHERE {where} ORDER BY layer, step").df()
        assert np.allclose(grid.values.ravel(), rows["kl_final_layer"], atol=1e-4)


def test_j_readout_and_file_are_those_of_transformer_lens(lake: Lake, llama: PairSpec, tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformer_lens.tools.analysis.jacobian_lens", exc_type=ImportError).JacobianLens
    from transformer_lens.model_bridge import TransformerBridge

    path, record = fitted(lake, folds=1)
    stream = read_stream(lake.layout, find_capture(lake.layout, "llama-it", "native").stem)
    ids = {str(p): torch.from_numpy(row[:128].astype(np.int64))[None] for p, row in enumerate(stream.tokens)}
    bridge = TransformerBridge.boot_transformers(str(llama.it.path), device="cpu", dtype=torch.float32)
    bridge.to_tokens = lambda text, *_, **__: ids[text]
    used = [name for name, row in ids.items() if row.shape[1] > SKIP + 1]
    found = theirs.fit(bridge, used, corpus="tiny", skip_first_positions=SKIP, show_progress=False)
    assert record["prompts"] == [len(used)] == [found.n_prompts] and found.source_layers == [0, 1]
    weight = read_probes(path)[0][0]
    for layer, matrix in found.jacobians.items():
        mine = torch.from_numpy(weight[layer + 1])
        assert (matrix - mine).norm() < 1e-4 * mine.norm()
    rows = lake.sql(
        "SELECT prompt, layer, position, top1 FROM lens WHERE lens = 'jacobian' AND model = 'llama-it'"
    ).df()
    for name in used[:4]:
        read = found.readout(bridge, ids[name], top_k=1)
        for layer in (0, 1, 2):
            mine = rows[(rows["prompt"] == int(name)) & (rows["layer"] == layer)].sort_values("position")["top1"]
            assert np.array_equal(read.lens_topk_indices[layer][:, 0], mine), (name, layer)
    found.save(str(file := tmp_path / "theirs.pt"), dtype=torch.float32)
    again, _ = lake.import_lens(file, "llama-it")
    assert np.allclose(read_probes(again)[0][0, 1:], weight[1:], atol=1e-5)


def official(lake: Lake, path: Path, file: Path, **changed: Any) -> Path:
    """A lens of the lake in the published format: float16, no map of the embeddings, block l for boundary l + 1."""
    weight = torch.from_numpy(read_probes(path)[0][0]).half()
    layers = range(len(weight) - 1)
    found = {
        "J": {layer: weight[layer + 1] for layer in layers},
        "n_prompts": 7,
        "source_layers": list(layers),
        "d_model": weight.shape[-1],
        "metadata": {"model": "elsewhere/tiny"},
    }
    torch.save({key: value for key, value in (found | changed).items() if value is not None}, file)
    return file


def test_a_published_file_gives_what_the_fit_gives(
    lake: Lake, tmp_path: Path, command_line: Callable[..., Any]
) -> None:
    one, _ = fitted(lake, folds=1)
    sql = "SELECT * EXCLUDE (lens) FROM lens WHERE lens = 'jacobian' AND model = 'llama-it' ORDER BY token, layer"
    mine = lake.sql(sql).df()
    file = official(lake, one, tmp_path / "theirs.pt")
    catalog = ["--lake", str(lake.layout.root), "--catalog", str(lake._catalog)]
    shutil.rmtree(one)
    code, said, _ = command_line("import-lens", str(file), "--model", "llama/it", *catalog)
    assert code == 0 and "a Jacobian lens, layers -1 to 1" in said and "7 prompts" in said
    ((path, record),) = list_probes(lake.layout, "llama-it", "jacobian")
    assert path.stem.startswith("jacobian-imported-") and record["prompts"] == [7]
    assert record["error"] == [[None] * 3] and len(record["kl_jacobian"]) == 3
    theirs = Lake(lake.layout.root, catalog=lake._catalog).sql(sql).df()
    here = mine["layer"] >= 0
    assert np.allclose(mine[here]["kl_final_layer"], theirs[here]["kl_final_layer"], atol=2e-3)
    assert (mine[here]["top1"] == theirs[here]["top1"]).mean() > 0.99
    raw = lake.sql(sql.replace("'jacobian'", "'raw'")).df()
    embedded = raw["layer"] < 0  # there is no map of these
    assert np.allclose(raw[embedded]["kl_final_layer"], theirs[embedded]["kl_final_layer"], atol=1e-6)
    assert lake.import_lens(file, "llama/it")[0] == path  # once


BAD = {
    "no tensors": (lambda lake, one, file: file.write_bytes(b"PK nonsense"), "can't be read as tensors alone"),
    "a pickle": (lambda lake, one, file: torch.save(Killed(), file), "can't be read as tensors alone"),
    "a list": (
        lambda lake, one, file: torch.save([1], file),
        "no Jacobian lens: expected a dictionary with J, n_prompts",
    ),
    "no J": (lambda lake, one, file: official(lake, one, file, J=None), "it lacks J"),
    "no count": (
        lambda lake, one, file: official(lake, one, file, n_prompts="7"),
        "n_prompts: expected a whole number",
    ),
    "width": (
        lambda lake, one, file: official(lake, one, file, d_model=48),
        "d_model: expected 32, the width of llama-it",
    ),
    "layers": (
        lambda lake, one, file: official(lake, one, file, source_layers=[0, 1, 2]),
        "its layers: expected 0 to 1",
    ),
    "few": (lambda lake, one, file: official(lake, one, file, J={0: torch.eye(32)}), "its layers: expected 0 to 1"),
    "names": (lambda lake, one, file: official(lake, one, file, J={"a": 1}), "J: expected a dictionary from layers"),
    "shape": (
        lambda lake, one, file: official(lake, one, file, J={0: torch.eye(32), 1: torch.eye(31)}),
        "J of layer 1: expected finite floats \\[32, 32\\], found \\[31, 31\\]",
    ),
    "not finite": (
        lambda lake, one, file: official(lake, one, file, J={0: torch.eye(32), 1: torch.eye(32) * torch.nan}),
        "J of layer 1: expected finite floats",
    ),
    "of another": (
        lambda lake, one, file: official(lake, one, file, J={0: torch.eye(32), 1: -torch.eye(32)}),
        "a lens of another checkpoint than llama-it: expected the final top token at",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_refused_in_a_line(
    lake: Lake, tmp_path: Path, command_line: Callable[..., Any], name: str
) -> None:
    make, match = BAD[name]
    one, _ = fitted(lake, folds=1, count=4)
    make(lake, one, file := tmp_path / "bad.pt")
    with pytest.raises(LakeError, match=match):
        lake.import_lens(file, "llama/it")
    code, said, error = command_line("import-lens", str(file), "--model", "llama/it", "--lake", str(lake.layout.root))
    assert code == 2 and not said and error.count("\n") == 1 and str(file) in error
    assert [path for path, _ in list_probes(lake.layout, kind="*")] == [one]


def test_a_lens_of_another_hub_model_is_refused(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actlake.queries.probes import imported

    one, _ = fitted(lake, folds=1, count=4)
    file, read = official(lake, one, tmp_path / "theirs.pt"), imported.read_model
    monkeypatch.setattr(imported, "read_model", lambda *given: read(*given) | {"files": {}, "id": "org/Other"})
    with pytest.raises(LakeError, match="a lens of another model: expected org/Other, found elsewhere/tiny"):
        lake.import_lens(file, "llama/it")
    monkeypatch.setattr(
        imported, "read_model", lambda *given: read(*given) | {"files": {}, "id": "org/Tiny", "revision": "b"}
    )
    named = official(lake, one, tmp_path / "more.pt", metadata={"model_name": "org/tiny", "model_revision": "a"})
    with pytest.raises(LakeError, match="a lens of another revision of the model: expected b, found a"):
        lake.import_lens(named, "llama/it")
    named = official(lake, one, tmp_path / "more.pt", metadata={"target_layer": 1})
    with pytest.raises(LakeError, match="target_layer: expected 2, the last of the model, found 1"):
        lake.import_lens(named, "llama/it")
    assert lake.import_lens(file, "llama/it")[0].exists()


def test_what_can_not_be_fitted_is_said_in_a_line(lake: Lake) -> None:
    for options, match in (
        (
            {"skip": 300, "length": 400},
            "0 of 24 prompts are longer than 301 tokens, 0 of them asked for: too few for a",
        ),
        ({"skip": 20, "length": 20}, "tokens that are left out: expected 0 to 18, of 20 that are read, found 20"),
        ({"tokens": 5}, "tokens is no setting of the jacobian lens; it has count, skip, length, centred"),
        ({"recipe": "adam"}, "recipe is no setting of the jacobian lens"),
        ({"folds": 0}, "folds: expected 1 or more, found 0"),
        ({"seed": -1}, "seed: expected 0 or more, found -1"),
        ({"batch": 0}, "batch: expected 1 or more, found 0"),
        ({"count": -5}, "count: expected 2 or more, found -5"),
    ):
        with pytest.raises(LakeError, match=match):
            fitted(lake, **options)
    with pytest.raises(LakeError, match="skip is no setting of the tuned lens; it has recipe, tokens, scale"):
        lake.fit_lens("llama-it", skip=2)
    with pytest.raises(LakeError, match="lens kind: expected tuned or jacobian, found logit"):
        lake.fit_lens("llama-it", "logit")
    with pytest.raises(
        LakeError, match="no Jacobian lens of llama-it is here; `actlake fit-lens llama-it --kind jacobian`"
    ):
        lake.sql("SELECT * FROM lens WHERE lens = 'jacobian' AND model = 'llama-it'")


def test_damage_is_found(lake: Lake) -> None:
    path, _ = fitted(lake, count=12)
    record = path / "record.json"
    good = record.read_bytes()
    record.write_bytes(good.replace(b'"prompts": [', b'"prompts": [9, '))
    with pytest.raises(CorruptError):
        lake.lenses()
    record.write_bytes(good)
    chunk = next((path / "weight").rglob("c/0/1/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptError, match=chunk.name):
        lake.lenses("llama-it", "jacobian")
    assert any(report.capture == "lenses" and not report.ok for report in lake.verify())


def test_it_moves_with_its_lake_once(lake: Lake, tmp_path: Path) -> None:
    path, _ = fitted(lake, count=8)
    lake.push(str(tmp_path / "copy"))
    copy = Lake(tmp_path / "copy")
    assert tiny.tree(copy.layout.lenses("llama-it") / path.name) == tiny.tree(path)
    assert copy.lenses().drop(columns="path").equals(lake.lenses().drop(columns="path"))
    lake.push(str(tmp_path / "copy"))  # nothing is left to do, and nothing refused
