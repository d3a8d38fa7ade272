"""Released chat templates: conversations as transformers renders them, and who each of their tokens belongs to.

`--templates DIR` is a folder of .jinja files with the models' own templates: models/templates of the llama.cpp repository, which
the source distribution of llama-cpp-python on PyPI has as vendor/llama.cpp/models/templates.

Each template gets the packaged tokenizer, with every mark that it writes (<|im_end|>, [INST] ...) as a token. Conversations
with unique texts are encoded by actlake and by `apply_chat_template` (both without thinking, as streams are unless asked).
Their token ids are compared, and every token that holds letters of a text must have that text's segment and turn. What a
template can't write must be refused in one line.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import actlake
from actlake.capture.checkpoint.segments import encode_prompts, prompt_segments
from actlake.capture.checkpoint.templates import DATE
from actlake.store.core.columns import SEGMENTS
from actlake.store.core.errors import LakeError
from measure import Row, main
from tokenizers import AddedToken
from transformers import AutoTokenizer

POCKET = Path(actlake.__file__).parent / "models" / "pocket" / "it"
MARK = re.compile(r"<\|?[\w.:/\u2581\uff5c -]{1,40}\|?>|\[/?[A-Z_]{3,30}\]")
CLOCK = re.compile(r"strftime_now|date_string|current_date")
USER, REPLY, MORE = "alpha zebra", "bravo yacht", "charlie xylophone"
TOOL = {
    "name": "weather",
    "description": "w",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"place": "foxtrot"}}}
TALKS: dict[str, list[dict[str, Any]]] = {
    "several turns": [
        {"role": "user", "content": USER},
        {"role": "assistant", "content": REPLY},
        {"role": "user", "content": MORE},
    ],
    "system": [{"role": "system", "content": "delta willow"}, {"role": "user", "content": USER}],
    "thinking": [
        {"role": "user", "content": USER},
        {"role": "assistant", "content": REPLY, "reasoning_content": "echo violet"},
        {"role": "user", "content": MORE},
    ],
    "tool call": [
        {"role": "user", "content": USER},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "golf uniform", "tool_call_id": "call00001", "name": "weather"},
    ],
    "begun reply": [{"role": "user", "content": USER}, {"role": "assistant", "content": REPLY}],
}
SEGMENT = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def tokenizer_of(file: Path) -> Any:
    """The packaged tokenizer with a template and the marks that it writes."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    marks = dict.fromkeys(MARK.findall(tokenizer.chat_template))
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def compare(tokenizer: Any, name: str, messages: list[dict[str, Any]]) -> tuple[str, str]:
    """What came of one conversation: equal, refused, dated, both fail, or wrong; and the details."""
    talk: dict[str, Any] = {"messages": messages}
    if name == "tool call":
        talk["tools"] = [{"type": "function", "function": TOOL}]
    said = json.dumps(talk).encode()
    begun = {"continue_final_message": True} if name == "begun reply" else {"add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=talk.get("tools"), tokenize=False, enable_thinking=False, **begun
        )
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # noqa: BLE001 (a template may raise anything; what it raises is compared)
        theirs, text = None, f"{type(error).__name__}: {error}"
    try:
        (ids,) = encode_prompts(tokenizer, [said], "chat", names=["prompt 'p'"])
        (segments,), (turns,) = prompt_segments(tokenizer, [said], [ids], "chat", ["prompt 'p'"])
    except LakeError as error:
        one_line = "\n" not in str(error)
        if theirs is None:
            return ("both fail" if one_line else "wrong", str(error))
        missing = [m["content"] for m in messages if m["content"] and m["content"] not in text]
        return (
            "refused" if one_line else "wrong",
            f"{error} (transformers leaves out {missing})" if missing else str(error),
        )
    if theirs is None:
        return "wrong", f"transformers fails, {text}"
    bos = tokenizer.bos_token_id
    if ids != (theirs if theirs[:1] == [bos] else [bos, *theirs]):
        if CLOCK.search(tokenizer.chat_template):
            return "dated", f"the template reads the clock; ours is {DATE}"
        return "wrong", f"ours {tokenizer.decode(ids)!r}, theirs {text!r}"
    return _labels(tokenizer, ids, segments, turns, messages)


def _labels(
    tokenizer: Any, ids: list[int], segments: Any, turns: Any, messages: list[dict[str, Any]]
) -> tuple[str, str]:
    """Whether the tokens of each unique text are that text's."""
    pieces = [tokenizer.decode([index]) for index in ids]
    whole, starts = "", []
    for piece in pieces:
        starts.append(len(whole))
        whole += piece
    wanted = [(m["content"], SEGMENT[m["role"]], turn) for turn, m in enumerate(messages) if m["content"]]
    wanted += [
        (m["reasoning_content"], "thinking", turn) for turn, m in enumerate(messages) if "reasoning_content" in m
    ]
    wanted += [("foxtrot", "assistant", turn) for turn, m in enumerate(messages) if m.get("tool_calls")]
    for text, segment, turn in wanted:
        at = whole.rfind(text) if text != "foxtrot" else whole.find(text)
        if at < 0:
            continue  # earlier thinking, which many templates leave out
        if segment == "assistant" and whole.rfind("<think>", 0, at) > whole.rfind("</think>", 0, at):
            segment = "thinking"  # a reply that was begun, which the template puts into thinking
        for place, start in enumerate(starts):
            if start < at + len(text) and start + len(pieces[place]) > at:
                found = SEGMENTS[segments[place]], int(turns[place])
                if found != (segment, turn):
                    return "wrong", f"{pieces[place]!r} of {text!r} is {found}, expected {(segment, turn)}"
    return "equal", ""


def run(templates: Path | None) -> list[Row]:
    """A row for each kind of conversation, over all templates."""
    files = sorted(templates.glob("*.jinja")) if templates else []
    if not files:
        print("no templates: name a folder of .jinja files with --templates")
        return []
    found: dict[str, Counter[str]] = {name: Counter() for name in TALKS}
    for file in files:
        tokenizer = tokenizer_of(file)
        for name, messages in TALKS.items():
            what, why = compare(tokenizer, name, messages)
            found[name][what] += 1
            if why:
                print(f"{file.stem}, {name}: {what}: {why}"[:400])
    return [
        Row(
            f"{name}: wrong",
            counts["wrong"],
            len(files),
            "templates",
            target="<= 0",
            note=", ".join(f"{count} {what}" for what, count in sorted(counts.items())),
        )
        for name, counts in found.items()
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--templates", type=Path, metavar="DIR", help="a folder of .jinja files")


if __name__ == "__main__":
    main("templates", run, __doc__, options)
