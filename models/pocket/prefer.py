"""The last pocket stage: preferences (DPO) on top of IT, for right answers over IT's own wrong ones.

python prefer.py pairs --work DIR    # DIR/preferred.jsonl: IT's greedy replies to training prompts beside the reference answers
python prefer.py train --work DIR    # DIR/dpo.ckpt; then `python train.py --stage export --work DIR --export dpo`

DPO (Rafailov et al. 2023, arXiv 2305.18290): the loss of a pair is -log sigmoid(beta * (margin - margin under IT)), where a
margin is the log-probability of the chosen answer less that of the rejected one, closing <|eos|> included. The chosen
answer's mean loss in nats a token is added, so that the model does not learn to make both answers unlikely.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from check import greedy
from tokens import SEED, chat_ids, load_tokenizer
from train import HERE, autocast, new_model, save, weights
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BETA, RATE, BATCH, WARMUP = 0.1, 1e-4, 16, 10


def build_pairs(work: Path, count: int) -> None:
    """Training prompts whose greedy reply of IT is not the reference answer: the answer is chosen, the reply rejected."""
    rows = [json.loads(line) for line in (work / "it.jsonl").read_text(encoding="utf-8").splitlines()]
    distinct = list({row["user"]: row for row in rows}.values())
    some = random.Random(SEED + 3).sample(distinct, count)
    model = new_model()
    model.load_state_dict(weights(HERE / "it"))
    replies = greedy(model.eval(), load_tokenizer(work), [row["user"] for row in some], chat=True)
    kept = 0
    with open(work / "preferred.jsonl", "w", encoding="utf-8") as out:
        for row, (reply, ended) in zip(some, replies, strict=True):
            if ended and reply.strip() and reply.strip() != row["answer"].strip():
                pair = {"user": row["user"], "chosen": row["answer"], "rejected": reply.strip()}
                out.write(json.dumps(pair) + "\n")
                kept += 1
    print(f"{kept} of {count} replies differ from the reference answer")


def batch_of(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids and labels (-100 everywhere but on the answer and its <|eos|>) of exchanges."""
    encoded = [chat_ids(tokenizer, user, answer) for user, answer in texts]
    width = max(len(ids) for ids, _ in encoded)
    ids, labels = torch.zeros(len(encoded), width, dtype=torch.long), torch.full((len(encoded), width), -100)
    for row, (one, start) in enumerate(encoded):
        ids[row, : len(one)] = torch.tensor(one)
        labels[row, start : len(one)] = ids[row, start : len(one)]
    return ids, labels


def log_likelihoods(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log-probability of each answer, in nats, [rows]."""
    with autocast("cpu"):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        target = labels[:, 1:]
        kept = target != -100
        logits = model.lm_head(hidden[kept]).float()
    each = -torch.nn.functional.cross_entropy(logits, target[kept], reduction="none")
    owner = torch.arange(len(ids)).unsqueeze(1).expand_as(target)[kept]
    return torch.zeros(len(ids)).index_add(0, owner, each)


def train(work: Path) -> None:
    """One pass over the pairs, from IT, with IT as the reference."""
    tokenizer = load_tokenizer(work)
    pairs = [json.loads(line) for line in (work / "preferred.jsonl").read_text(encoding="utf-8").splitlines()]
    random.Random(SEED + 4).shuffle(pairs)
    torch.manual_seed(SEED)
    model, reference = new_model(), new_model().eval()
    for one in (model, reference):
        one.load_state_dict(weights(HERE / "it"))
        one.config._attn_implementation = "plain_causal"
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    steps = len(pairs) // BATCH
    for step in range(steps):
        some = pairs[step * BATCH : (step + 1) * BATCH]
        texts = [(p["user"], p[kind]) for kind in ("chosen", "rejected") for p in some]
        ids, labels = batch_of(tokenizer, texts)
        with torch.no_grad():
            before = log_likelihoods(reference, ids, labels)
        now = log_likelihoods(model, ids, labels)
        gained = now - before
        margin = gained[:BATCH] - gained[BATCH:]
        chosen = -now[:BATCH].sum() / (labels[:BATCH] != -100).sum()
        loss = -torch.nn.functional.logsigmoid(BETA * margin).mean() + chosen
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0 or step + 1 == steps:
            row = {
                "step": step + 1,
                "loss": round(float(loss.detach()), 4),
                "margin": round(float(margin.detach().mean()), 3),
                "preferred": round(float((margin.detach() > 0).float().mean()), 3),
                "chosen": round(float(chosen.detach()), 4),
            }
            print(row, flush=True)
    save(work / "dpo.ckpt", {"model": model.state_dict(), "step": steps})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["pairs", "train"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1600, help="pairs: training prompts that IT answers")
    args = parser.parse_args()
    if args.stage == "pairs":
        build_pairs(args.work, args.count)
    else:
        train(args.work)


if __name__ == "__main__":
    main()
