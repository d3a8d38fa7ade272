"""The explorer's data files and its server, without a browser."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actlake
import numpy as np
import pytest
import tiny
from actlake.analyze.lens.logit_lens import lens
from actlake.cli.main import app
from actlake.explore import inline
from actlake.explore.packing import packed, script, short_floats, unpacked
from actlake.explore.server import ExplorerServer
from actlake.explore.site import PAGE, SCRIPTS, ExplorerSite
from actlake.explore.source import ExplorerSource
from actlake.lake import Lake
from actlake.queries.rows.numbers import number
from actlake.store.artifacts.texts import Condition
from actlake.store.core.errors import LakeError
from actlake.store.core.schema import OUTPUTS
from actlake.store.format.paths import Layout
from actlake.store.tables.files import write_table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from typer.testing import CliRunner

run = CliRunner(env={"COLUMNS": "200"}).invoke
HOSTILE = (
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(1)</script>",
    "a\u202eb\x1b[31m\u2028'\"`${1}",
    "__proto__",
)


@pytest.fixture(scope="module")
def site(captured: Layout) -> ExplorerSite:
    return ExplorerSite(ExplorerSource(captured, "cpu"))


def read(site: ExplorerSite, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    found, value, arrays = unpacked(site.data(name))
    assert found == name
    return value, arrays


# --- data files --------------------------------------------------------------------------------------------------------


@given(numbers.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=True)))
def test_floats_lose_no_more_than_is_said(values: np.ndarray) -> None:
    value, arrays = unpacked(script("x", packed({"a": 1}, {"v": values})))[1:]
    assert value == {"a": 1} and np.array_equal(np.isnan(arrays["v"]), np.isnan(values))
    normal = np.isfinite(values) & (np.abs(values) < 3.4e38) & (np.abs(values) > 1e-37)
    assert np.allclose(arrays["v"][normal], values[normal], rtol=2e-5, atol=0)
    assert len(short_floats(values)) == 3 * values.size


@given(st.text(), st.lists(st.integers(0, 1 << 31), max_size=20))
def test_texts_and_whole_numbers_come_back_and_are_no_code(text: str, some: list[int]) -> None:
    made = script("x", packed({"text": text}, {"n": np.array(some, np.int64)}))
    value, arrays = unpacked(made)[1:]
    assert value["text"] == text.encode(errors="replace").decode() and arrays["n"].tolist() == some
    assert made.isascii() and made.startswith(b'explorer.put("x","') and made.count(b'"') == 4


def test_every_data_file_can_be_read(site: ExplorerSite) -> None:
    names = list(site.names())
    assert names[-1] == "index" and len(names) == len(set(names))
    index = read(site, "index")[0]
    assert [view["recipe"] for view in index["views"]] == ["native", "teacher"]
    assert {view["history"] for view in index["views"]} == {"own", "shared"}
    for name in names:
        read(site, name)


def test_a_prompt_has_the_numbers_of_the_kernels(site: ExplorerSite) -> None:
    """Against the lens kernel on the whole capture, and a plain softmax of the head's logits."""
    for one in site.source.captures:
        capture, names = site.source.kit.capture((one.model, one.stream)), (one.model, one.stream)
        head, offset = site.source.kit.head(names), capture.offset()
        for at, prompt in enumerate(site.source.sets[one.set].ids):
            place = site.source.places(one.number)[prompt]
            tokens = slice(int(offset[place]), int(offset[place + 1]))
            resid, ids = capture.array("resid")[tokens], capture.array("token_id")[tokens]
            value, arrays = read(site, f"cells/{one.number}/{at}")
            wanted = lens(head, resid, np.append(ids[1:], -1), device="cpu")
            for name in ("kl_final_layer", "entropy", "p_target", "cos_final"):
                assert np.allclose(arrays[f"raw.{name}"], wanted[name].T, rtol=4e-5, atol=1e-6, equal_nan=True), name
            assert np.array_equal(arrays["raw.rank_target"], wanted["rank_target"].T)
            assert np.array_equal(arrays["id"], ids) and value["layers"] == list(range(-1, resid.shape[1] - 1))
            logits = head.logits(__import__("torch").from_numpy(np.ascontiguousarray(resid))).numpy().astype(np.float64)
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p = np.sort(p / p.sum(-1, keepdims=True), -1)[..., ::-1][..., :5]
            assert np.allclose(arrays["raw.p"], p.transpose(2, 1, 0), rtol=1e-4)
            word = site.source.words(one.model)
            assert [value["words"][at] for at in arrays["raw.top"][0, -1]] == [word(i) for i in wanted["top1"][:, -1]]


def test_numbers_of_the_pages_are_those_of_sql(lake_copy: Layout) -> None:
    """Read from tables where these are there, and computed to the same where not."""
    before = ExplorerSite(ExplorerSource(lake_copy, "cpu"))
    computed = {name: read(before, name) for name in before.names() if name != "index"}
    lake = Lake(lake_copy.root, device="cpu")
    for table in ("lens", "delta", "pair_lens"):
        lake.sql(f"SELECT * FROM {table}")
    after = ExplorerSite(ExplorerSource(lake_copy, "cpu"))
    for name, (value, arrays) in computed.items():
        now, there = read(after, name)
        if not name.startswith("prompts"):
            assert now.get("words") == value.get("words") and arrays.keys() == there.keys()
            for key in arrays:
                assert np.allclose(arrays[key], there[key], rtol=4e-5, atol=1e-6, equal_nan=True), (name, key)
    one = after.source.captures[0]
    sql = f"SELECT kl_final_layer FROM lens WHERE model = '{one.model}' AND stream = '{one.stream}' AND prompt_id = 'p1' ORDER BY layer, position"
    found = read(after, f"cells/0/{after.source.sets[0].ids.index('p1')}")[1]["raw.kl_final_layer"]
    assert np.allclose(found.ravel(), lake.sql(sql).df()["kl_final_layer"], rtol=4e-5)
    listed, arrays = read(after, "prompts/0")
    label = f"lens.kl_final_layer · {one.model} · native · raw"
    at = [spec["label"] for spec in listed["numbers"]].index(label)
    mean = lake.sql(
        f"SELECT prompt_id, avg(kl_final_layer) AS mean FROM lens WHERE model = '{one.model}' AND stream = '{one.stream}' AND"
        " step >= 0 AND layer >= 0 GROUP BY prompt_id"
    )
    means = mean.df().set_index("prompt_id")["mean"].loc[listed["ids"]]
    assert np.allclose(arrays["numbers"][at], means, rtol=1e-4)


def test_batches_give_what_single_prompts_give(captured: Layout, site: ExplorerSite) -> None:
    other = ExplorerSite(ExplorerSource(captured, "cpu"))
    names = [name for name in other.names() if name.startswith(("cells", "pair"))]
    for at, name in enumerate(names):
        other._announce(names, at)
        value, arrays = read(other, name)
        alone, wanted = read(site, name)
        assert value == alone and all(
            np.allclose(arrays[key], wanted[key], rtol=4e-5, atol=1e-7, equal_nan=True) for key in wanted
        )


def test_hostile_prompts_stay_text(tmp_path: Path, llama: Any) -> None:
    prompts = tiny.prompt_set([(f"p{at}", text, f"the cat {text}") for at, text in enumerate(HOSTILE)])
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, prompts=prompts)
    made = ExplorerSite(ExplorerSource(layout, "cpu"))
    made.write(tmp_path / "site")
    assert read(made, "prompts/0")[0]["categories"] == list(HOSTILE)
    for file in (tmp_path / "site" / "data").rglob("*.js"):
        assert file.read_bytes().startswith(b'explorer.put("') and b"alert" not in file.read_bytes()


def test_what_a_lake_lacks_is_a_sentence(tmp_path: Path, llama: Any) -> None:
    profile = actlake.store.core.catalog.ProfileSpec("lean", ("mlp_out",), "auto", "auto", 16)
    layout = tiny.capture(tmp_path / "lake", llama, tiny.RAW, profile=profile, variants=("it",))
    made = ExplorerSite(ExplorerSource(layout, "cpu"))
    value, arrays = read(made, "cells/0/0")
    assert "kept no residual" in value["notes"][0] and value["lenses"] == [] and len(arrays["word"]) == value["tokens"]
    assert [view["captures"] for view in read(made, "index")[0]["views"]] == [{"it": 0}]
    empty = ExplorerSite(ExplorerSource(Layout.open(tmp_path / "empty", create=True)))
    assert list(empty.names()) == ["texts", "rows", "directions", "index"] and read(empty, "index")[0]["views"] == []
    with pytest.raises(LakeError, match="prompt set 'other'; prompt sets here: tiny"):
        _ = ExplorerSource(layout, "cpu", prompts="other").captures


def test_unequal_vocabularies(tmp_path: Path) -> None:
    pair = tiny.make_pair(tmp_path / "models")
    tiny.add_token(tmp_path / "models" / "it")
    made = ExplorerSite(ExplorerSource(tiny.capture(tmp_path / "lake", pair, tiny.NATIVE, tiny.TEACHER), "cpu"))
    for name in made.names():
        value, arrays = read(made, name)
        if name.startswith("pair"):
            assert value["notes"] == [] and np.isfinite(arrays["js"]).all() and (arrays["js"] <= np.log(2) + 1e-6).all()
        if name.startswith("cells"):
            assert value["lenses"] == ["raw"] and np.isfinite(arrays["raw.entropy"]).all()


# --- texts, rows, directions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A lake with tables, a direction, and texts under two doses of an edit, with scores."""
    prompts = tiny.prompt_set([(f"p{at}", "FACT", f"the cat sat on {at} mats and the dog ran") for at in range(14)])
    layout = tiny.capture(tmp_path_factory.mktemp("told") / "lake", llama, tiny.NATIVE, prompts=prompts)
    lake = Lake(layout.root, device="cpu")
    lake.run("L2", probes=False)
    lake.directions("llama")
    ids = ["p0", "p1", HOSTILE[0]]
    for condition, texts in (
        ("none", ["a cat", "b", HOSTILE[1]]),
        ("scale:layers=1,alpha=-2", ["a dog", "b", HOSTILE[2]]),
        ("scale:layers=1,alpha=0", ["", "c", "d"]),
    ):
        made = Condition(layout, "llama-it", {"condition": condition})
        rows = [
            {"model": "llama-it", "key": made.key, "condition": condition, "template": "chat", "prompts": "tiny", "prompt_id": name, "category": "FACT",
             "prompt_sha": name, "prompt_tokens": 3, "text": text, "token_id": [1], "tokens": len(text), "ended": True}
            for name, text in zip(ids, texts, strict=True)
        ]  # fmt: skip
        made.seal("texts", made.file("texts", [(name, name) for name in ids]), rows, OUTPUTS, {})
        named = {
            "model_pt": "llama-pt",
            "model_it": "llama-it",
            "variant": "it",
            "stream": "s",
            "stream_pt": "t",
            "sweep": "A1",
            "arm": "d_mean",
            "key": made.key,
        }
        group = {
            "prompt": [0, 1],
            "prompt_id": ids[:2],
            "category": ["FACT"] * 2,
            "metric": ["length"] * 2,
            "value": [1.5, len(texts[1])],
            "dose": [0.5, 0.5],
        }
        write_table(layout, "scores", {**named, "version": 2}, [{**named, **group}])
    return layout


def test_texts_by_prompt_and_by_condition(told: Layout) -> None:
    made = ExplorerSite(ExplorerSource(told, "cpu"))
    about = read(made, "texts")[0]
    assert [(one["edited"], one["dose"]) for one in about["conditions"]] == [(False, None), (True, -2), (True, 0)]
    assert {one["arm"] for one in about["conditions"]} == {"none", "scale:layers=1,alpha=…"} and about["metrics"] == [
        "length"
    ]
    assert about["conditions"][0]["sweeps"] == [["llama", "A1", "d_mean", 0.5]]
    at = about["sets"][0]["ids"].index("p0")
    value, arrays = read(made, f"texts/0/{at}")
    assert [value["text"][list(arrays["condition"]).index(number)] for number in range(3)] == ["a cat", "a dog", ""]
    assert np.allclose(arrays["scores"], 1.5)
    value, arrays = read(made, "condition/0/0")
    assert {about["sets"][0]["ids"][at]: text for at, text in zip(arrays["prompt"], value["text"], strict=True)} == {
        "p0": "a cat",
        "p1": "b",
        HOSTILE[0]: HOSTILE[1],
    }


def test_rows_are_answered_from_what_is_there(told: Layout) -> None:
    made = ExplorerSite(ExplorerSource(told, "cpu"))
    rows = {one["row"]: one for one in read(made, "rows")[0]["rows"]}
    assert rows["L2"]["file"] is not None and rows["L2"]["group"] == "Layers and lenses"
    assert rows["L3"]["file"] is None and rows["L3"]["why"] and str(told.root) not in str(rows)
    found = read(made, f"rows/{rows['L2']['file']}")[0]
    answer = Lake(told.root, device="cpu").run("L2", probes=False)
    assert found["sentence"] == answer.sentence and found["sql"] == answer.sql
    profile = next(one for one in found["curves"] if one["measure"] == "kl_final_layer")
    it = next(one for one in profile["series"] if one["role"] == "it")
    wanted = answer.table.query("measure == 'kl_final_layer' and variant == 'it'").sort_values("layer")
    assert it["x"] == wanted["layer"].tolist() and np.allclose(
        np.array(it["estimate"], float), wanted["estimate"], equal_nan=True
    )
    assert profile["label"] == "KL(final ‖ layer), raw lens" or profile["label"] == "KL(final ‖ layer)"
    assert profile["unit"] == "nats" and profile["about"].startswith("divergence of the layer's lens")
    assert it["name"] == "IT" and it["colours"] == ["#c75000", "#f2915a"] and found["most"][0]["prompts"]
    assert found["curves"][0] is profile  # what the row's figure shows comes first


def test_a_notebook_sees_what_the_explorer_shows(told: Layout) -> None:
    lake = Lake(told.root, device="cpu")
    view = lake.prompt("p0").lens(pair="llama")
    made = ExplorerSite(ExplorerSource(told, "cpu"))
    one = next(v for v in made.source.views if v.name == "llama")
    value, arrays = read(made, f"cells/{one.captures['it']}/0")
    at = np.flatnonzero(arrays["step"] >= 0)[:24]
    grid = view.grids[-1]
    assert grid.name == "IT llama-it" and grid.layers == value["layers"]
    np.testing.assert_allclose(grid.values, arrays["raw.kl_final_layer"][:, at], rtol=1e-4)
    assert grid.words[-1] == [value["words"][top] for top in arrays["raw.top"][0, -1, at]]
    html = view._repr_html_()
    assert html.count("<td ") == sum(len(grid.words) * len(grid.reads) for grid in view.grids) and "<script" not in html
    assert f"KL(final ‖ layer), nats {number(grid.values[0, 0])}" in html
    figure = view.figure()
    (image,) = figure.axes[-2].images
    np.testing.assert_allclose(np.asarray(image.get_array()), grid.values)
    less = lake.prompt("p0").lens(pair="llama", difference=True)
    pt = view.grids[0]
    common = [step for step in pt.steps if step in grid.steps]
    wanted = [grid.values[:, grid.steps.index(s)] - pt.values[:, pt.steps.index(s)] for s in common]
    np.testing.assert_allclose(less.grids[0].values, np.stack(wanted, 1))
    with pytest.raises(LakeError, match="did you mean"):
        lake.prompt("p00")
    with pytest.raises(LakeError, match="llama on native"):
        lake.prompt("p0").lens(pair="nobody")


def test_a_notebook_shows_texts_and_what_an_edit_changed(told: Layout) -> None:
    texts = Lake(told.root, device="cpu").texts()
    html = texts._repr_html_()
    assert HOSTILE[1] not in html and "<script" not in html and "tokens" in html
    assert texts.figure().axes and type(texts[texts["prompt_id"] == "p0"]) is type(texts)
    assert "<td" in texts[["text"]]._repr_html_()
    assert (
        inline._marked("a dog sat", "a cat sat") == "a <mark>dog</mark> sat"
        and inline._marked("<b>", None) == "&lt;b&gt;"
    )


def test_directions_say_what_the_arrays_say(told: Layout) -> None:
    made = ExplorerSite(ExplorerSource(told, "cpu"))
    about = read(made, "directions")[0]["directions"]
    number = [one["name"] for one in about].index("d_mean")
    value, arrays = read(made, f"directions/{number}")
    wanted = Lake(told.root, device="cpu").directions("llama")
    assert (
        np.allclose(arrays["cosines"], wanted.values @ wanted.values.T, atol=1e-4)
        and value["layers"] == wanted["layer"].values.tolist()
    )
    kit, names = made.source.kit, ("llama-it", "")
    head = kit.arrays(names)[0]
    effect = head["unembed"] @ (head["norm_weight"] * wanted.values[0])
    real = np.flatnonzero(head["real_token"])
    first = value["texts"][arrays["words"][0, 0]]
    assert first == made.source.words("llama-it")(int(real[np.argmax(effect[real])]))
    one = made.source.captures[value["capture"]]
    mlp = kit.capture((one.model, one.stream)).array("mlp_out")[:]
    stream = made.source.stream(one.stream)
    along = (mlp[:, value["layers"][0]] @ wanted.values[0])[stream.columns["step"] >= 0]
    assert np.isclose(arrays["along"][0, 0], along.max(), rtol=1e-4) and np.isclose(
        arrays["along"][0, -1], along.min(), rtol=1e-4
    )


# --- a static site -----------------------------------------------------------------------------------------------------


def test_a_site_is_planned_and_written(captured: Layout, tmp_path: Path) -> None:
    lake, plans = Lake(captured.root, device="cpu"), []
    page = lake.explore(tmp_path / "site", limit=2, show=plans.append)
    files = [file for file in (tmp_path / "site").rglob("*") if file.is_file()]
    assert page == tmp_path / "site" / "index.html" and {*PAGE, *(f"{name}.js" for name in SCRIPTS)} <= {
        file.name for file in files
    }
    assert plans[0].counts == {"prompts": 2, "files": len(files)}
    size = sum(file.stat().st_size for file in files)
    assert size / 4 < plans[0].bytes < 4 * size
    assert lake.explore(tmp_path / "site", limit=1) == page  # again, over the one that is there
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(LakeError, match="is not empty and no explorer's"):
        lake.explore(tmp_path / "mine")
    with pytest.raises(LakeError, match="thesis.txt: is a file; name a new folder"):
        lake.explore(tmp_path / "mine" / "thesis.txt")
    with pytest.raises(LakeError, match="a limit of -1 leaves no prompts"):
        lake.explore(tmp_path / "none", limit=-1)
    assert lake.explore(tmp_path / "none", dry_run=True).name == "index.html" and not (tmp_path / "none").exists()


def test_the_page_loads_nothing_from_elsewhere_and_evaluates_nothing() -> None:
    folder = Path(actlake.__file__).parent / "explore" / "web"
    assert {file.name for file in folder.iterdir()} == {*PAGE, *(f"{name}.js" for name in SCRIPTS)}
    page = (folder / "index.html").read_text()
    assert page.count("<script") == len(SCRIPTS) and [f'src="{name}.js"' in page for name in SCRIPTS] == [True] * len(
        SCRIPTS
    )
    for file in folder.iterdir():
        text = file.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "unsafe-",
        ):
            assert word not in text, (file.name, word)
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), file.name


def test_the_command(captured: Layout, tmp_path: Path) -> None:
    out = str(tmp_path / "site")
    found = run(app, ["explore", "--lake", str(captured.root), "--out", out, "--limit", "1", "--json"])
    assert found.exit_code == 0, found.output
    assert (
        json.loads(found.stdout.splitlines()[-1])["prompts"] == 1
        and (tmp_path / "site" / "data" / "index.js").is_file()
    )
    said = run(app, ["explore", "--lake", str(captured.root), "--out", f"{out}2", "--dry-run"])
    assert "6 prompts" in said.output and not Path(f"{out}2").exists()
    assert run(app, ["explore", "--lake", str(captured.root), "--dry-run"]).exception


# --- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(captured: Layout) -> Iterator[ExplorerServer]:
    found = Lake(captured.root, device="cpu").explore()
    yield found
    found.close()


def ask(
    server: ExplorerServer, path: str, method: str = "GET", body: str = "", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    given = {"Host": f"127.0.0.1:{port}", **({"Content-Length": str(len(body))} if body else {})}
    for name, value in {**given, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
        connection.putheader(name, value)
    connection.endheaders(body.encode())
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_server_hands_out_the_site(server: ExplorerServer) -> None:
    status, data, headers = ask(server, server.path)
    assert status == 200 and b"<!DOCTYPE html>" in data and "script-src 'self'" in headers["Content-Security-Policy"]
    for name in (*PAGE, "core.js", "data/index.js", "data/prompts/0.js", "data/cells/0/0.js", "data/pair/0/0.js"):
        assert ask(server, server.path + name)[0] == 200, name
    assert unpacked(ask(server, f"{server.path}data/index.js")[1])[1]["server"] is True


def test_the_server_refuses_all_else(server: ExplorerServer) -> None:
    own, port = server.path, server.server_address[1]
    for path in ("/", "/index.html", "/data/index.js", f"/{'x' * 32}/", own[:-1]):
        assert ask(server, path)[0] == 403, path
    for name in ("../lake.json", "data/../../lake.json", "%2e%2e/lake.json", "data/cells/0/99.js", "data/cells/9/0.js", "server.py",
                 "data/index.js/..", "data//etc/passwd.js", "data/cells/-1/0.js", "data/cells/0/0.json", "explorer.css/"):  # fmt: skip
        assert ask(server, own + name)[0] == 404, name
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
        assert ask(server, own, Host=host)[0] == 403, host
    assert ask(server, own, Origin="http://evil.example")[0] == 403
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(server, own, method)[0] == 501
    assert ask(server, own, Host=f"localhost:{port}")[0] == 200


def test_the_server_answers_sql_and_only_that(server: ExplorerServer, tmp_path: Path) -> None:
    def query(sql: str, **more: str) -> dict[str, Any]:
        body = json.dumps({"sql": sql})
        status, data, _ = ask(server, f"{server.path}sql", "POST", body, **{"Content_Type": "application/json", **more})
        return json.loads(data) if status == 200 else {"status": status}

    assert query("SELECT 1 AS one, 'x' AS two, NULL AS three") == {
        "columns": ["one", "two", "three"],
        "rows": [[1, "x", None]],
        "more": False,
    }
    assert len(query("SELECT * FROM captures")["rows"]) == 3
    assert query("SELECT * FROM range(5000)")["more"] is True
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM '{secret}'",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        "DELETE FROM lens",
        "SELECT 1; SELECT 2",
        "SELEC",
    ):
        assert "error" in query(sql), sql
    assert not (tmp_path / "out.csv").exists()
    assert query("SELECT 1", Origin="http://evil.example") == {"status": 403}
    assert query("SELECT 1", Content_Type="text/plain") == {"status": 403}
    assert "error" in query("SELECT * FROM weights")  # computing is no server's business
