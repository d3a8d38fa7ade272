"""Every causal-LM class of the installed transformers as a tiny random model: right, refused (why), wrong or traceback.

    python benchmarks/families.py [--only NAME ...]

One line a class, then the counts. A class takes about two seconds on one core.
"""

import argparse
import logging
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import families
import torch
import transformers


def main() -> None:
    """Examine the classes and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=families.NAMES, metavar="NAME", help="model types, e.g. llama falcon"
    )
    names = parser.parse_args().only
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable()
    found = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            verdict = families.examine(name, Path(folder))
        found.append(verdict)
        print(f"{verdict.kind:9} {verdict.name:24} {verdict.reason}", flush=True)
    counts = Counter(verdict.kind for verdict in found)
    print(f"\n{len(found)} classes (transformers {transformers.__version__}, torch {torch.__version__}): ", end="")
    print(", ".join(f"{counts[kind]} {kind}" for kind in ("right", "refused", "wrong", "traceback", "unbuilt")))
    reasons = Counter(reason(verdict.reason) for verdict in found if verdict.kind == "refused")
    for why, count in reasons.most_common():
        print(f"{count:4} {why}")


def reason(message: str) -> str:
    """A refusal's reason without what differs between classes: numbers, class names, examples in brackets."""
    text = message.split(": ", 2)[-1]
    return re.sub(r"\d+", "N", re.sub(r"\(.*?\)", "()", text))[:110]


if __name__ == "__main__":
    main()
