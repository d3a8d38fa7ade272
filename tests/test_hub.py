"""Lakes at hf://, against a stand-in for the hub that answers what its client asks: repositories, trees, files by range."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import huggingface_hub
import numpy as np
import pytest
import tiny
from actlake.lake import Lake
from actlake.store.captures.reader import Capture, find_capture
from actlake.store.core.errors import LakeError
from actlake.store.exchange.plan import Planner, origin_of
from actlake.store.exchange.transfer import Selection, move
from actlake.store.format.paths import Layout
from actlake.store.remote.opening import open_store
from aiohttp import web
from servers import Web

SQL = "SELECT variant, layer, avg(kl_final_layer) AS kl, count(*) AS n FROM lens GROUP BY ALL ORDER BY ALL"


class Hub(Web):
    """One dataset, org/lake, whose revisions are the folders of the server's; `commits` are their titles and files."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.commits: list[tuple[str, list[str]]] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind, *rest = request.path.strip("/").split("/")
        if kind == "datasets" and rest[:3] == ["org", "lake", "resolve"]:
            return await super()._answer(request.clone(rel_url="/" + "/".join(rest[3:])))
        if kind != "api" or rest[:3] != ["datasets", "org", "lake"]:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.method == "POST":
            return await self._write(request, *rest[3:])
        action, revision, *path = rest[3:] or ["revision", "main"]
        root = self.folder / revision
        if not root.is_dir():
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if action == "revision":
            return web.json_response({"id": "org/lake", "sha": "1" * 40})
        assert action == "tree", request.path
        folder = root.joinpath(*path)
        self.requests.append((request.path, "", 0))
        if not folder.is_dir():
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        found = folder.rglob("*") if request.query.get("recursive", "").lower() == "true" else folder.iterdir()
        return web.json_response([_listed(file, root) for file in sorted(found)])

    async def _write(self, request: web.Request, action: str, revision: str) -> web.Response:
        """A commit: how each file is sent, then all of them at once."""
        if action == "preupload":
            asked = (await request.json())["files"]
            return web.json_response(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        assert action == "commit", request.path
        head, *lines = [json.loads(line) for line in (await request.text()).splitlines()]
        self.commits.append((head["value"]["summary"], [line["value"]["path"] for line in lines]))
        for line in lines:
            assert line["key"] == "file"
            file = self.folder / revision / line["value"]["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(line["value"]["content"]))
        return web.json_response(
            {"commitUrl": f"{self.url}/datasets/org/lake/commit/{'2' * 40}", "commitOid": "2" * 40}
        )


def _listed(file: Path, root: Path) -> dict[str, object]:
    name, is_file = file.relative_to(root).as_posix(), file.is_file()
    oid = hashlib.sha1(file.read_bytes() if is_file else name.encode()).hexdigest()
    return {
        "type": "file" if is_file else "directory",
        "path": name,
        "oid": oid,
        "size": file.stat().st_size * is_file,
    }


@pytest.fixture
def hub(captured, tmp_path, monkeypatch):
    """A hub with the captured lake in branch main, there also in a folder, and with half of it in branch v1."""
    for place in ("main", "main/below/lake", "v1"):
        shutil.copytree(captured.root, tmp_path / "hub" / place, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "hub" / "v1" / "captures" / "llama-it")
    server = Hub(tmp_path / "hub")
    server.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url})
    yield server
    server.stop()


@pytest.mark.parametrize("url", ["hf://datasets/org/lake", "hf://datasets/org/lake@main/below/lake"])
def test_a_lake_on_the_hub_is_the_lake(hub, captured, url, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # as on a terminal
    lake, local = Lake(url), Lake(captured.root)
    columns = ["model", "stream", "tokens", "bytes", "sealed"]
    assert lake.captures[columns].equals(local.captures[columns])
    for row in lake.captures.itertuples():
        found = Capture(Path(row.path), lake=lake.layout.files)
        expected = Capture(captured.root / Path(row.path).relative_to(lake.layout.root))
        for name in expected.group.array_keys():
            assert np.array_equal(found.array(name)[...], expected.array(name)[...])
    there = tiny.tree(hub.folder).keys()
    assert lake.sql(SQL).df().equals(local.sql(SQL).df())
    assert tiny.tree(hub.folder).keys() == there  # what was made of it stays here
    assert not capfd.readouterr().err  # the client's own bars stay away


def test_a_revision_is_a_lake_of_its_own(hub):
    assert set(Lake("hf://datasets/org/lake@v1").captures["model"]) == {"llama-pt"}
    assert set(Lake("hf://datasets/org/lake").captures["model"]) == {"llama-pt", "llama-it"}


def test_only_the_bytes_that_are_asked_for_are_sent(hub, captured):
    path = find_capture(captured, "llama-it", "native")
    layout = Layout.open("hf://datasets/org/lake")
    array = Capture(layout.root / path.relative_to(captured.root), lake=layout.files).array("resid")
    hub.requests.clear()
    assert np.array_equal(array[:10, 2], Capture(path).array("resid")[:10, 2])
    shard = path / "resid" / "c" / "0" / "0" / "0"
    assert 0 < hub.sent < shard.stat().st_size / 2
    assert all(asked.startswith("bytes=") for name, asked, _ in hub.requests if not name.startswith("/api/"))


def test_a_lake_is_pulled_from_the_hub(hub, captured, tmp_path):
    move(Planner(origin_of("hf://datasets/org/lake@v1"), origin_of(str(tmp_path / "copy")), Selection()).plan())
    for file in (tmp_path / "copy").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (captured.root / file.relative_to(tmp_path / "copy")).read_bytes()
    assert set(Lake(tmp_path / "copy").captures["model"]) == {"llama-pt"}


def test_what_the_hub_lacks_or_refuses_is_told_at_once(hub, captured):
    with pytest.raises(LakeError, match=r"no lake at hf://datasets/org/lake/nowhere \(no lake.json\)"):
        Layout.open("hf://datasets/org/lake/nowhere")
    with pytest.raises(LakeError, match=r"no lake at hf://datasets/org/other \(no lake.json\)"):
        Layout.open("hf://datasets/org/other")
    place = open_store("hf://datasets/org/lake")
    with pytest.raises(LakeError, match="hf:// is read-only here"):
        place.put("lake.json", b"{}")
    assert place.entry("lake.json")
    hub.failures += [403] * 20
    with pytest.raises(LakeError, match=r"lake.json: access denied \(HTTP 403\)"):
        place.read("lake.json")
    assert len(hub.failures) == 19


def test_a_lake_is_pushed_in_commits_with_a_card(hub, captured):
    """Each unit is one commit, whose records come last; a second push has nothing to do, and keeps a card somebody wrote."""
    new = hub.folder / "main" / "new"
    new.mkdir()
    (new / ".gitattributes").write_text("*.parquet filter=lfs\n")  # as the hub makes it
    url, mine = "hf://datasets/org/lake/new", Lake(captured.root)
    plan = mine.push(url)
    assert plan.bytes > 0 and len(hub.commits) == len(plan.todo) + 1
    titles = [title for title, _ in hub.commits]
    assert titles[0] == "actlake: lake.json" and titles[-1] == "actlake: dataset card"
    for title, files in hub.commits:
        if ".zarr" in title and "captures/" in title:
            assert files[-1].endswith("manifest.json") and sum(name.endswith("manifest.json") for name in files) == 1
    there = tiny.tree(new)
    for name, data in tiny.tree(captured.root).items():
        assert there[name] == data, name
    text = there["README.md"].decode()
    assert text.startswith("---\ntags:") and f'actlake.open("{url}")' in text
    for row in mine.captures.itertuples():
        assert f"`{mine.cite(f'{row.model}/{row.stream}')['reference']}`" in text
    assert Lake(url).sql(SQL).df().equals(mine.sql(SQL).df())
    count = len(hub.commits)
    assert not mine.push(url).todo and len(hub.commits) == count
    (new / "README.md").write_text("my own words\n")
    mine.push(url)
    assert (new / "README.md").read_text() == "my own words\n"


def test_what_the_hub_can_t_take_is_said_before(hub, captured, tmp_path):
    with pytest.raises(LakeError, match="a lake goes to the hub from a folder.*actlake pull"):
        Lake("hf://datasets/org/lake").push("hf://datasets/org/lake/new")
    with pytest.raises(LakeError, match="no such dataset or revision.*hf repo create OWNER/NAME"):
        Lake(captured.root).push("hf://datasets/org/other")


def test_the_command_reads_the_hub(hub, captured, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from actlake.cli.main import main; main()",
        "ls",
        "--lake",
        "hf://datasets/org/lake",
        "--json",
    ]
    variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(json.loads(done.stdout)) == len(Lake(captured.root).captures)


def test_an_address_without_a_name_is_refused() -> None:
    with pytest.raises(LakeError, match="lake hf://: expected hf://datasets/OWNER/NAME, found no name"):
        open_store("hf://")
