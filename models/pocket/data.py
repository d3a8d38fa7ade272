"""Data of the pocket pair: plain text for PT, instruction pairs for IT, held-out prompts.

python data.py text    --work DIR    # DIR/pt.txt, DIR/pt_heldout.txt, DIR/sources.json
python data.py chat    --work DIR    # DIR/it.jsonl, DIR/it_heldout.jsonl
python data.py prompts --work DIR    # prompts/pocket.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import facts
import prompt_set
import talk
from chat import TASKS
from formats import shaped
from items import Item, Maker
from render import describe
from sources import SOURCES, WORDNET, obtain
from wordnet import Synset, WordNet, held_out

SEED = 20261123
SMALL = {"refusal", "harmless", "small_talk", "fact", "letter", "next_day", "opposite"}
UNKIND = re.compile(
    r"\b(slur|offensive|vulgar|obscene|disparag|derogat|sexual|coitus|hymen|whore|prostitut|nigger|"
    r"genital|erotic|fellat|penis|vagina)",
    re.I,
)


def load_wordnet(work: Path) -> WordNet:
    return WordNet(obtain(WORDNET, work) / "usr/share/wordnet")


def clean(text: str) -> str:
    return "" if UNKIND.search(text) else re.sub(r"\n{2,}", "\n", text).strip()


def wordnet_documents(net: WordNet, rng: random.Random) -> list[str]:
    """Every synset once, common ones up to seven times; related ones share a document."""
    docs = []
    for item in net.synsets.values():
        times = 1 + (item.count > 0) + 2 * (item.count > 2) + 3 * (item.count > 15)
        for _ in range(times):
            pieces = [describe(net, item, rng)]
            near: list[Synset] = []
            if item.count or rng.random() < 0.2:
                for kind in ("hyponym", "similar", "part", "hypernym"):
                    near += net.linked(item, kind)
            for other in rng.sample(near, min(len(near), rng.choice([0, 0, 1, 2, 3]))):
                pieces.append(describe(net, other, rng))
            docs.append("\n".join(p for p in map(clean, pieces) if p))
    return docs


def own_documents(rng: random.Random, count: int = 9000) -> list[str]:
    docs = []
    for _ in range(count):
        docs.append(facts.story(rng))
        docs.append(" ".join(facts.statement(rng) for _ in range(rng.randint(3, 9))))
    return docs


def build_text(work: Path) -> None:
    rng = random.Random(SEED)
    kept: list[str] = []
    record = []

    def take(name: str, licence: str, package: str, note: str, docs: list[str]) -> None:
        docs = [d for d in map(clean, docs) if len(d) > 40]
        kept.extend(docs)
        size = sum(len(d.encode()) for d in docs)
        record.append(
            {"name": name, "package": package, "licence": licence, "note": note, "documents": len(docs), "bytes": size}
        )
        print(f"{name:12} {len(docs):7} documents {size / 1e6:7.2f} MB", flush=True)

    net = load_wordnet(work)
    take("wordnet", WORDNET.licence, f"{WORDNET.client} {WORDNET.package}", WORDNET.note, wordnet_documents(net, rng))
    take("own", "this project's licence", "-", "number facts, everyday facts, simple stories", own_documents(rng))
    for source in SOURCES:
        take(
            source.name,
            source.licence,
            f"{source.client} {source.package}",
            source.note,
            list(source.read(obtain(source, work))),
        )
    rng.shuffle(kept)
    held, rest = kept[:400], kept[400:]
    (work / "pt_heldout.txt").write_text("\n\n".join(held), encoding="utf-8")
    (work / "pt.txt").write_text("\n\n".join(rest), encoding="utf-8")
    (work / "sources.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def build_chat(work: Path, count: int) -> None:
    """Training pairs name no held-out word or slot; held-out pairs turn on one."""
    rng = random.Random(SEED + 1)
    maker = Maker(load_wordnet(work))
    tasks = [*TASKS, (shaped, 14)]
    train: dict[str, Item] = {}
    held: dict[str, Item] = {}
    chosen = rng.choices([t for t, _ in tasks], [w for _, w in tasks], k=count * 4)
    for task in chosen:
        if len(train) >= count:
            break
        item = task(maker, rng)
        if item is None or len(item.answer) > 320:
            continue
        if held_out(item.key):
            held.setdefault(item.user, item)
        elif not any(map(held_out, item.others)):
            train.setdefault(item.user, item)
    for user, answer in talk.FIXED:
        train[user] = Item("small_talk", user, answer, user)
    assert not set(train) & set(held)
    for name, items in (("it", train), ("it_heldout", held)):
        rows = list(items.values())
        if name == "it":
            rows += [row for row in rows if row.task in SMALL]  # small tasks are seen twice an epoch
        rng.shuffle(rows)
        with open(work / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps({k: v for k, v in asdict(row).items() if v and k != "others"}) + "\n")
        print(name, len(items), "distinct pairs,", len(rows), "rows", dict(Counter(row.task for row in rows)))


def build_prompts(work: Path) -> None:
    """prompts/pocket.jsonl, checked against the training pairs."""
    trained = {json.loads(line)["user"] for line in (work / "it.jsonl").read_text(encoding="utf-8").splitlines()}
    rows = prompt_set.build(Maker(load_wordnet(work)), trained, SEED + 2)
    path = Path(__file__).resolve().parents[2] / "prompts" / "pocket.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(len(rows), "prompts", dict(Counter(row["category"] for row in rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["text", "chat", "prompts"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=36000)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "text":
        build_text(args.work)
    elif args.stage == "chat":
        build_chat(args.work, args.pairs)
    else:
        build_prompts(args.work)


if __name__ == "__main__":
    main()
