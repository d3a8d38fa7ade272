"""What the pocket pair can show, on held-out data: prints a table and writes check.json.

python check.py --work DIR                      # DIR as left by data.py and train.py
python check.py --work DIR --models sft dpo     # other stages, with the chat template alone, into the same file
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tokens import EOS, chat_ids, text_batch, text_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
PROMPTS = HERE.parents[1] / "prompts" / "pocket.jsonl"
NEW, BATCH = 96, 64
REFUSAL = re.compile(r"\b(sorry|can ?not help|can't help|cannot|will not help)\b", re.I)


def load(kind: str) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(HERE / kind, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(HERE / kind)


def answer_loss(model: Any, tokenizer: Any, pairs: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Mean nats per answer token (with the closing <|eos|>) under the chat template, overall and by task."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for pair in pairs:
        ids, start = chat_ids(tokenizer, pair["user"], pair["answer"])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum")
        for name in (pair["task"], ""):
            total[name][0] += float(loss)
            total[name][1] += len(ids) - start
    means = {name: value / count for name, (value, count) in total.items()}
    return means.pop(""), means


def plain_loss(model: Any, work: Path, rows: int = 120) -> float:
    """Mean nats per token on held-out plain text, rows of 256."""
    stream, total = text_tokens(work, "pt_heldout"), 0.0
    with torch.no_grad():
        for step in range(rows // 8):
            ids = text_batch(stream, step, 8)
            logits = model(ids).logits[:, :-1]
            labels = ids[:, 1:].clone()
            labels[labels == 1] = -100
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    return total / (rows // 8)


def greedy(model: Any, tokenizer: Any, texts: list[str], chat: bool) -> list[tuple[str, bool]]:
    """The greedy reply to every text and whether it ended its turn; prompts of equal length share a batch."""
    groups: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for place, text in enumerate(texts):
        message = [{"role": "user", "content": text}]
        ids = (
            tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
            if chat
            else tokenizer(text)["input_ids"]
        )
        groups[len(ids)].append((place, ids))
    out: list[tuple[str, bool]] = [("", False)] * len(texts)
    for members in groups.values():
        for at in range(0, len(members), BATCH):
            part = members[at : at + BATCH]
            batch = torch.tensor([ids for _, ids in part])
            with torch.no_grad():
                made = model.generate(
                    batch, attention_mask=torch.ones_like(batch), max_new_tokens=NEW, do_sample=False
                )[:, batch.shape[1] :]
            for (place, _), row in zip(part, made, strict=True):
                text = tokenizer.decode(row.tolist())
                out[place] = (text.split(EOS)[0].replace("<|pad|>", ""), EOS in text)
    return out


def bullets(text: str) -> int:
    return len(re.findall(r"^\s*[-*\u2022] +\S", text, re.M))


def meets(text: str, kind: str, value: Any) -> bool:
    """Whether a reply meets one criterion."""
    text = text.strip()
    sentences = [s for s in re.split(r"[.!?]+", text) if s.strip()]
    if kind == "json":
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False
    tests = {
        "bullet_list": lambda: bullets(text) >= value,
        "no_commas": lambda: "," not in text,
        "all_lowercase": lambda: text == text.lower(),
        "all_uppercase": lambda: text == text.upper(),
        "wrapped_in_quotes": lambda: len(text) > 1 and text[0] == text[-1] == '"',
        "word_count_max": lambda: len(text.split()) <= value,
        "word_count_min": lambda: len(text.split()) >= value,
        "sentence_count_max": lambda: len(sentences) <= value,
        "sentence_count_min": lambda: len(sentences) >= value,
        "ends_with": lambda: text.endswith(value),
        "contains_phrase": lambda: value.lower() in text.lower(),
        "contains_all_keywords": lambda: all(w.lower() in text.lower() for w in value),
        "highlighted_sections": lambda: len(re.findall(r"\*\*[^*\n]+\*\*", text)) >= value,
        "markdown_sections": lambda: len(re.findall(r"^#{1,6} ", text, re.M)) >= value,
        "has_placeholders": lambda: len(re.findall(r"\[[^\]]+\]", text)) >= value,
    }
    return bool(text) and tests[kind]()


def right(prompt: dict[str, Any], reply: str) -> bool | None:
    """The score of one reply, None where only a judge could say."""
    if "answer" in prompt:
        said = re.search(rf"\b{re.escape(prompt['answer'].lower())}\b", reply.lower())
        if not said or "choices" not in prompt:
            return bool(said)
        places = {c: reply.lower().find(c.lower()) for c in prompt["choices"]}
        first = min((p, c) for c, p in places.items() if p >= 0)[1]
        return bool(first == prompt["answer"])
    if "criteria" in prompt:
        return all(meets(reply, c["type"], c["value"]) for c in prompt["criteria"])
    if "expect" in prompt:
        return bool(REFUSAL.search(reply[:200])) == (prompt["expect"] == "refuse")
    return None


def share(values: list[Any]) -> float:
    return round(sum(map(bool, values)) / max(1, len(values)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=800)
    parser.add_argument("--out", type=Path, default=HERE / "check.json")
    parser.add_argument("--models", nargs="+", default=["pt", "it"], help="stages to check")
    args = parser.parse_args()
    held = [json.loads(s) for s in (args.work / "it_heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [json.loads(s) for s in PROMPTS.read_text(encoding="utf-8").splitlines()]
    lists = [p for p in held if p["task"] == "list"][:100]
    report: dict[str, Any] = {
        "held_out_pairs": args.pairs,
        "prompts": len(prompts),
        "list_prompts": len(lists),
        "new_tokens": NEW,
    }
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    pair = args.models == ["pt", "it"]
    for kind in args.models:
        model, tokenizer = load(kind)
        report["parameters"] = sum(p.numel() for p in model.parameters())
        loss, by_task = answer_loss(model, tokenizer, held[: args.pairs])
        one: dict[str, Any] = {
            "answer_loss": round(loss, 4),
            "plain_loss": round(plain_loss(model, args.work), 4),
            "answer_loss_by_task": {k: round(v, 3) for k, v in sorted(by_task.items())},
        }
        for form in ("raw", "chat") if pair else ("chat",):
            replies = greedy(model, tokenizer, [p["text"] for p in prompts], form == "chat")
            listed = greedy(model, tokenizer, [p["user"] for p in lists], form == "chat")
            scores: dict[str, list[bool]] = defaultdict(list)
            for prompt, (reply, _) in zip(prompts, replies, strict=True):
                score = right(prompt, reply)
                if score is not None:
                    scores[prompt["category"]].append(score)
            one[form] = {
                "ends_turn": share([ended for _, ended in replies]),
                "bullets": share([bullets(reply) >= 2 for reply, _ in listed]),
                "right": {name: share(values) for name, values in sorted(scores.items())},
                "median_reply_tokens": statistics.median(len(tokenizer(r)["input_ids"]) for r, _ in replies),
            }
            if (kind, form) in (("pt", "raw"), ("it", "chat")):
                for prompt, (reply, _) in list(zip(prompts, replies, strict=True))[:28]:
                    samples[prompt["text"]][kind] = reply
        report[kind] = one
    if not pair:
        found = json.loads(args.out.read_text(encoding="utf-8")) | {kind: report[kind] for kind in args.models}
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for kind in args.models:
            print(kind, json.dumps({k: v for k, v in report[kind].items() if k != "answer_loss_by_task"}))
        return
    for stage in ("pt", "it"):
        log = args.work / f"{stage}.log.jsonl"
        if log.exists():
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            training: dict[str, Any] = {k: rows[-1][k] for k in ("step", "tokens", "seconds")}
            training["mean_loss_of_last_25_rows"] = round(statistics.mean(r["loss"] for r in rows[-25:]), 4)
            training["tokens_and_held_out_plain_loss"] = [[r["tokens"], r["held_out"]] for r in rows if "held_out" in r]
            report[stage]["training"] = training
    pt, it = report["pt"], report["it"]
    report["held"] = {
        "it_answer_loss_half_a_nat_below_pt": it["answer_loss"] <= pt["answer_loss"] - 0.5,
        "it_ends_its_turn_90": it["chat"]["ends_turn"] >= 0.9,
        "pt_does_not_end_its_turn_10": pt["raw"]["ends_turn"] < 0.1,
        "it_bullets_80": it["chat"]["bullets"] >= 0.8,
        "pt_bullets_20": pt["raw"]["bullets"] <= 0.2,
        "pt_better_on_plain_text": pt["plain_loss"] < it["plain_loss"],
    }
    report["samples"] = samples
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{'':28}{'PT raw':>10}{'PT chat':>10}{'IT raw':>10}{'IT chat':>10}")
    print(f"{'answer loss (nats)':28}{'':10}{pt['answer_loss']:10.3f}{'':10}{it['answer_loss']:10.3f}")
    print(f"{'plain-text loss (nats)':28}{pt['plain_loss']:10.3f}{'':10}{it['plain_loss']:10.3f}")
    columns = [pt["raw"], pt["chat"], it["raw"], it["chat"]]
    for name in ("ends_turn", "bullets", "median_reply_tokens"):
        print(f"{name:28}" + "".join(f"{c[name]:10.3f}" for c in columns))
    for name in pt["raw"]["right"]:
        print(f"{'right: ' + name:28}" + "".join(f"{c['right'][name]:10.3f}" for c in columns))
    for name, value in report["held"].items():
        print(f"{'yes' if value else 'NO':4}{name}")


if __name__ == "__main__":
    main()
