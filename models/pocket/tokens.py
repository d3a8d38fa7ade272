"""The pocket tokenizer and chat template, and batches of ids for both training stages."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, ASSISTANT = SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
VOCAB, ROW, SEED = 4096, 256, 20261123
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}\n"
    "{{ message['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(work: Path) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = (work / "pt.txt").read_text(encoding="utf-8")
    core.train_from_iterator((text[i : i + 4000] for i in range(0, len(text), 8000)), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    whole.chat_template = TEMPLATE
    whole.save_pretrained(work / "tokenizer")
    config = work / "tokenizer" / "tokenizer_config.json"  # a class name that every version knows
    text = config.read_text(encoding="utf-8").replace("TokenizersBackend", "PreTrainedTokenizerFast")
    config.write_text(text, encoding="utf-8")


def load_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")


def text_tokens(work: Path, name: str) -> np.ndarray:
    """All documents as one stream of ids, each document opened by <|bos|> and never closed."""
    cache = work / f"{name}.npy"
    if not cache.exists():
        tokenizer = load_tokenizer(work)
        docs = (work / f"{name}.txt").read_text(encoding="utf-8").split("\n\n")
        ids: list[np.ndarray] = []
        for at in range(0, len(docs), 2000):
            for one in tokenizer(docs[at : at + 2000])["input_ids"]:
                ids.append(np.array(one, dtype=np.uint16))
        np.save(cache, np.concatenate(ids))
    return np.load(cache)


def text_batch(stream: np.ndarray, step: int, batch: int) -> torch.Tensor:
    """Rows of ROW ids opened by <|bos|>; every epoch visits each row once in a new order."""
    rows = (len(stream) - 1) // (ROW - 1)
    steps = rows // batch
    epoch, place = divmod(step, steps)
    order = np.random.default_rng(SEED + epoch).permutation(rows)[place * batch : (place + 1) * batch]
    out = np.empty((batch, ROW), dtype=np.int64)
    out[:, 0] = 1
    for i, row in enumerate(order):
        out[i, 1:] = stream[row * (ROW - 1) : (row + 1) * (ROW - 1)]
    return torch.from_numpy(out)


def chat_ids(tokenizer: PreTrainedTokenizerFast, user: str, answer: str) -> tuple[list[int], int]:
    """The ids of one exchange up to and with the closing <|eos|>, and where the answer begins."""
    head = f"{BOS}{USER}\n{user}{EOS}\n{ASSISTANT}\n"
    prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
    return prompt + tokenizer(answer + EOS, add_special_tokens=False)["input_ids"], len(prompt)


def chat_batches(work: Path, epochs: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of similar length; labels are -100 everywhere but on the answer and its <|eos|>."""
    tokenizer = load_tokenizer(work)
    pairs = [json.loads(line) for line in (work / "it.jsonl").read_text(encoding="utf-8").splitlines()]
    encoded = [chat_ids(tokenizer, p["user"], p["answer"]) for p in pairs]
    rng, out = random.Random(SEED), []
    for _ in range(epochs):
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) + rng.random() * 12)
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(encoded[i][0]) for i in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            labels = torch.full((len(group), width), -100)
            for row, i in enumerate(group):
                one, start = encoded[i]
                ids[row, : len(one)] = torch.tensor(one)
                labels[row, start : len(one)] = ids[row, start : len(one)]
            out.append((ids, labels))
    return out
