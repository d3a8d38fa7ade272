"""Probes trained from a lake and the rows made with them, against Hugging Face's own forward in float64; their keeping."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import xarray as xr
from actlake.analyze import lazy
from actlake.analyze.lens.tuned_lens import Probes, Trainer
from actlake.analyze.tuned.folds import fold_of
from actlake.analyze.tuned.recipes import Adam, Sgd
from actlake.lake import Lake
from actlake.queries.engine import estimate
from actlake.queries.engine.context import Context, Scope
from actlake.queries.makers import ensure
from actlake.queries.probes import choice as choosing
from actlake.queries.probes import training as probe_training
from actlake.queries.probes.choice import choose
from actlake.queries.probes.spec import ProbeSpec
from actlake.queries.probes.training import Training, recipe_of, train_probes
from actlake.store.artifacts.probes import read_facts, read_probes, save_training, training_file, write_probes
from actlake.store.artifacts.streams import read_stream
from actlake.store.captures.reader import Capture, CheckedArray, find_capture
from actlake.store.core import progress
from actlake.store.core.catalog import PairSpec
from actlake.store.core.errors import CorruptError, LakeError
from actlake.store.format.paths import Layout
from actlake.store.format.shards import Grid
from actlake.store.tables.sql import connect
from conftest import USUAL
from test_observed_rows import Forward, texts
from typer.testing import CliRunner

QUICK = choosing.DEFAULT  # that of the tests, see conftest
PAIRS = {"llama": {"pt": "llama-pt", "it": "llama-it"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, llama: PairSpec) -> Layout:
    """30 prompts of the tiny pair, captured natively and on IT's answers; no probes."""
    root = tmp_path_factory.mktemp("base") / "lake"
    return tiny.capture(root, llama, tiny.NATIVE, tiny.TEACHER, prompts=tiny.prompt_set(texts(30)), batch=16)


@pytest.fixture
def lake(base: Layout, tmp_path: Path) -> Lake:
    """A copy of it to train in."""
    shutil.copytree(base.root, tmp_path / "lake")
    return Lake(tmp_path / "lake")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each chunk of an activation was decoded."""
    counts: Counter = Counter()
    pieces = Grid._pieces

    def counted(self, file, spots):
        counts.update((str(file), spot) for spot in spots)
        return pieces(self, file, spots)

    monkeypatch.setattr(Grid, "_pieces", counted)
    return counts


def names(lake: Lake, variant: str, stream: str = "native") -> tuple[str, str]:
    return (f"llama-{variant}", find_capture(lake.layout, f"llama-{variant}", stream).stem)


def native(lake: Lake) -> Scope:
    return tiny.scope("llama", {variant: names(lake, variant)[1] for variant in ("pt", "it")}, "native")


def table(lake: Lake, sql: str) -> pd.DataFrame:
    """What the tables hold, without computing what is missing."""
    return connect(lake.layout, pairs=PAIRS).sql(sql).df()


# --- numbers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reference(forward: Forward, tokens: np.ndarray, probes: Probes | None) -> tuple[np.ndarray, np.ndarray]:
    """KL(p_L || p_l) and top tokens [n, L] of one prompt from the model's own modules in float64."""
    resid = torch.from_numpy(forward(tokens)["resid"])
    final = forward.hf.lm_head(forward.hf.model.norm(resid[:, -1])).log_softmax(-1)
    kl, top1 = [], []
    for layer in range(resid.shape[1]):
        h = resid[:, layer]
        if probes is not None and layer < resid.shape[1] - 1:  # boundary layer + 1 has the probe of that number
            h = h @ probes.weight[layer + 1].double().T + probes.bias[layer + 1].double()
        logp = forward.hf.lm_head(forward.hf.model.norm(h)).log_softmax(-1)
        kl.append((final.exp() * (final - logp)).sum(-1))
        top1.append(logp.argmax(-1))
    return torch.stack(kl, 1).numpy(), torch.stack(top1, 1).numpy()


def test_rows_are_those_of_hugging_face_and_the_probes(lake: Lake, llama: PairSpec) -> None:
    answer = lake.run("tuned", "llama")
    ensure(lake.layout, [("lens", "tuned", native(lake))])
    own = {v: lake.lenses(f"llama-{v}") for v in ("pt", "it")}  # by fold
    rows = table(lake, "SELECT * FROM lens WHERE lens = 'tuned' AND layer >= 0 ORDER BY variant, token, layer")
    evaluated = table(lake, "SELECT * FROM lens_eval WHERE layer >= 0 ORDER BY prompt, layer")
    total = {key: [] for key in ("raw", "own", "other")}
    for variant, other in (("pt", "it"), ("it", "pt")):
        forward = Forward(getattr(llama, variant).path)
        stream = read_stream(lake.layout, names(lake, variant)[1])
        mine = rows[rows["variant"] == variant]
        for p, (prompt, tokens) in enumerate(zip(stream.prompt_ids, stream.tokens, strict=True)):
            fold = fold_of([prompt], 2)[0]
            read = {"raw": None, "own": own[variant][fold], "other": own[other][fold]}
            kl = {kind: reference(forward, tokens, probes) for kind, probes in read.items()}
            part = mine[mine["prompt"] == p]
            assert np.allclose(part["kl_final_layer"].to_numpy().reshape(-1, 3), kl["own"][0], atol=1e-4)
            assert np.array_equal(part["top1"].to_numpy().reshape(-1, 3), kl["own"][1])
            for kind, probe_variant in (("own", variant), ("other", other)):
                here = (evaluated["variant"] == variant) & (evaluated["probe_variant"] == probe_variant)
                line = evaluated[here & (evaluated["prompt"] == p)]
                assert set(line["n"]) == {len(tokens) - 1}
                assert np.allclose(line["kl_tuned"], kl[kind][0][1:].mean(0), atol=1e-4)
                agree = kl[kind][1] == kl[kind][1][:, -1:]
                assert np.allclose(line["top1_tuned"], agree[1:].mean(0), atol=1e-6)
            assert np.allclose(line["kl_raw"], kl["raw"][0][1:].mean(0), atol=1e-4)
            if variant == "it":
                for kind, found in kl.items():
                    total[kind].append(found[0][1:, :-1].sum())
    found = answer.table.set_index("measure")["estimate"]
    raw, mine, theirs = (sum(total[kind]) for kind in ("raw", "own", "other"))
    assert np.isclose(found["reduction_it"], 1 - mine / raw, atol=1e-4) and 0 < found["reduction_it"] < 1
    assert np.isclose(found["transfer_ratio_it"], theirs / mine, atol=1e-4)


def test_manifest_tells_the_held_out_kl_of_raw_and_tuned(lake: Lake) -> None:
    lake.run("tuned", "llama")
    for variant in ("pt", "it"):
        _, _, record = read_probes(choose(Context(lake.layout), names(lake, variant)).path)
        rows = table(lake, f"SELECT * FROM lens_eval WHERE variant = '{variant}' AND probe_variant = '{variant}'")
        for fold in range(2):  # all of a fold's held-out tokens fit the check here
            mine = rows[fold_of(rows["prompt_id"], 2) == fold]
            for kind in ("raw", "tuned"):
                means = mine.assign(kl=mine[f"kl_{kind}"] * mine["n"]).groupby("layer")[["kl", "n"]].sum()
                assert np.allclose(record[f"kl_{kind}"][fold], (means["kl"] / means["n"])[:-1], atol=1e-4)
            assert np.all(np.array(record["kl_tuned"][fold]) < record["kl_raw"][fold])
            assert record["curve"][fold][-1]["step"] == record["steps"][fold] == 40
            assert record["trained_tokens"][fold] == 40 * 32
            assert record["held_out_tokens"][fold] == mine[mine["layer"] == 0]["n"].sum()
        assert (rows[rows["layer"] == 2]["kl_tuned"] < 1e-6).all()


def test_lazy_tuned_lens_is_that_of_the_table(lake: Lake) -> None:
    ensure(lake.layout, [("lens", "tuned", native(lake))])
    capture = lake.dataset("llama-it", "native", by="token")
    sql = "SELECT kl_final_layer FROM lens WHERE lens = 'tuned' AND variant = 'it' ORDER BY token, layer"
    rows = table(lake, sql)["kl_final_layer"].to_numpy().reshape(capture.sizes["token"], -1)
    fold = fold_of(capture.prompt_id.values, 2)[capture.prompt.values]
    for number, probes in enumerate(lake.lenses("llama-it")):
        found = lazy.lens(capture, lake.head("llama-it"), probes=probes)["kl_final_layer"].values
        assert np.allclose(found[fold == number], rows[fold == number], atol=1e-5)
        assert not np.allclose(found[fold != number], rows[fold != number], atol=1e-2)


def test_a_single_fold_reads_everything_and_is_judged_on_what_it_was_not_shown(lake: Lake) -> None:
    for variant in ("pt", "it"):
        train_probes(lake.layout, f"llama-{variant}", "native", QUICK, folds=1)
    ensure(lake.layout, [("lens", "tuned", native(lake)), ("lens_eval", "", native(lake))])
    every_prompt = {f"p{i}" for i in range(30)}
    assert set(table(lake, "SELECT DISTINCT prompt_id FROM lens WHERE lens = 'tuned'")["prompt_id"]) == every_prompt
    unseen = {name for name in every_prompt if fold_of([name], 1)[0] == 0}
    assert set(table(lake, "SELECT DISTINCT prompt_id FROM lens_eval")["prompt_id"]) == unseen and 3 < len(unseen) < 12


def test_churn_of_the_tuned_lens(lake: Lake) -> None:
    ensure(lake.layout, [("churn", kind, native(lake)) for kind in ("raw", "tuned")])
    counts = table(lake, "SELECT lens, count(*) AS n, avg(churn) AS churn FROM churn GROUP BY lens ORDER BY lens")
    assert counts["lens"].tolist() == ["raw", "tuned"] and counts["n"].nunique() == 1
    assert counts["churn"].nunique() == 2
    with pytest.raises(LakeError, match=r"lens\(sharp\): the lens is raw, tuned or jacobian"):
        ensure(lake.layout, [("lens", "sharp", native(lake))])


# --- reading the store -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [384 << 20, 30_000])
def test_all_rows_touch_a_chunk_twice_training_once(lake: Lake, decoded: Counter, monkeypatch, buffer: int) -> None:
    monkeypatch.setattr(probe_training, "BUFFER_BYTES", buffer)
    train_probes(lake.layout, "llama-it", "native", QUICK)
    assert set(decoded.values()) == {1}
    decoded.clear()
    shutil.rmtree(lake.layout.root / "lenses")
    made = ensure(
        lake.layout,
        [
            (table, kind, native(lake))
            for table, kind in (("lens", "raw"), ("lens", "tuned"), ("delta", ""), ("lens_eval", ""))
        ],
    )
    assert len(made) == 2 + 2 + 2 + 2 + 2  # with two sets of probes
    resid = {key: n for key, n in decoded.items() if "/resid/" in key[0]}
    assert max(resid.values()) == 2 and {n for key, n in decoded.items() if key not in resid} == {1}


@pytest.mark.parametrize("folds", [1, 2])
def test_a_capture_larger_than_the_buffer_is_one_pass_over_its_training_rows(lake: Lake, monkeypatch, folds) -> None:
    monkeypatch.setattr(probe_training, "BUFFER_BYTES", 30_000)
    columns = Capture(lake.layout.capture(*names(lake, "it"))).columns()
    fold = fold_of(columns["prompt_id"], folds)
    _, record = train_probes(lake.layout, "llama-it", "native", Adam(batch=16, steps=10_000), folds=folds)
    for k in range(folds):
        usable = (columns["position"] > 0) & (fold != k)
        assert record["trained_tokens"][k] == usable.sum() // 16 * 16
        assert record["held_out_tokens"][k] == 30_000 // 8 // (4 * 4 * 32) // folds
        assert np.mean(record["kl_tuned"][k]) < np.mean(record["kl_raw"][k])


def test_rows_of_a_fold_that_has_ended_do_not_wait(lake: Lake, monkeypatch) -> None:
    monkeypatch.setattr(probe_training, "BUFFER_BYTES", 30_000)
    rows = probe_training._Rows(Capture(lake.layout.capture(*names(lake, "it"))), 0, 2)
    feeds = [probe_training.Shuffle(rows.blocks(fold), rows.capacity[fold], fold) for fold in range(2)]
    assert not any(feed.whole for feed in feeds)
    feeds[0].close()
    while len(feeds[1].take(16)):
        assert not rows._waiting[0]
    assert not len(feeds[0].take(1))


def test_widened_bfloat16_is_held_narrow_and_gives_the_same(tmp_path: Path, monkeypatch) -> None:
    pair = tiny.make_pair(tmp_path / "pair", dtype=torch.bfloat16)
    layout = tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, variants=("it",), prompts=tiny.prompt_set(texts(12)))
    path, record = train_probes(layout, "llama-it", "native", QUICK)
    narrow = read_probes(path)
    shutil.rmtree(layout.root / "lenses")
    kinds = []
    shuffle = probe_training.Shuffle

    def wide(blocks, capacity, seed, dtype):
        kinds.append(dtype)
        return shuffle(blocks, capacity, seed, torch.float32)

    monkeypatch.setattr(probe_training, "Shuffle", wide)
    train_probes(layout, "llama-it", "native", QUICK)
    assert kinds == [torch.bfloat16] * 2
    assert np.array_equal(read_probes(path)[0], narrow[0])


def test_training_that_takes_long_is_said_before(tmp_path: Path, llama: PairSpec, monkeypatch, capsys) -> None:
    layout = tiny.capture(tmp_path / "lake", llama, tiny.NATIVE, variants=("it",), prompts=tiny.prompt_set(texts(12)))
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    said: list[str] = []
    monkeypatch.setattr(probe_training, "run", lambda jobs: said.append(capsys.readouterr().err))
    with pytest.raises(LakeError):  # nothing was trained
        train_probes(layout, "llama-it", "native", QUICK, device="cpu")
    line = "training probes for the tuned lens of llama-it on cpu, a few seconds; fewer --tokens take less, and after Ctrl-C"
    assert line in " ".join(said[0].split())


@pytest.mark.parametrize("buffer", [30_000, 384 << 20])
def test_estimates_count_what_training_reads(lake: Lake, monkeypatch, buffer: int) -> None:
    """Rows that probes are trained on, whether memory holds them or not, and rows that they are looked at with."""
    monkeypatch.setattr(probe_training, "BUFFER_BYTES", buffer)
    looked: list[int] = []
    measure = Trainer.measure
    monkeypatch.setattr(
        Trainer, "measure", lambda self, rows, *layers: [looked.append(len(rows)), measure(self, rows, *layers)][1]
    )
    kit = Context(lake.layout, "cpu")
    recipe = Adam(batch=16, steps=60, check_every=7, patience=1_000)
    job = Training(kit, ProbeSpec(names(lake, "it"), recipe, None, 0, 2))
    job.finish()
    trained = sum(read_facts(lake.layout.files, job.path)["trained_tokens"])
    assert trained <= job.forwards < trained + 2 * recipe.batch
    assert sum(looked) <= job.checked <= 2 * sum(looked)
    shape = estimate._shape(kit, "llama-it")
    assert estimate._operations(kit, job) == (estimate.TRAINING * job.forwards + job.checked) * shape.logit * 3
    shutil.rmtree(job.path)


def test_rows_that_are_not_finite_are_left_out(lake: Lake, monkeypatch) -> None:
    capture = Capture(lake.layout.capture(*names(lake, "it")))
    capture.manifest["variables"]["resid"]["nonfinite"] = 1
    rows = probe_training._Rows(capture, 0, 2)
    read = CheckedArray.__getitem__

    def spoiled(self, key):
        block = read(self, key).copy()
        block[0, 1, 5] = np.inf  # the first token of every chunk
        return block

    monkeypatch.setattr(CheckedArray, "__getitem__", spoiled)
    for fold in range(2):
        blocks = list(rows.blocks(fold))
        assert all(torch.isfinite(block).all() for block in [*blocks, rows.held_out()[fold]])
        assert sum(map(len, blocks)) == rows.tokens[fold] - rows._train[fold][:: rows._chunk].sum() < rows.tokens[fold]


# --- keeping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [QUICK, Sgd(batch=64, steps=40, check_every=10)], ids=["adam", "sgd"])
@pytest.mark.parametrize("buffer", [384 << 20, 30_000])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(lake: Lake, monkeypatch, recipe, buffer: int) -> None:
    monkeypatch.setattr(probe_training, "BUFFER_BYTES", buffer)
    recipe = Adam(batch=8, steps=40, check_every=5) if buffer < 1e6 and recipe is QUICK else recipe
    path, _ = train_probes(lake.layout, "llama-it", "native", recipe)
    whole = tiny.tree(path)
    assert {file.name for file in path.parent.iterdir()} == {path.name}
    shutil.rmtree(path)
    checks = []

    def stop(where, state):
        save_training(where, state)
        checks.append(sum(len(curve) for _, curve in state))
        if len(checks) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(probe_training, "save_training", stop)
    with pytest.raises(KeyboardInterrupt):
        train_probes(lake.layout, "llama-it", "native", recipe)
    assert training_file(path).exists() and not path.exists()
    train_probes(lake.layout, "llama-it", "native", recipe)
    assert tiny.tree(path) == whole and not training_file(path).exists()
    assert checks[0] == 4 and min(checks[1:], default=5) > 4  # the second run began after the first's two looks


def test_a_broken_training_state_is_named(lake: Lake, monkeypatch) -> None:
    path = ProbeSpec(names(lake, "it"), QUICK).path(Context(lake.layout))
    for content in (b"", b"no zip", b"PK\x03\x04 cut off"):
        training_file(path).parent.mkdir(parents=True, exist_ok=True)
        training_file(path).write_bytes(content)
        with pytest.raises(LakeError, match="can't be read .*delete it to train from the start") as found:
            train_probes(lake.layout, "llama-it", "native", QUICK)
        assert str(training_file(path)) in str(found.value)


def test_a_full_disk_leaves_no_half_set(lake: Lake, monkeypatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("actlake.store.artifacts.probes.write_group", full)
    with pytest.raises(LakeError, match="disk full while writing"):
        train_probes(lake.layout, "llama-it", "native", QUICK)
    assert not list((lake.layout.root / "lenses").rglob("*.zarr")) and not list(
        (lake.layout.root / "lenses").rglob("*.tmp")
    )


def test_stored_probes_open_in_plain_xarray_and_say_where_they_come_from(lake: Lake) -> None:
    path, record = train_probes(lake.layout, "llama-pt", "native", QUICK, seed=3)
    opened = xr.open_zarr(path)
    probes = lake.lenses("llama-pt")
    assert opened.weight.dims == ("fold", "boundary", "d_out", "d_model") and opened.weight.dtype == np.float32
    for fold in range(2):
        assert np.array_equal(opened.weight[fold], probes[fold].weight)
        assert np.array_equal(opened.bias[fold], probes[fold].bias)
    assert opened.boundary.values.tolist() == [0, 1, 2]
    kit = Context(lake.layout)
    where = names(lake, "pt")
    assert record["capture_sha256"] == kit.capture(where).sha256 and record["model_sha256"] == kit.head_hash(where)
    assert record["recipe"] == QUICK.record() and record["seed"] == 3 and record["folds"] == 2
    assert path.stem.startswith(f"tuned-{where[1]}-adam-")
    again, _ = train_probes(lake.layout, "llama-pt", "native", QUICK, seed=3)
    other, _ = train_probes(lake.layout, "llama-pt", "native", QUICK, seed=4)
    assert again == path != other


@pytest.mark.parametrize("name", ["weight/c/0/1/0/0", "bias/c/1/0/0", "zarr.json", "record.json"])
def test_damage_is_found(lake: Lake, name: str) -> None:
    path, _ = train_probes(lake.layout, "llama-pt", "native", QUICK)
    file = path / name
    if name == "record.json":
        file.write_text(file.read_text().replace('"folds": 2', '"folds": 3'))
    else:
        tiny.flip(file, file.stat().st_size // 2)
    with pytest.raises(CorruptError, match="damaged|not the bytes that were written|expected a SHA-256") as found:
        lake.lenses("llama-pt")
    assert str(file) in str(found.value)
    file.unlink()
    with pytest.raises(LakeError, match="missing|no probes of llama-pt"):
        lake.lenses("llama-pt", path.stem)


@pytest.mark.slow
def test_usual_recipe_beats_the_raw_lens_at_every_layer_of_pocket(tmp_path: Path, monkeypatch) -> None:
    from actlake.capture.streams.capture_pair import Options, capture_pair, find_prompts
    from actlake.store.core.catalog import load_catalog

    known, layout = load_catalog(None), Layout.open(tmp_path / "lake", create=True)
    prompts = find_prompts(known, layout, "pocket", 100)
    capture_pair(
        layout, known.pair("pocket"), [known.stream("native")], prompts, known.profile("full"), options=Options()
    )
    monkeypatch.setattr(choosing, "DEFAULT", USUAL)
    ensure(
        layout,
        [
            (
                "lens_eval",
                "",
                tiny.scope("pocket", {v: find_capture(layout, f"pocket-{v}", "native").stem for v in ("pt", "it")}),
            )
        ],
    )
    sql = "SELECT variant, layer, sum(kl_raw * n) AS raw, sum(kl_tuned * n) AS tuned FROM lens_eval"
    found = table(Lake(layout.root), f"{sql} WHERE probe_variant = variant AND layer < 5 GROUP BY ALL")
    assert len(found) == 12 and (found["tuned"] < 0.8 * found["raw"]).all()


# --- which set -------------------------------------------------------------------------------------------------------


def test_probes_asked_for_go_before_the_usual_ones_and_their_rows_replace_them(lake: Lake) -> None:
    where, tuned = names(lake, "it"), [("lens", "tuned", native(lake))]
    ensure(lake.layout, [*tuned, ("lens", "raw", native(lake)), ("lens_eval", "", native(lake))])
    usual = choose(Context(lake.layout), where)
    assert usual.before == () and usual.name in table(lake, "SELECT DISTINCT probes FROM lens_eval")["probes"].tolist()
    small, _ = train_probes(lake.layout, "llama-it", "native", QUICK, tokens=64)
    large, _ = train_probes(lake.layout, "llama-it", "teacher", Sgd(batch=64, steps=4))
    assert small != large != usual.path
    assert choose(Context(lake.layout), where).path == large  # of what was asked for, the most tokens
    assert ensure(lake.layout, tuned) and ensure(lake.layout, [("lens_eval", "", native(lake))])
    counts = table(lake, "SELECT lens, variant, count(*) AS n FROM lens GROUP BY ALL")
    assert counts.groupby("variant")["n"].nunique().eq(1).all() and len(counts) == 4
    assert usual.name not in table(lake, "SELECT DISTINCT probes FROM lens_eval")["probes"].tolist()
    assert ensure(lake.layout, tuned) == []


def test_usual_probes_are_those_of_the_native_stream(lake: Lake) -> None:
    kit = Context(lake.layout)
    teacher, own = (choose(kit, names(lake, "pt", stream)) for stream in ("teacher", "native"))
    assert teacher.path == own.path == ProbeSpec(names(lake, "pt"), QUICK).path(kit) and len(teacher.before) == 1
    native_only = names(lake, "pt")
    shutil.rmtree(lake.layout.capture(*native_only))
    kit = Context(lake.layout)
    assert choose(kit, names(lake, "pt", "teacher")).path != own.path


def test_probes_of_another_checkpoint_do_not_count(lake: Lake) -> None:
    path, record = train_probes(lake.layout, "llama-it", "native", QUICK, tokens=64)
    weight, bias, _ = read_probes(path)
    shutil.rmtree(path)
    facts = {key: record[key] for key in ("steps", "trained_tokens", "kl_raw", "kl_tuned")}
    spec = ProbeSpec(names(lake, "it"), QUICK, tokens=64).record(Context(lake.layout))
    other = write_probes(lake.layout, {**spec, "model_sha256": "0" * 64}, weight, bias, facts)
    assert choose(Context(lake.layout), names(lake, "it")).path not in (path, other)


def test_users_mistakes_are_told(lake: Lake, captured: Layout, tmp_path: Path, llama: PairSpec) -> None:
    with pytest.raises(LakeError, match="recipe 'rmsprop': expected sgd or adam or ridge"):
        recipe_of(lake.layout, "rmsprop", "llama-it")
    with pytest.raises(LakeError, match="scale is for the recipe sgd"):
        recipe_of(lake.layout, "adam", "llama-it", scale=0.5)
    assert recipe_of(lake.layout, "sgd", "llama-it", batch=64) == Sgd(batch=64)
    with pytest.raises(LakeError, match="no capture of llama-it on a stream that starts with 'web'"):
        train_probes(lake.layout, "llama-it", "web", QUICK)
    with pytest.raises(LakeError, match="no probes of llama-it"):
        lake.lenses("llama-it")
    same = tiny.prompt_set([row for row in texts(4) if row[0] != "p1"])  # p1 alone is in the second fold
    few = tiny.capture(tmp_path / "few", llama, tiny.NATIVE, variants=("it",), prompts=same)
    with pytest.raises(LakeError, match="3 prompts are too few for a tuned lens.*capture more"):
        train_probes(few, "llama-it", "native", QUICK)


def test_commands_train_and_list(lake: Lake) -> None:
    from actlake.cli.main import app

    run, where = CliRunner(), ["--lake", str(lake.layout.root)]
    done = run.invoke(app, ["fit-lens", "llama", "it", "--recipe", "sgd", "--tokens", "96", "--batch", "32", *where])
    assert done.exit_code == 0, done.output
    assert "96 tokens in 3 steps" in done.output and "tuned" in done.output
    listed = run.invoke(app, ["ls", "lenses", *where])
    assert listed.exit_code == 0 and "sgd" in listed.output and "96" in listed.output


def test_free_sql_finds_every_evaluation_once(lake: Lake) -> None:
    """PT native stands in the native scope and in that of `reverse`, IT native in those of native and teacher."""
    sql = "SELECT variant, stream, probe_variant, count(*) n, count(DISTINCT (prompt, layer)) d FROM lens_eval GROUP BY ALL"
    found = lake.sql(sql).df()
    assert (found["n"] == found["d"]).all() and len(found) >= 6 and set(found["probe_variant"]) == {"pt", "it"}
