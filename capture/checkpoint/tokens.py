"""From a prompt's text to token ids: templates, exactly one BOS, special and real tokens."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...store.core.errors import LakeError
from ...store.core.files import hash_json
from ...store.core.progress import remark
from .templates import DATE, PROBE, frame_of, has_template, owner, presence, probed, render, turn, uses_date, written_by

# Ids that exist in the logits but name no token (METHODS 1.4).
PLACEHOLDER = re.compile(r"<unused\d+>|<\|reserved_special_token_\d+\|>")
# What a control token is written with and ordinary words are not.
MARKER = re.compile(r"[<>\[\]{}|｜＜＞#@$=/\\]")
# Byte-level BPE writes each byte as a letter: printable ones as themselves, the others from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}
SAMPLE = "The quick brown fox, 12 + 7 = 19?\n\n- Naïve café\n\tdef f(x): return x"


def template_for(template: str, own: str) -> str:
    """What wraps a model's prompts: 'native' means its own template, raw for a base model, else chat (METHODS 1.3)."""
    return own if template == "native" else template


def encode(
    tokenizer: Any, text: str, template: str, double_bos: bool = False, date: str | None = None, control: bool = False
) -> list[int]:
    """Token ids of one prompt; see `encode_all`."""
    return encode_all(tokenizer, [text], template, double_bos, date, control)[0]


def encode_all(
    tokenizer: Any,
    texts: Sequence[str],
    template: str,
    double_bos: bool = False,
    date: str | None = None,
    control: bool = False,
    names: Sequence[str] | None = None,
    thinking: bool | None = None,
) -> list[list[int]]:
    """Token ids of prompts under `raw` or `chat`, with BOS exactly once and nothing after the text.

    Special tokens that a tokenizer puts behind a text are left out (`dropped` says which). `double_bos` renders the chat
    template to a string and tokenizes it with special tokens again, as most collectors of the PT/IT study did (METHODS
    1.3); `date` is the day that templates write (None: templates.DATE), `thinking` whether they let the model think (None: no).
    `names` stand for the prompts in messages.

    Raises LakeError for `chat` without a chat template, for a template that fails or does not write a prompt's text, for a
    text without tokens, with a control token (unless `control`) or one that the tokenizer has no token for, and for two
    different texts that give the same tokens.
    """
    names = names or [f"prompt {text[:40]!r}" for text in texts]
    plain = check_texts(tokenizer, names, texts, template, control)
    if template == "raw":
        return told_apart(names, texts, [ids for ids, _ in once(tokenizer, texts, True, False, plain)])
    frame = frame_of(tokenizer, date, thinking)
    renderings = render(tokenizer, [[turn("user", text, frame.form)] for text in texts], True, date, thinking)
    for name, text, rendering in zip(names, texts, renderings, strict=True):
        if rendering.error:
            raise LakeError(f"{name}: the chat template of {owner(tokenizer)} fails: {rendering.error}")
        if lost := presence(frame, text, rendering.text):
            raise LakeError(f"{name}: the chat template of {owner(tokenizer)} does not write its text: {lost}")
    whole = [rendering.text for rendering in renderings]
    return told_apart(names, texts, [ids for ids, _ in once(tokenizer, whole, double_bos, True)])


def check_texts(
    tokenizer: Any, names: Sequence[str], texts: Sequence[str], template: str, control: bool
) -> list[list[int]]:
    """Token ids of texts without anything around them; LakeError for one that no prompt may hold, see `encode_all`."""
    marks = control_texts(tokenizer)
    # Some models begin every turn with their BOS, and their tokenizers add none: then it may stand anywhere.
    single = {tokenizer.bos_token_id} & set(tokenizer("")["input_ids"]) & marks.keys()
    plain = _cut(tokenizer, texts, False)
    for name, text, ids in zip(names, texts, plain, strict=True):
        _check_text(tokenizer, name, text, ids)
        held = [index for index in ids if index in marks]
        if control:  # but for a BOS that would not be the only one
            held = [index for index in (ids[1:] if template == "raw" else ids) if index in single]
        if held:
            raise LakeError(
                f"{name}: its text holds the control token {marks[held[0]]!r} ({held[0]}); take it out of the text"
                + (": BOS stands once, at the beginning" if control else ", or allow such tokens with --control-tokens")
            )
    return plain


def form_of(tokenizer: Any) -> str:
    """How the chat template takes a message's content: as a `string` or as a list of `parts`."""
    return frame_of(tokenizer).form


def dropped(tokenizer: Any, template: str, double_bos: bool = False, date: str | None = None) -> list[int]:
    """Special tokens that the tokenizer or the template puts around a prompt and `encode_all` leaves out: all behind the text,
    and a BOS that follows another."""
    if template == "raw":
        return once(tokenizer, [PROBE], True, False)[0][1]
    frame = frame_of(tokenizer, date)
    rendering = probed(tokenizer, [[turn("user", PROBE, frame.form)]], date=date)[0]
    return once(tokenizer, [rendering.text], double_bos, True)[0][1]


def reading(
    tokenizer: Any,
    template: str,
    double_bos: bool = False,
    date: str | None = None,
    control: bool = False,
    thinking: bool | None = None,
) -> dict[str, Any]:
    """A recipe's entries on how prompts are read, beside the template: `content` (the form of a message's content, for chat),
    and where it applies `date`, `thinking`, `dropped` and `control_tokens`.
    """
    found: dict[str, Any] = {"content": frame_of(tokenizer, date).form} if template == "chat" else {}
    if template == "chat" and uses_date(tokenizer):
        found["date"] = date or DATE
    if template == "chat" and thinking is not None:
        found["thinking"] = "on" if thinking else "off"
    if left := dropped(tokenizer, template, double_bos, date):
        found["dropped"] = left
    return found | ({"control_tokens": "allowed"} if control else {})


def notes(name: str, tokenizer: Any, recipe: dict[str, Any]) -> list[str]:
    """Lines for people on the surprising entries of `reading`."""
    found = []
    if "date" in recipe:
        found.append(f"{name}: its chat template writes the date: {recipe['date']} is used (--date sets another)")
    if "dropped" in recipe:
        texts = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} ({index})" for index in recipe["dropped"])
        found.append(f"{name}: its tokenizer puts {texts} around prompts; left out, so that the text goes on")
    if recipe["template"] == "chat" and encode(tokenizer, PROBE, "chat")[-1] == tokenizer.eos_token_id:
        found.append(
            f"{name}: its chat template ends a prompt with EOS ({tokenizer.eos_token!r}), and the model goes on from there"
        )
    if recipe.get("content") == "parts":
        found.append(f"{name}: its chat template takes a prompt's text as a list of parts only; given as such")
    return found


def _cut(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    """Token ids of texts, with what the tokenizer puts around them or without."""
    found = tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []
    return [list(ids) for ids in found]


def once(
    tokenizer: Any, texts: Sequence[str], special: bool, chat: bool, inner: list[list[int]] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Token ids of texts with what the tokenizer puts before them (when `special`), BOS once; and the ids that were left out.

    `inner` are the ids of the texts alone, where they are known. A `chat` that is `special` has two BOS, as requested.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    inner = _cut(tokenizer, texts, False) if inner is None else inner
    outer = _cut(tokenizer, texts, True) if special else inner
    adds = bos is not None and bos in tokenizer("")["input_ids"]
    most = 2 if special and chat else 1
    found = []
    for text, core, whole in zip(texts, inner, outer, strict=True):
        at = next((i for i in range(len(whole) - len(core) + 1) if whole[i : i + len(core)] == core), None)
        if at is None:
            raise LakeError(
                f"{owner(tokenizer)}: cuts {text[:40]!r} otherwise with its special tokens than without them"
            )
        ids, left = whole[: at + len(core)], whole[at + len(core) :]
        # A template without BOS on a tokenizer that adds one would lose it.
        if adds and chat and not special and (bos not in ids or (bos == eos and ids[0] != bos)):
            ids = [bos, *ids]
        while bos is not None and len(ids) > most and ids[: most + 1] == [bos] * (most + 1):
            ids, left = ids[1:], [bos, *left]
        found.append((ids, left))
    return found


def _check_text(tokenizer: Any, name: str, text: str, ids: list[int]) -> None:
    """Raise LakeError for a prompt without tokens, or with something that the tokenizer has no token for."""
    if not text.strip():
        raise LakeError(f"{name}: is blank, expected text")
    if not ids:
        raise LakeError(f"{name}: the tokenizer of {owner(tokenizer)} gives no token for {text[:40]!r}")
    if tokenizer.unk_token_id in ids and tokenizer.unk_token not in text:
        raise LakeError(
            f"{name}: the tokenizer of {owner(tokenizer)} has no token for a part of its text ({tokenizer.unk_token} stands in"
            " its place); leave that out or write it otherwise"
        )


def told_apart(names: Sequence[str], texts: Sequence[Any], found: list[list[int]]) -> list[list[int]]:
    """The ids themselves; LakeError where two different texts have the same."""
    seen: dict[tuple[int, ...], int] = {}
    for place, ids in enumerate(found):
        first = seen.setdefault(tuple(ids), place)
        if texts[first] != texts[place]:
            raise LakeError(
                f"{names[first]} and {names[place]}: different texts with the same tokens (template and tokenizer drop what"
                " tells them apart, white space at an end say); leave one out"
            )
    return found


def control_ids(tokenizer: Any) -> set[int]:
    """Ids that stand for no text: special tokens, and added ones that look like markers and that the chat template writes.

    Added tokens that are neither (runs of blanks, words) are text.
    """
    found = set(tokenizer.all_special_ids) - {None}  # None: a name that no token has
    maybe = {}
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            found.add(index)
        elif _marker(token.content):
            maybe[index] = token.content
    if maybe and has_template(tokenizer):
        written = written_by(tokenizer)
        found |= {index for index, content in maybe.items() if content in written}
    return found


def control_texts(tokenizer: Any) -> dict[int, str]:
    """Control tokens that no ordinary text holds, by id: a special token such as '!' (some pad with it) is none of them."""
    named = {index: str(tokenizer.convert_ids_to_tokens(index)) for index in control_ids(tokenizer)}
    return {index: text for index, text in named.items() if _marker(text)}


def _marker(text: str) -> bool:
    return len(text.strip()) > 2 and bool(MARKER.search(text))


def is_special(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """True where a token id is a control token (`control_ids`); same shape as `ids`."""
    return np.isin(ids, np.asarray(sorted(control_ids(tokenizer)), dtype=np.int64))


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


def vocabulary(tokenizer: Any, vocab: int) -> dict[str, Any]:
    """What the ids below `vocab` mean, as the lake keeps it: columns id, text, bytes, special, real (artifacts/vocab.py)."""
    texts, real = running_texts(tokenizer, vocab), real_token_mask(tokenizer, vocab)
    names = tokenizer.convert_ids_to_tokens(range(min(vocab, len(tokenizer))))
    names += [None] * (vocab - len(names))
    special = np.isin(np.arange(vocab), list(control_ids(tokenizer)))
    texts = [text.encode(errors="replace").decode() for text in texts]
    made = [_bytes(name, text) for name, text in zip(names, texts, strict=True)]
    return {"id": np.arange(vocab, dtype=np.int32), "text": texts, "bytes": made, "special": special, "real": real}


def _bytes(name: str | None, text: str) -> bytes:
    """The bytes that a token stands for: those of its text, unless its name spells them (byte-level BPE, `<0xE2>`)."""
    if name and len(name) == 6 and re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    if "\ufffd" in text and name and all(letter in BYTE_OF for letter in name):
        return bytes(BYTE_OF[letter] for letter in name)
    return text.encode()


def is_text(tokenizer: Any, vocab: int) -> np.ndarray:
    """bool [vocab]: False for ids that stand for no text, such as special tokens and chat markers."""
    found = real_token_mask(tokenizer, vocab)
    found[[index for index in control_ids(tokenizer) if index < vocab]] = False
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
    check_vocabularies(pt.get_vocab(), it.get_vocab(), pair)
    plain = [tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] for tokenizer in (pt, it)]
    if plain[0] != plain[1]:
        raise LakeError(
            f"pair {pair}: the tokenizers of pt and it cut the same text differently; a pair needs one tokenizer"
        )


def check_vocabularies(left: dict[str, int], right: dict[str, int], pair: str) -> None:
    """Raise LakeError unless two vocabularies (token -> id) give the tokens that both have the same ids, and most are.

    Ids under which each has a token of its own, as two sets of added tokens may, are remarked on: only the models' users know
    whether one is the other renamed.
    """
    clash = next((token for token in left.keys() & right.keys() if left[token] != right[token]), None)
    if clash is None and len(left.keys() & right.keys()) * 10 < max(len(left), len(right)) * 9:
        clash = next(iter(sorted(left.keys() ^ right.keys())))
    if clash is not None:
        raise LakeError(
            f"pair {pair}: the tokenizers differ: {clash!r} is {left.get(clash)} for pt and {right.get(clash)} for it; a pair"
            " needs one vocabulary, or the same token ids would mean different text"
        )
    own = [
        {number: token for token, number in one.items() if token not in other}
        for one, other in ((left, right), (right, left))
    ]
    if both := sorted(own[0].keys() & own[1].keys()):
        remark(
            f"pair {pair}: {len(both)} ids mean another token to each model, such as {both[0]}: {own[0][both[0]]!r} for pt,"
            f" {own[1][both[0]]!r} for it; comparisons of the two count each such id as one token"
        )
