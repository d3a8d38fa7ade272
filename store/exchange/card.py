"""A lake on the hub: what can be pushed there, and its dataset card (what is in it, of whose models, how to open and cite it)."""

import json
from collections.abc import Sequence

from ..captures.precision import precision_words
from ..captures.verify import reference
from ..core.errors import LakeError
from ..core.files import human_bytes
from ..core.schema import MANIFEST
from ..remote.store import Store
from .transfer import Unit

NAME, MARK = "README.md", "<!-- written by actlake -->"


def check_hub(source: Store, target: Store, units: Sequence[Unit]) -> None:
    """LakeError for what can't be committed to the hub: files of a lake that is no folder, and files that would be replaced."""
    if not source.local:
        raise LakeError(f"{target}: a lake goes to the hub from a folder", repair=f"`actlake pull {source}` first")
    if kept := [name for unit in units for name in unit.keep]:
        raise LakeError(
            f"{target}: has {kept[0]} with other content, which nothing replaces on the hub",
            repair="push to another dataset, revision or folder",
        )


def keep_card(lake: Store) -> bool:
    """Write the card of a lake on the hub, unless somebody wrote one of their own; whether it was written."""
    there = lake.record(NAME)
    if there is not None and MARK.encode() not in there:
        return False
    text = card(lake).encode()
    if text == there:
        return False
    with lake.together("dataset card"):
        lake.put(NAME, text)
    return True


def card(lake: Store) -> str:
    """The text of the card, Markdown with the hub's metadata."""
    models, captures = _models(lake), _captures(lake)
    lines = [
        "---",
        "tags: [activations, interpretability, actlake]",
        "---",
        MARK,
        "",
        "# An activation lake",
        "",
        "Hidden states of language models on frozen token streams, in chunked Zarr arrays with records and hashes, and tables"
        " made of them. Written by actlake.",
        "",
        "```python",
        "import actlake",
        "",
        f'lake = actlake.open("{lake}")',
        "lake.captures",
        "```",
        "",
        "| model | checkpoint | revision |",
        "| --- | --- | --- |",
        *(f"| {name} | {identity} | {revision} |" for name, identity, revision in models),
        "",
        "| capture | prompts | tokens | size | cite as |",
        "| --- | --- | --- | --- | --- |",
        *captures,
        "",
        "**Licence.** What is stored is computed from the models above: their licences say what may be done with it. Add"
        " `license:` to the metadata of this card.",
        "",
        "**Check.** `actlake verify --lake URL` compares every file with its recorded hash; `actlake cite MODEL/STREAM` prints a"
        " reference that names the exact bytes.",
        "",
    ]
    return "\n".join(lines)


def _models(lake: Store) -> list[tuple[str, str, str]]:
    found = []
    for folder in lake.list("models")[0]:
        if record := lake.record(f"{folder}/model.json"):
            facts = json.loads(record)
            found.append((folder.split("/")[1], _cell(facts.get("id")), _cell(facts.get("revision"))))
    return found


def _captures(lake: Store) -> list[str]:
    found = []
    for model in lake.list("captures")[0]:
        for capture in lake.list(model)[0]:
            if record := lake.record(f"{capture}/{MANIFEST}"):
                facts = json.loads(record)
                name = capture.removeprefix("captures/").removesuffix(".zarr")
                rounded = f", rounded: {words}" if (words := _cell(precision_words(facts))) != "-" else ""
                numbers = f"{facts['n_prompts']} | {facts['n_tokens']:,} | {human_bytes(facts['bytes'])}{rounded}"
                found.append(f"| {name} | {numbers} | `{reference(name, facts)}` |")
    return found


def _cell(text: object) -> str:
    """A value in a cell of a table; what could break the table, or be markup, is left out."""
    kept = "".join(c for c in str(text or "-") if c.isalnum() or c in "-_./:@, ")
    return kept or "-"
