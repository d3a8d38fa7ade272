"""Installed size of actlake's core: what `pip install actlake` brings, and what each extra adds; exit code 1 above the limit.

Counts the files of installed distributions, following requirements from pyproject.toml; Python's bytecode, which pip compiles
and uv does not, is counted apart.
`python benchmarks/size.py` prints MB by package and in all.
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

LIMIT = 650  # MB of the core without bytecode
SHOWN = 12
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the installed distributions that some requirements bring, with their own."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = wanted.name.lower().replace("_", "-")
        if name == "actlake":
            waiting += [
                (Requirement(text), "") for each in wanted.extras for text in PROJECT["optional-dependencies"][each]
            ]
            continue
        key = f"{name}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        found.add(key)
        for text in distribution(name).requires or []:
            waiting += [(Requirement(text), each) for each in (*wanted.extras, "")]
    return {key.partition("[")[0] for key in found}


def size(name: str, bytecode: bool = False) -> int:
    """Bytes of a distribution's files: bytecode alone, or all but that."""
    files = {Path(str(file.locate())).resolve() for file in distribution(name).files or []}
    return sum(file.stat().st_size for file in files if file.is_file() and (file.suffix == ".pyc") == bytecode)


def main() -> None:
    """Print the sizes."""
    core = closure(PROJECT["dependencies"])
    sizes = {name: size(name) / 1e6 for name in core}
    for name, each in sorted(sizes.items(), key=lambda pair: -pair[1])[:SHOWN]:
        print(f"{name:20} {each:6.0f} MB")
    total = sum(sizes.values())
    compiled = sum(size(name, bytecode=True) for name in core) / 1e6
    print(f"{'core':20} {total:6.0f} MB in {len(core)} packages (limit {LIMIT} MB), and {compiled:.0f} MB of bytecode")
    for extra, requirements in PROJECT["optional-dependencies"].items():
        try:
            more = closure(requirements) - core
        except PackageNotFoundError as error:
            print(f"[{extra}]".ljust(21) + f"not measured: {error.name} is not installed")
            continue
        print(f"[{extra}]".ljust(21) + f"{sum(map(size, more)) / 1e6:6.0f} MB more in {len(more)} packages")
    sys.exit(total > LIMIT)


if __name__ == "__main__":
    main()
