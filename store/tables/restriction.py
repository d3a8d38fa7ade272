"""Which models a statement is about, where it says so: tables of all others need not be read, nor computed."""

from collections.abc import Iterator
from typing import Any

from .declared import TABLES
from .names import Pairs
from .statements import tree_of

COLUMNS = ("model", "model_pt", "model_it")


def only_models(sql: str, pairs: Pairs) -> frozenset[str] | None:
    """Some models, one of which every row of a statement is of; None where the statement does not say.

    It does when it is one SELECT from one table, with no other inside, whose WHERE names a pair or models: `pair = 'X'`,
    `model IN ('X-pt', 'X-it')`, alone or with more after AND.
    """
    parsed = tree_of(sql)
    statements = [] if parsed.get("error") else parsed["statements"]
    if len(statements) != 1 or sum(each in ("SELECT_NODE", "SET_OPERATION_NODE") for each in _types(statements)) != 1:
        return None
    node = statements[0]["node"]
    source = node.get("from_table") or {}
    if source.get("type") != "BASE_TABLE" or not _is_table(str(source.get("table_name")).lower()) or node.get("sample"):
        return None
    found = []
    for column, values in _wanted(node.get("where_clause")):
        if column == "pair":
            values = [model for pair in values for model in pairs.get(pair, {}).values()]
        found.append(frozenset(values))
    return min(found, key=len, default=None)  # any one of them holds for every row


def _is_table(name: str) -> bool:
    """Whether each row is of the models that it names: those of a view may come from other models' rows, too."""
    return name in TABLES or name in ("outputs", "captures", "streams")


def _types(node: Any) -> Iterator[str]:
    """The types of all parts of a statement."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _types(child)


def _wanted(condition: Any) -> Iterator[tuple[str, list[str]]]:
    """(column, texts) of what a condition asks for in any case: the column is one of these."""
    if not isinstance(condition, dict):
        return
    kind = condition.get("type")
    if kind == "CONJUNCTION_AND":
        for child in condition["children"]:
            yield from _wanted(child)
        return
    parts = [condition.get("left"), condition.get("right")] if kind == "COMPARE_EQUAL" else []
    parts = condition.get("children", []) if kind == "COMPARE_IN" else parts
    columns = [part for part in parts if isinstance(part, dict) and part.get("type") == "COLUMN_REF"]
    texts = [_text(part) for part in parts if part not in columns]
    name = columns[0]["column_names"][-1].lower() if len(columns) == 1 else ""
    if name in ("pair", *COLUMNS) and texts and None not in texts and (kind != "COMPARE_IN" or parts[0] is columns[0]):
        yield name, [text for text in texts if text is not None]


def _text(part: Any) -> str | None:
    """A constant text, None for anything else."""
    if not isinstance(part, dict) or part.get("type") != "VALUE_CONSTANT":
        return None
    literal, value = part.get("literal") or {}, part.get("value") or {}  # of DuckDB from 2.0 on, and before
    found = literal.get("text") if literal.get("kind") == "STRING" else None
    return value.get("value") if value.get("type", {}).get("id") == "VARCHAR" else found
