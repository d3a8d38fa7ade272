"""From a prompt's text to token ids: templates, exactly one BOS, special and real tokens."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..store.errors import LakeError
from ..store.files import hash_json

# Ids that exist in the logits but name no token (METHODS 1.4).
PLACEHOLDER = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>")
SAMPLE = "The quick brown fox, 12 + 7 = 19?\n\n- Naïve café\n\tdef f(x): return x"


def template_for(template: str, variant: str) -> str:
    """'native' means raw text for a PT and the chat template for an IT (METHODS 1.3)."""
    if template == "native":
        return "raw" if variant == "pt" else "chat"
    return template


def encode(tokenizer: Any, text: str, template: str, double_bos: bool = False) -> list[int]:
    """Token ids of one prompt under `raw` or `chat`, with BOS exactly once.

    `double_bos` renders the chat template to a string and tokenizes it with special tokens again, as most collectors of
    the seed did (METHODS 1.3). Raises LakeError when `chat` is asked of a tokenizer without a chat template.
    """
    if template == "raw":
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise LakeError("template 'chat': this model's tokenizer has no chat template; use a raw stream for it")
    turn = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    ids = list(tokenizer(rendered, add_special_tokens=double_bos)["input_ids"])
    bos = tokenizer.bos_token_id
    # A template without BOS on a tokenizer that adds one would lose it.
    if bos is not None and not double_bos and bos not in ids and bos in tokenizer("")["input_ids"]:
        ids.insert(0, bos)
    return ids


def stop_ids(tokenizer: Any, generation_config: Any, chat: bool) -> list[int]:
    """Ids that end a turn: EOS, the generation config's, and whatever the chat template closes an assistant turn with."""
    found = generation_config.eos_token_id if generation_config is not None else None
    ids = set(found if isinstance(found, list) else [found]) | {tokenizer.eos_token_id}
    if chat and tokenizer.chat_template:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "actlake"}]
        closing = tokenizer.apply_chat_template(turns, tokenize=False).rsplit("actlake", 1)[-1]
        after = tokenizer(closing, add_special_tokens=False)["input_ids"]
        special = set(tokenizer.all_special_ids)
        if after and after[0] in special:
            ids.add(after[0])
    return sorted(i for i in ids if i is not None)


def is_special(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """True where a token id is one of the tokenizer's special tokens; same shape as `ids`."""
    return np.isin(ids, np.asarray(tokenizer.all_special_ids, dtype=np.int64))


def real_token_mask(tokenizer: Any, vocab: int) -> np.ndarray:
    """bool [vocab]: False for logits that name no usable token (METHODS 1.4)."""
    mask = np.zeros(vocab, dtype=bool)
    names = tokenizer.convert_ids_to_tokens(range(min(vocab, len(tokenizer))))
    for index, name in enumerate(names):
        mask[index] = name is not None and not PLACEHOLDER.fullmatch(name)
    return mask


def up_to_unknown(ids: Sequence[int], vocab: int) -> list[int]:
    """The ids before the first one that a model of `vocab` embeddings lacks."""
    return list(ids[: next((place for place, index in enumerate(ids) if index >= vocab), len(ids))])


def token_texts(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text of each token on its own, for people to read."""
    known = {index: tokenizer.decode([index]) for index in np.unique(ids).tolist()}
    return [known[index] for index in ids.tolist()]


def running_texts(tokenizer: Any, vocab: int) -> list[str]:
    """What each id below `vocab` adds to a running text: with the blank before a word, which some decoders drop at the
    beginning of a text; '' for ids that name no token."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][:1]
    known = range(min(vocab, len(tokenizer)))
    (before,), after = (
        tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        for rows in ([anchor], [[*anchor, index] for index in known])
    )
    return [text.removeprefix(before) for text in after] + [""] * (vocab - len(known))


def is_text(tokenizer: Any, vocab: int) -> np.ndarray:
    """bool [vocab]: False for ids that stand for no text, such as special tokens and chat markers."""
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = real_token_mask(tokenizer, vocab)
    found[[index for index in marked | set(tokenizer.all_special_ids) if index < vocab]] = False
    return found


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary and of how a sample text is cut: two tokenizers with one hash give one stream.

    The chat template is not part of it: base and post-trained tokenizers often differ in nothing else.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hash_json([vocabulary, tokenizer(SAMPLE)["input_ids"]])


def check_same_tokenizer(pt: Any, it: Any, pair: str) -> None:
    """Raise LakeError unless both tokenizers give shared tokens the same ids and cut text the same way.

    Tokens that only one of them has (chat markers, say) are no obstacle.
    """
    left, right = pt.get_vocab(), it.get_vocab()
    clash = next((token for token in left.keys() & right.keys() if left[token] != right[token]), None)
    if clash is None and len(left.keys() & right.keys()) * 10 < max(len(left), len(right)) * 9:
        clash = next(iter(sorted(left.keys() ^ right.keys())))
    if clash is not None:
        raise LakeError(
            f"pair {pair}: the tokenizers differ: {clash!r} is {left.get(clash)} for pt and {right.get(clash)} for it; a pair"
            " needs one vocabulary, or the same token ids would mean different text"
        )
    plain = [tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] for tokenizer in (pt, it)]
    if plain[0] != plain[1]:
        raise LakeError(
            f"pair {pair}: the tokenizers of pt and it cut the same text differently; a pair needs one tokenizer"
        )
