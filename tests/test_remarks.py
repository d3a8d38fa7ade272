"""What a user is told of a pair of equal weights, and the lists of rows and tables."""

import json

import tiny
from actlake.capture.checkpoint.tokens import check_vocabularies
from actlake.capture.streams.capture_pair import Options, sources_of
from actlake.cli.main import app
from actlake.lake import Lake
from actlake.store.core.catalog import PairSpec
from typer.testing import CliRunner

REMARK = "pt and it of twin have equal weights"


def test_equal_weights_are_remarked_at_capture_and_in_answers(tmp_path, capsys):
    folder = tiny.make_model(tmp_path / "model")
    pair = PairSpec("twin", tiny.spec(folder, "twin-pt"), tiny.spec(folder, "twin-it"), {})
    layout = tiny.capture(tmp_path / "lake", pair, tiny.TEACHER)
    assert REMARK in " ".join(capsys.readouterr().err.split())
    assert REMARK in Lake(layout.root).run("exp16").sentence


def test_ids_that_mean_another_token_to_each_model_are_remarked(tmp_path, capsys):
    pair = tiny.make_pair(tmp_path / "pair")
    tiny.add_token(pair.pt.path, "<|hole|>")
    tiny.add_token(pair.it.path, "<|tool|>")
    sources_of(pair, ("pt", "it"), [tiny.TEACHER], Options())
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "pair llama: 1 ids mean another token to each model, such as 300: '<|hole|>' for pt, '<|tool|>' for it" in said
    )
    words = {chr(number): number for number in range(60, 90)}
    check_vocabularies(words, words | {"<y>": 90}, "same")
    assert not capsys.readouterr().err


def test_unequal_weights_are_not(captured, capsys):
    assert "equal weights" not in Lake(captured.root).run("exp16", probes=False).sentence


def test_rows_and_tables_are_listed(lake):
    run = CliRunner().invoke
    rows = json.loads(run(app, ["rows", "--json"]).output)
    assert len(rows) == 39 and {"row", "title", "how", "streams", "tables"} <= rows[0].keys()
    assert "Attention entropy" in run(app, ["rows", "l9"]).output
    columns = json.loads(run(app, ["tables", "lens", "--json", "--lake", str(lake.root)]).output)
    (found,) = [one for one in columns if one["column"] == "kl_final_layer"]
    assert found["type"] == "FLOAT" and {"unit", "meaning"} <= found.keys() and found["meaning"]
    assert {"lens", "tokens"} <= {
        one["table"] for one in json.loads(run(app, ["tables", "--json", "--lake", str(lake.root)]).output)
    }
    wrong = run(app, ["tables", "lense", "--lake", str(lake.root)])
    assert "did you mean 'lens'" in str(wrong.exception)
