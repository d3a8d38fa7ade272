"""Settings files in YAML: read as a tree of nodes, checked by hand.

The parser never turns them into objects, so that no file can run code and every complaint can name its line.
"""

import difflib
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .errors import LakeError

LARGEST = 1_000_000  # bytes; a file of settings is a page or two
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def compose(file: Path, what: str) -> Node | None:
    """Parse a YAML file into nodes, None when it is empty; `what` it should be stands in messages, as in 'catalog'.

    Whatever the parser dislikes is a LakeError of one line that names the file and the line.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise LakeError(f"{file}: no such {what}") from None
    except OSError as error:
        raise LakeError(f"{file}: cannot read the {what} ({error.strerror})") from None
    if len(data) > LARGEST:
        raise LakeError(f"{file}: {len(data)} bytes, expected at most {LARGEST}; is this a {what}?")
    try:
        text = data.decode("utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LakeError(f"{file}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise LakeError(f"{file}:{line}: character {error.character!r} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise LakeError(f"{where}: not valid YAML ({error.problem or error.context})") from None
    except RecursionError:
        raise LakeError(f"{file}: nested too deeply for a {what}") from None


class NodeReader:
    """Turns nodes of one file into checked values; every complaint names the file and the line."""

    def __init__(self, file: Path):
        self.file = file

    def error(self, node: Node, message: str) -> LakeError:
        """The complaint about a node, to be raised."""
        return LakeError(f"{self.file}:{node.start_mark.line + 1}: {message}")

    def mapping(
        self, node: Node, what: str, keys: Iterable[str] | None = None, required: Iterable[str] = ()
    ) -> dict[str, Node]:
        """Key -> value node; `keys` are the only ones allowed (None: any name)."""
        if not isinstance(node, MappingNode):
            raise self.error(node, f"{what} is {kind_of(node)}, expected `key: value` lines")
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            if keys is not None and name not in keys:
                known = f"known are {listed(keys)}{hint(name, keys)}"
                raise self.error(key, f"{what} has no setting {name!r}; {known}")
            if not NAME.fullmatch(name):
                raise self.error(key, f"{what}: {name!r} is no name; names are letters, digits, _ . and -")
            if name in found:
                raise self.error(key, f"{what}: {name!r} is already on line {lines[name]}; keep one")
            found[name], lines[name] = value, key.start_mark.line + 1
        if missing := [key for key in required if key not in found]:
            raise self.error(node, f"{what} lacks {listed(missing)}")
        return found

    def text(self, node: Node, what: str) -> str:
        """Text that is not blank."""
        if not isinstance(node, ScalarNode) or not node.tag.endswith(":str") or not node.value.strip("\0 \t\n"):
            quote = "; put it in quotes" if isinstance(node, ScalarNode) and node.value.strip() else ""
            raise self.error(node, f"{what} is {kind_of(node)}, expected text{quote}")
        return str(node.value)

    def choice(self, node: Node, what: str, known: Iterable[str]) -> str:
        """One of the known words."""
        # The bare word is taken as it stands, so that `none` and `off` need no quotes.
        value = str(node.value) if isinstance(node, ScalarNode) else None
        if value is None or value not in known:
            raise self.error(node, f"{what} is {kind_of(node)}, expected one of {listed(known)}")
        return value

    def each(self, node: Node, what: str, names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
        """Name -> one of the known words: the one that stands there for all of the names, or those of a mapping for some."""
        if isinstance(node, MappingNode):
            found = self.mapping(node, what, names).items()
            return {name: self.choice(value, f"{what}, {name}", known) for name, value in found}
        return dict.fromkeys(names, self.choice(node, what, known))

    def whole(self, node: Node, what: str, least: int) -> int:
        """A whole number from `least`."""
        digits = isinstance(node, ScalarNode) and re.fullmatch(r"0|[1-9][0-9]{0,11}", node.value)
        if not digits or not node.tag.endswith(":int") or int(node.value) < least:
            raise self.error(node, f"{what} is {kind_of(node)}, expected a whole number from {least}")
        return int(node.value)

    def growing(self, node: MappingNode, what: str, name: str) -> tuple[tuple[int, ...], list[Node]]:
        """Whole numbers that grow, each with what it names."""
        numbers = tuple(self.whole(key, f"{what}, a {name}", 0) for key, _ in node.value)
        if any(one >= other for one, other in pairwise(numbers)):
            raise self.error(node, f"{what}: expected {name}s that grow, found {listed(map(str, numbers))}")
        return numbers, [part for _, part in node.value]

    def list(self, node: Node, what: str, example: str) -> list[Node]:
        """The nodes of a list with at least one entry and none twice."""
        if not isinstance(node, SequenceNode) or not node.value:
            raise self.error(node, f"{what} is {kind_of(node)}, expected a list: {example}")
        names = [part.value for part in node.value if isinstance(part, ScalarNode)]  # others may hold themselves
        if len(set(names)) < len(names):
            raise self.error(node, f"{what} names one thing twice: {listed(names)}")
        return node.value


def kind_of(node: Node) -> str:
    """What a node looks like to the person who wrote it."""
    if isinstance(node, ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, SequenceNode) else "a block of `key: value` lines"


def listed(names: Iterable[str]) -> str:
    """Names with commas between them."""
    return ", ".join(names) or "none"


def hint(name: str, known: Iterable[str]) -> str:
    """What a misspelt name may have meant, to follow a message; empty when nothing is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
