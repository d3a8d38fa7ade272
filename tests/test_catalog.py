"""The catalog (what it accepts, each complaint with its line), the window rule, and the published figures."""

import csv
import shutil
from collections import defaultdict
from pathlib import Path

import actlake
import pytest
from actlake.capture.edit.words import parse_edits
from actlake.capture.streams.prompts import read_prompts
from actlake.queries.rows.registry import POOLS
from actlake.store.core import catalog as module
from actlake.store.core.catalog import (
    PACKAGED,
    ConditionSpec,
    ModelSpec,
    PairSpec,
    ProfileSpec,
    StreamSpec,
    load_catalog,
)
from actlake.store.core.errors import LakeError
from actlake.store.core.specs import default_windows, resolve_boundaries
from actlake.store.format.paths import Layout
from hypothesis import given
from hypothesis import strategies as st

ROOT = module.PACKAGED.resolve().parent
SEED_PAIRS = ["gemma3_4b", "llama31_8b", "qwen3_4b", "mistral_7b", "deepseek_v2_lite", "olmo2_7b"]
LAPTOP_PAIRS = ["smollm2_135m", "gemma3_270m", "qwen3_06b", "olmo2_1b"]
DENSE5 = [pair for pair in SEED_PAIRS if pair != "deepseek_v2_lite"]


def write(folder: Path, content: str | bytes, name: str = "catalog.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path) -> str:
    """The complaint, without the path: 'LINE: ...'."""
    with pytest.raises(LakeError) as caught:
        load_catalog(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:") and "\n" not in message
    return message.removeprefix(f"{path}:")


# ---- the packaged catalog


def test_the_packaged_catalog_holds_what_the_design_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    catalog = load_catalog()
    assert catalog.path == module.PACKAGED
    assert list(catalog.pairs) == ["pocket", *SEED_PAIRS, "qwen25_32b", *LAPTOP_PAIRS]
    pocket = catalog.pair("pocket")
    assert pocket.windows == {}
    assert pocket.it == ModelSpec("pocket-it", module.PACKAGED.parent / "models/pocket/it", None, None, None)
    assert catalog.streams == {
        "raw": StreamSpec("raw", "raw", "own", 64),
        "native": StreamSpec("native", "native", "own", 64),
        "teacher": StreamSpec("teacher", "native", "it", 64),
        "reverse": StreamSpec("reverse", "native", "pt", 64),
    }
    assert catalog.profile("full") == ProfileSpec("full", ("resid", "mlp_out"), "auto", "auto", None)
    assert catalog.lakes == {"default": str(tmp_path / "lake")}  # never inside an installed package
    assert read_prompts(catalog.prompt_path("core")).name == "core"


def test_every_model_of_the_seed_is_pinned_to_a_full_revision():
    for name, pair in load_catalog(module.PACKAGED).pairs.items():
        for spec in (pair.pt, pair.it):
            assert spec is not None
            if name in LAPTOP_PAIRS:
                assert spec.hub and spec.revision is None
            else:
                assert spec.hub is None or (len(spec.revision or "") == 40 and int(spec.revision or "", 16))


# ---- finding and reading a catalog


def test_the_working_folder_comes_before_the_package_and_a_named_file_before_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_catalog().path == module.PACKAGED
    write(tmp_path, "lakes: {here: x}")
    assert load_catalog().path == Path("catalog.yaml")
    other = write(tmp_path, "lakes: {there: x}", "other.yaml")
    assert list(load_catalog(other).lakes) == list(load_catalog(str(other)).lakes) == ["there", "default"]
    assert list(load_catalog(module.PACKAGED).lakes) == ["default"]


def test_entries_are_added_to_the_packaged_ones_and_replace_those_of_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "pairs: {mine: {pt: {path: a}}, pocket: {it: {path: b}}}\nprofiles: {}\nstreams: {raw: {template: chat, continuation: none}}"
    catalog = load_catalog(write(tmp_path, text))
    packaged = load_catalog(module.PACKAGED)
    assert list(catalog.pairs) == ["mine", "pocket", *list(packaged.pairs)[1:]]
    assert catalog.pair("pocket").pt is None and catalog.pair("pocket").model("it").path == tmp_path / "b"  # not mixed
    assert catalog.pair("qwen3_4b") == packaged.pair("qwen3_4b")
    assert (catalog.profiles, catalog.prompts, catalog.lakes) == (packaged.profiles, packaged.prompts, packaged.lakes)
    assert catalog.stream("raw") == StreamSpec("raw", "chat", "none", 0)
    assert catalog.stream("native") == packaged.stream("native")


def test_a_full_catalog_is_read_value_by_value(tmp_path):
    path = write(
        tmp_path,
        """\
pairs:
  a.B-1_c:
    pt: {path: models/pt, gguf_file: x.gguf}
    it: {hub: org/name, revision: abc}
    windows: {late: [20, 34], all: [0, 34]}
prompts:
  p: {path: ~/p.jsonl}
  q: {path: /q.csv}
streams:
  s: {template: chat, continuation: none}
  t: {template: raw, continuation: pt}
profiles:
  all: {sites: [attn_out, attn_entropy], logits: none, dtype: float32, shard_tokens: 256}
lakes:
  near: data/lake
  far: s3://bucket/lake
  "1": /abs
""",
    )
    catalog = load_catalog(path)
    assert catalog.pair("a.B-1_c") == PairSpec(
        "a.B-1_c",
        ModelSpec("a.B-1_c-pt", tmp_path / "models/pt", None, None, "x.gguf", "raw"),
        ModelSpec("a.B-1_c-it", None, "org/name", "abc", None, "chat"),
        {"late": (20, 34), "all": (0, 34)},
    )
    assert catalog.pair("a.B-1_c").model("it").hub == "org/name"
    assert (catalog.prompt_path("p"), catalog.prompt_path("q")) == (Path.home() / "p.jsonl", Path("/q.csv"))
    assert catalog.stream("s") == StreamSpec("s", "chat", "none", 0)
    assert catalog.stream("t") == StreamSpec("t", "raw", "pt", 64)
    assert catalog.profile("all") == ProfileSpec("all", ("attn_out", "attn_entropy"), "none", "float32", 256)
    lakes = {name: catalog.lake(name) for name in ("near", "far", "1")}
    assert lakes == {"near": str(tmp_path / "data/lake"), "far": "s3://bucket/lake", "1": "/abs"}


def test_paths_count_from_the_folder_of_the_catalog_whatever_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "prompts: {p: {path: p.jsonl}}\nlakes: {l: lake}")
    monkeypatch.chdir(tmp_path)
    catalog = load_catalog("sub/catalog.yaml")
    assert catalog.path == Path("sub/catalog.yaml")
    assert catalog.prompt_path("p") == tmp_path / "sub/p.jsonl"
    assert catalog.lake("l") == str(tmp_path / "sub/lake")


# ---- looking names up


def test_an_unknown_name_lists_what_is_known_and_what_is_close(tmp_path):
    catalog = load_catalog(write(tmp_path, "lakes: {}"))
    for look, name, kind, close in [
        (catalog.pair, "pockte", "pair", "pocket"),
        (catalog.prompt_path, "corr", "prompt set", "core"),
        (catalog.stream, "nativ", "stream", "native"),
        (catalog.profile, "ful", "profile", "full"),
    ]:
        with pytest.raises(LakeError) as caught:
            look(name)
        message = str(caught.value)
        assert message.startswith(f"unknown {kind} {name!r}: {catalog.path} (with what comes with actlake) has ")
        assert message.endswith(f"; did you mean {close!r}?")
    with pytest.raises(LakeError, match=r"catalog.yaml \(with what comes with actlake\) has default$"):
        catalog.lake("x")
    with pytest.raises(LakeError, match=r"raw, native, teacher, reverse$"):
        catalog.stream("zzz")


def test_the_packaged_catalog_is_no_file_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: Layout
) -> None:
    """Where nobody wrote a catalog, no message names the packaged one's path, which nobody is to change."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(captured.root, "lake")
    lake = actlake.open("lake")
    for ask in (
        lambda: lake.catalog.pair("pockett"),
        lambda: lake.run("L2", pair="pockett"),
        lambda: lake.capture("pockett"),
        lambda: lake.dataset("pockett/it", "native"),
        lambda: lake.capture("llama"),
        lambda: lake.capture("llama-it"),
        lambda: lake.generate("llama/it", edits=["scale:layers=1,alpha=0"]),
        lambda: lake.run("exp11", pair="llama"),
        lambda: lake.run("L3", pair="llama"),
        lambda: lake.capture("pocket", prompts="nothing"),
    ):
        with pytest.raises(LakeError) as caught:
            ask()
        assert str(module.PACKAGED) not in str(caught.value) and "\n" not in str(caught.value), caught.value
    with pytest.raises(LakeError, match="'pockett': the catalog that comes with actlake has .*; did you mean 'pocket'"):
        lake.catalog.pair("pockett")
    Path("catalog.yaml").write_text("lakes: {mine: lake}\n")
    with pytest.raises(LakeError, match=r"'pockett': catalog.yaml \(with what comes with actlake\) has .*pocket"):
        actlake.open("lake").catalog.pair("pockett")


def test_a_pair_of_one_model_says_so(tmp_path):
    pair = load_catalog(write(tmp_path, "pairs: {a: {it: {hub: o/n}}}")).pair("a")
    assert pair.pt is None
    with pytest.raises(LakeError, match="pair a has no variant 'pt'; it has it"):
        pair.model("pt")


# ---- refusing


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        # not YAML
        ("pairs:\n  a: {pt: {path: x}\n", 3, "not valid YAML"),
        ("pairs:\n\ta: 1\n", 2, "not valid YAML"),
        ("lakes:\n  a: x\n b: y\n", 3, "not valid YAML"),
        ("lakes: {a: x}\n---\nlakes: {b: y}\n", 2, "not valid YAML"),
        ("lakes:\n  a: *nowhere\n", 2, "not valid YAML"),
        ("lakes:\n  a: 'x\n", 3, "not valid YAML"),
        ("lakes:\n  a: \x07\n", 2, "character"),
        (b"lakes:\n  a: \xff\n", 2, "not UTF-8 text"),
        # the outer shape
        ("- a\n", 1, "the catalog is a list, expected `key: value` lines"),
        ("# only\njust words\n", 2, "the catalog is 'just words'"),
        (
            "lakes: {a: x}\npears: {}\n",
            2,
            "no setting 'pears'; known are models, pairs, chains, prompts, streams, profiles, conditions, lakes, rows, sources, metadata; did",
        ),
        ("lakes:\n\npairs: {}\n", 1, "lakes is empty"),
        ("streams:\n  - a\n", 2, "streams is a list"),
        ("lakes: {a: x}\nlakes: {b: y}\n", 2, "'lakes' is already on line 1"),
        ("? [a, b]\n: 1\n", 1, "has no setting ''"),
        ("lakes: {a: x}\n<<: {lakes: {b: y}}\n", 2, "no setting '<<'"),
        # names
        ("lakes:\n  a b: x\n", 2, "lakes: 'a b' is no name"),
        ("lakes:\n  ../a: x\n", 2, "'../a' is no name"),
        ("lakes:\n  _a: x\n", 2, "'_a' is no name"),
        ("lakes:\n  é: x\n", 2, "'é' is no name"),
        ("lakes:\n  ? [a]\n  : x\n", 2, "'' is no name"),
        ("lakes:\n  a: x\n  b: y\n  a: z\n", 4, "lakes: 'a' is already on line 2"),
        # pairs
        ("pairs:\n  a: x\n", 2, "pair a is 'x'"),
        ("pairs:\n  a: {}\n", 2, "pair a names no model"),
        ("pairs:\n  a: {windows: {late: [0, 1]}}\n", 2, "pair a names no model"),
        ("pairs:\n  a:\n    base: {path: x}\n", 3, "pair a has no setting 'base'"),
        ("pairs:\n  a:\n    pt: models/x\n", 3, "a names the model 'models/x', which no catalog has"),
        ("pairs:\n  a: {pt: pocket-it, it: pocket-it}\n", 2, "pt and it are one model, pocket-it"),
        ("models:\n  a-pt: {path: x}\npairs:\n  a:\n    pt: {path: y}\n", 5, "model a-pt: named twice"),
        ("models:\n  a: {path: x}\n  a: {path: y}\n", 3, "'a' is already on line 2"),
        ("models:\n  a: {path: x, template: native}\n", 2, "template is 'native', expected one of raw, chat"),
        ("models:\n  '[red]a': {path: x}\n", 2, "'[red]a' is no name"),
        ("chains:\n  c: [pocket-pt, nobody]\n", 2, "c names the model 'nobody', which no catalog has"),
        ("chains:\n  c: [pocket-pt]\n", 2, "expected two models or more"),
        ("chains:\n  c: pocket-pt\n", 2, "expected a list: [base, sft, dpo] or {STEP: MODEL, ...}"),
        ("chains:\n  c: {0: pocket-pt}\n", 2, "expected two models or more"),
        ("chains:\n  c: {0: pocket-pt, 8: pocket-pt}\n", 2, "expected two models or more, each once"),
        ("chains:\n  c: {8: pocket-pt, 0: pocket-it}\n", 2, "expected training steps that grow, found 8, 0"),
        ("chains:\n  c: {0: pocket-pt, end: pocket-it}\n", 2, "a training step"),
        ("chains:\n  c: [pocket-pt, pocket-pt]\n", 2, "names one thing twice"),
        ("pairs:\n  a:\n    pt: {}\n", 3, "expected either path (a folder) or hub"),
        ("pairs:\n  a:\n    pt: {path: x, hub: o/n}\n", 3, "expected either path (a folder) or hub"),
        ("pairs:\n  a:\n    pt:\n      path: x\n      revision: y\n", 5, "a folder has no revision"),
        (
            "pairs:\n  a:\n    pt: {path: x, hubb: y}\n",
            3,
            "no setting 'hubb'; known are path, hub, revision, gguf_file, template; did",
        ),
        ("pairs:\n  a:\n    pt: {path: [x]}\n", 3, "pair a, pt, path is a list, expected text"),
        ("pairs:\n  a:\n    pt: {path: }\n", 3, "pair a, pt, path is empty, expected text"),
        ("pairs:\n  a:\n    pt: {path: hf://x}\n", 3, "is the URL 'hf://x', expected a local path"),
        ("pairs:\n  a:\n    pt: {hub: name}\n", 3, "hub is 'name', expected OWNER/NAME"),
        (
            "pairs:\n  a:\n    pt:\n      hub: o/n\n      revision: 12345678\n",
            5,
            "'12345678', expected text; put it in quotes",
        ),
        (
            "pairs:\n  a:\n    pt: {path: x, gguf_file: 1.5}\n",
            3,
            "gguf_file is '1.5', expected text; put it in quotes",
        ),
        (
            "pairs:\n  a:\n    pt: {path: !!python/name:os.system x}\n",
            3,
            "pair a, pt, path is 'x', expected text",
        ),
        # windows
        ("pairs:\n  a:\n    pt: {path: x}\n    windows: [0, 1]\n", 4, "pair a, windows is a list"),
        (
            "pairs:\n  a:\n    pt: {path: x}\n    windows:\n      w: 3\n",
            5,
            "window w is '3', expected [first block",
        ),
        (
            "pairs:\n  a:\n    pt: {path: x}\n    windows: {w: [1]}\n",
            4,
            "window w is a list, expected [first block",
        ),
        (
            "pairs:\n  a:\n    pt: {path: x}\n    windows: {w: [-1, 3]}\n",
            4,
            "window w is '-1', expected a whole number",
        ),
        (
            "pairs:\n  a:\n    pt: {path: x}\n    windows: {w: [0, '3']}\n",
            4,
            "window w is '3', expected a whole number",
        ),
        ("pairs:\n  a:\n    pt: {path: x}\n    windows: {w: [3, 3]}\n", 4, "window w [3, 3] is empty"),
        # prompts
        ("prompts:\n  p: x.jsonl\n", 2, "prompt set p is 'x.jsonl', expected `key: value`"),
        ("prompts:\n  p: {}\n", 2, "prompt set p lacks path"),
        ("prompts:\n  p: {path: 'https://x/y.jsonl'}\n", 2, "expected a local path"),
        # streams
        ("streams:\n  s: {}\n", 2, "stream s lacks template, continuation"),
        ("streams:\n  s:\n    template: raw\n", 3, "stream s lacks continuation"),
        (
            "streams:\n  s: {template: rare, continuation: own}\n",
            2,
            "'rare', expected one of raw, chat, native",
        ),
        (
            "streams:\n  s: {template: [raw], continuation: own}\n",
            2,
            "template is a list, expected one of raw",
        ),
        (
            "streams:\n  s:\n    template: raw\n    continuation: none\n    max_new_tokens: 3\n",
            5,
            "no new tokens",
        ),
        (
            "streams:\n  s: {template: raw, continuation: own, max_new_tokens: 0}\n",
            2,
            "expected a whole number from 1",
        ),
        (
            "streams:\n  s: {template: raw, continuation: own, max_new_tokens: 1.5}\n",
            2,
            "is '1.5', expected a whole",
        ),
        (
            "streams:\n  s: {template: raw, continuation: own, max_new_tokens: many}\n",
            2,
            "is 'many', expected a whole",
        ),
        (
            "streams:\n  s: {template: raw, continuation: own, max_new_tokens: " + "9" * 50 + "}\n",
            2,
            "expected a whole",
        ),
        # profiles
        ("profiles:\n  f: {logits: auto}\n", 2, "profile f lacks sites"),
        ("profiles:\n  f: {sites: resid}\n", 2, "sites is 'resid', expected a list"),
        ("profiles:\n  f: {sites: []}\n", 2, "sites is a list, expected a list"),
        (
            "profiles:\n  f:\n    sites:\n      - resid\n      - mlp\n",
            5,
            "a site is 'mlp', expected one of resid",
        ),
        ("profiles:\n  f: {sites: [resid, resid]}\n", 2, "names one thing twice: resid, resid"),
        (
            "profiles:\n  f: {sites: [resid], logits: some}\n",
            2,
            "logits is 'some', expected one of auto, topk",
        ),
        ("profiles:\n  f: {sites: [resid], dtype: int8}\n", 2, "dtype is 'int8', expected one of auto"),
        ("profiles:\n  f: {sites: [resid], shard_tokens: 0}\n", 2, "expected a whole number from 1"),
        ("profiles:\n  f: {sites: [resid], shard_tokens: {}}\n", 2, "shard_tokens is a block"),
        # lakes
        ("lakes:\n  l: {path: x}\n", 2, "lake l is a block of `key: value` lines, expected text"),
        ("lakes:\n  l: null\n", 2, "lake l is 'null', expected text"),
        ("lakes:\n  l: ' '\n", 2, "lake l is ' ', expected text"),
    ],
)
def test_a_mistake_is_reported_with_its_line(tmp_path, text, line, part):
    message = refused(write(tmp_path, text))
    assert message.startswith(f"{line}: ") and part in message


def test_files_that_cannot_be_catalogs_are_refused(tmp_path):
    assert "no such catalog" in refused(tmp_path / "absent.yaml")
    assert "cannot read the catalog" in refused(tmp_path)
    assert "the catalog is empty" in refused(write(tmp_path, "# nothing\n"))
    assert "expected at most 1000000" in refused(write(tmp_path, "#" * 1_000_001))
    assert "nested too deeply" in refused(write(tmp_path, "[" * 100_000))


def test_an_alias_that_contains_itself_ends_in_a_message(tmp_path):
    assert refused(write(tmp_path, "pairs: &a\n  b: *a\n")).startswith("2: pair b has no setting 'b'")


@given(st.text(max_size=60) | st.text("ab:{}[]-*&!? \n\t'\"#<1", max_size=60))
def test_no_text_gets_past_the_one_kind_of_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        load_catalog(path)
    except LakeError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)


# ---- windows


@pytest.mark.parametrize(
    ("pair", "blocks", "early", "mid", "late"),
    [
        ("gemma3_4b", 34, (0, 14), (10, 24), (20, 34)),
        ("llama31_8b", 32, (0, 13), (9, 22), (19, 32)),
        ("mistral_7b", 32, (0, 13), (9, 22), (19, 32)),
        ("olmo2_7b", 32, (0, 13), (9, 22), (19, 32)),
        ("qwen3_4b", 36, (0, 14), (11, 25), (22, 36)),
        ("deepseek_v2_lite", 27, (0, 11), (8, 19), (16, 27)),
        ("qwen25_32b", 64, (0, 26), (19, 45), (38, 64)),
    ],
)
def test_windows_of_the_seeds_pairs(pair, blocks, early, mid, late):
    """METHODS 1.6's table; the rule gives it, so that the catalog need not say it."""
    windows = default_windows(blocks) | load_catalog(module.PACKAGED).pair(pair).windows
    assert windows == {"early": early, "mid": mid, "late": late}
    lean = load_catalog(module.PACKAGED).profile("lean")
    assert resolve_boundaries(lean, blocks, windows) == (0, mid[0], late[0], blocks)


@given(st.integers(2, 300))
def test_default_windows_lie_in_the_stack_and_are_equally_wide(blocks):
    windows = default_windows(blocks)
    assert windows["late"] == (round(0.6 * blocks), blocks)
    assert len({stop - start for start, stop in windows.values()}) == 1
    assert all(0 <= start < stop <= blocks for start, stop in windows.values())


def test_a_model_of_one_block_has_no_windows():
    with pytest.raises(LakeError, match="a model of 1 blocks has no early"):
        default_windows(1)


# ---- queries/published.csv


def published() -> list[dict[str, str]]:
    with open(ROOT / "queries" / "rows" / "published.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_published_figures_have_their_shape():
    rows = published()
    assert list(rows[0]) == ["row", "model", "quantity", "value", "low", "high", "source"]
    keys = [(r["row"], r["model"], r["quantity"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {"L1", "L2", "L3", "L8", "L9", "0A", "0B", "0H", "exp10_P4", "exp16", "exp20", "exp23"} <= {
        r["row"] for r in rows
    }
    assert {r["model"] for r in rows} == {*SEED_PAIRS, "qwen25_32b", *POOLS}
    for r in rows:
        value = float(r["value"])
        assert bool(r["low"]) == bool(r["high"])
        assert not r["low"] or float(r["low"]) <= value <= float(r["high"])
        assert r["source"].startswith("METHODS ")


def test_published_pooled_figures_are_the_means_of_the_families():
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for r in published():
        values[r["row"], r["quantity"]][r["model"]] = float(r["value"])
    for row, quantity, pooled, members in [
        ("L1", "final20", "pooled6", SEED_PAIRS),
        ("L2", "cg_tuned", "dense5", DENSE5),
        ("L2", "cg_raw", "dense5", DENSE5),
        ("exp16", "js_ac_full", "dense5", DENSE5),
        ("exp16", "js_ac_pre", "dense5", DENSE5),
        ("exp16", "js_ac_final20", "dense5", DENSE5),
        ("exp23", "interaction", "dense5", DENSE5),
        *(("exp23", quantity, "dense6", [*DENSE5, "qwen25_32b"]) for quantity in ("late_pt", "late_it", "interaction")),
        ("exp11", "dkl_final20_late_tuned", "dense5", DENSE5),
        ("exp14", "dkl_final20_b_mid_tuned", "dense5", DENSE5),
        ("exp14", "dkl_final20_d_late_tuned", "dense5", DENSE5),
    ]:
        found = values[row, quantity]
        assert sum(found[m] for m in members) / len(members) == pytest.approx(found[pooled], abs=5.1e-4)


def test_conditions_of_free_generation(tmp_path):
    """Who writes and the edits, in words; the template is native unless it says."""
    text = """
conditions:
  plain: {variant: pt, edits: ["skip:layers=late"]}
  two: {variant: it, template: raw, edits: ["graft:layers=1", "zero:layers=2,site=attn"]}
"""
    (tmp_path / "catalog.yaml").write_text(text)
    found = load_catalog(tmp_path / "catalog.yaml")
    assert found.condition("plain") == ConditionSpec("plain", "pt", "native", ("skip:layers=late",))
    assert found.condition("two").edits == ("graft:layers=1", "zero:layers=2,site=attn")
    assert found.condition("two").template == "raw"
    with pytest.raises(LakeError, match="unknown condition 'plane'.* did you mean 'plain'"):
        found.condition("plane")
    for wrong, says in (
        ("{variant: xy, edits: [a]}", "variant is 'xy', expected one of pt, it"),
        ("{variant: it}", "lacks edits"),
        ("{variant: it, edits: []}", "expected a list"),
        ("{variant: it, edits: [3]}", "an edit is '3', expected text"),
        ("{variant: it, edits: [a], site: mlp}", "has no setting 'site'"),
    ):
        (tmp_path / "catalog.yaml").write_text(f"conditions:\n  mine: {wrong}\n")
        with pytest.raises(LakeError, match=f"catalog.yaml:2: .*{says}"):
            load_catalog(tmp_path / "catalog.yaml")


def test_packaged_conditions_are_understood():
    for condition in load_catalog(PACKAGED).conditions.values():
        assert parse_edits(condition.edits, 34, default_windows(34))


def test_models_pairs_and_chains_name_each_other(tmp_path):
    catalog = load_catalog(
        write(
            tmp_path,
            """\
models:
  base: {path: base}
  sft: {path: sft}
  dpo: {hub: o/dpo}
  odd: {path: odd, template: raw}
pairs:
  tuned: {pt: base, it: sft}
  preferred: {pt: sft, it: dpo}
  both: {pt: base, it: dpo, windows: {late: [1, 2]}}
  beside: {pt: {path: other}, it: sft}
chains:
  stages: [base, sft, dpo]
""",
        )
    )
    assert catalog.chains["stages"] == ("base", "sft", "dpo") and "pocket_stages" in catalog.chains
    other = load_catalog(write(tmp_path, "pairs:\n  pocket-sft: {pt: pocket-pt, it: pocket-it}\n"))
    assert "pocket_stages" not in other.chains and "pocket-sft" not in other.models  # the name is the pair's here
    assert catalog.pair("preferred").models == {"pt": "sft", "it": "dpo"}
    assert catalog.pair("beside").models == {"pt": "beside-pt", "it": "sft"}
    assert catalog.pair("tuned").it is catalog.pair("preferred").pt is catalog.model("sft")  # one checkpoint
    templates = {name: catalog.model(name).template for name in ("base", "sft", "dpo", "odd", "beside-pt")}
    assert templates == {"base": "raw", "sft": "chat", "dpo": "chat", "odd": "raw", "beside-pt": "raw"}
    assert catalog.pair("both").windows == {"late": (1, 2)}


def test_one_name_is_not_a_model_and_a_pair(tmp_path):
    path = write(tmp_path, "models: {mine: {path: x}}\npairs: {mine: {pt: {path: a}, it: {path: b}}}")
    with pytest.raises(LakeError, match="mine is a name in models and in pairs"):
        load_catalog(path)


def test_a_name_of_the_packaged_catalog_may_become_another_kind_of_thing(tmp_path):
    catalog = load_catalog(write(tmp_path, "pairs: {gemma3_4b-pt: {pt: {path: a}, it: {path: b}}}"))
    assert "gemma3_4b-pt" not in catalog.models and "gemma3_4b" not in catalog.pairs
