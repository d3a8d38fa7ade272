"""Chat templates: which one a model has, and its renderings by a process with limits (checkpoint.render)."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as calendar
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...store.core.catalog import ModelSpec
from ...store.core.errors import LakeError
from ...store.core.files import parse_json
from ...store.core.specs import check_date

SECONDS = 10  # of processor time for one rendering
MEMORY = 1 << 30
CHARACTERS = 1 << 20  # that a rendering may have beside the conversation's own
WATCH = sys.platform != "linux"  # other systems do not keep RLIMIT_AS
OUT_OF_MEMORY = 77  # exit status of checkpoint.render
# The day that templates write, whenever and wherever they are rendered; that of Llama 3.1's, which has no clock.
DATE = "2024-07-26"
DATES = re.compile(r"\b(strftime_now|date_string)\b")
# Files beside those of the tokenizer that hold a chat template under this key: Hugging Face's tokenizers overlook them.
ELSEWHERE = ("chat_template.json", "processor_config.json", "preprocessor_config.json")
PROBE = "Actlake Probe 7, no prompt of anybody's"
FORMS = ("string", "parts")
TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class _Rendering:
    """A conversation as the template writes it, or in `error` why it does not."""

    text: str
    error: str = ""


def owner(tokenizer: Any) -> str:
    """The tokenizer's model, for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or "this model")


def has_template(tokenizer: Any) -> bool:
    """Whether there is a chat template of any kind."""
    return bool(tokenizer.chat_template)


def source_of(tokenizer: Any) -> str:
    """The text of the chat template; LakeError without one, with several but no default, and for one that is no text."""
    found = tokenizer.chat_template
    if not found:
        raise LakeError("template 'chat': this model's tokenizer has no chat template; use a raw stream for it")
    if isinstance(found, dict):
        if "default" not in found:
            raise LakeError(
                f"{owner(tokenizer)}: has the chat templates {', '.join(sorted(map(str, found)))}, none of them named default;"
                " put the one to be used into chat_template.jinja, or use a raw stream"
            )
        found = found["default"]
    if not isinstance(found, str):
        raise LakeError(f"{owner(tokenizer)}: its chat template is {type(found).__name__}, expected text")
    return found


def uses_date(tokenizer: Any) -> bool:
    """Whether the chat template reads today's date."""
    return bool(DATES.search(source_of(tokenizer)))


def knows_thinking(tokenizer: Any) -> bool:
    """Whether the chat template has a switch for thinking."""
    return bool(re.search(r"\benable_thinking\b", source_of(tokenizer)))


def turn(role: str, text: str, form: str = "string") -> dict[str, Any]:
    """One message; the content as a string, or in the form `parts` as a list of one text part."""
    return {"role": role, "content": text if form == "string" else [{"type": "text", "text": text}]}


def render(
    tokenizer: Any,
    conversations: Sequence[Turns | Mapping[str, Any]],
    ready: bool = True,
    date: str | None = None,
    thinking: bool | None = None,
) -> list[_Rendering]:
    """Conversations as the chat template writes them, `ready` for the assistant to answer, on a fixed day.

    One that is a mapping names the template's variables itself (messages, tools ...), and in `marks` two texts that stand
    around what the template marks as generated. `date` None is DATE, and leaves the template a date of its own where it has
    one; `thinking` None is off. Raises LakeError without a template, and for a template that takes longer than SECONDS.
    """
    source = source_of(tokenizer)
    special = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}
    more: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": ready}
    more["enable_thinking"] = bool(thinking)
    day = check_date(date or DATE)
    if date and "date_string" in source:
        more["date_string"] = calendar.fromisoformat(day).strftime("%d %b %Y")
    day = day if "strftime_now" in source else DATE  # one answer for all days
    talks = [talk if isinstance(talk, Mapping) else {"messages": talk} for talk in conversations]
    asked = json.dumps([source, {**special, **more}, talks])
    found = _rendered(asked, day)
    if isinstance(found, str):
        raise LakeError(f"{owner(tokenizer)}: its chat template {found}; use a raw stream, or mend the template")
    return list(found)


def probed(
    tokenizer: Any,
    conversations: Sequence[Turns],
    ready: bool = True,
    date: str | None = None,
    thinking: bool | None = None,
) -> list[_Rendering]:
    """Conversations that only show what a template does, as `render`; with a tool where it can write none of them without."""
    found = render(tokenizer, conversations, ready, date, thinking)
    if not all(one.error for one in found):
        return found
    talks = [{"messages": turns, "tools": [TOOL]} for turns in conversations]
    armed = render(tokenizer, talks, ready, date, thinking)
    return found if all(one.error for one in armed) else armed


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


@lru_cache(maxsize=64)
def _rendered(asked: str, day: str) -> tuple[_Rendering, ...] | str:
    """The renderings, or the reason why the process ended."""
    source, variables, conversations = json.loads(asked)
    request = {
        "template": source,
        "variables": variables,
        "conversations": conversations,
        "date": day,
        "path": sys.path,
        "seconds": SECONDS,
        "memory": MEMORY + 16 * len(asked),  # the conversations themselves, read and rendered
        "characters": CHARACTERS,
        "watch": WATCH,
    }
    script = Path(__file__).with_name("render.py")
    done = subprocess.run([sys.executable, "-I", script], input=json.dumps(request).encode(), capture_output=True)
    if done.returncode == -signal.SIGPROF:
        return f"takes longer than {SECONDS} s for one prompt"
    if done.returncode in (OUT_OF_MEMORY, -signal.SIGKILL):
        return f"takes more than {MEMORY >> 20} MB of memory"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        return f"can't be rendered ({last[0][:300]})"
    return tuple(_Rendering(one.get("text", ""), one.get("error", "")) for one in json.loads(done.stdout))


@dataclass(frozen=True)
class _Frame:
    """How a template takes a prompt: the form of the content, and the text before and after it (None: not just once)."""

    form: str
    before: str | None
    after: str


def frame_of(tokenizer: Any, date: str | None = None, thinking: bool | None = None) -> _Frame:
    """The form in which a template writes a prompt's text: content as a string, else as parts.

    LakeError for a template that fails, or that writes the text in neither form as it is.
    """
    tried = probed(tokenizer, [[turn("user", PROBE, form)] for form in FORMS], True, date, thinking)
    for form, found in zip(FORMS, tried, strict=True):
        printed = form == "parts" and str(turn("user", PROBE, form)["content"]) in found.text  # the list itself
        if PROBE in found.text and not printed:
            before, _, after = found.text.partition(PROBE)
            return _Frame(form, before if PROBE not in after else None, after)
    if tried[0].error:
        raise LakeError(f"{owner(tokenizer)}: its chat template fails: {tried[0].error}")
    raise LakeError(
        f"{owner(tokenizer)}: its chat template does not write a prompt's text as it is ({difference(PROBE, tried[0].text)});"
        " use a raw stream, or mend the template"
    )


def written_by(tokenizer: Any) -> str:
    """All that a chat template may write of itself: its text, and a conversation of it; nothing of one that fails."""
    try:
        turns = [turn("user", "x"), turn("assistant", "y"), turn("user", "z")]
        found = probed(tokenizer, [turns])[0]
        return f"{source_of(tokenizer)}\0{found.text}"
    except LakeError:
        return ""


def presence(frame: _Frame, text: str, rendered: str) -> str:
    """'' when a rendering holds the prompt's text (white space around it aside), else what is missing."""
    text = text.strip()
    if frame.before is not None and rendered.startswith(frame.before) and rendered.endswith(frame.after):
        inside = rendered[len(frame.before) : len(rendered) - len(frame.after)]
        if inside.strip() == text:
            return ""
    around = (frame.before or "") + frame.after.replace(PROBE, "")
    return "" if rendered.count(text) > around.count(text) else difference(text, rendered)


def difference(text: str, rendered: str) -> str:
    """Where a text is no longer found in its rendering, for messages."""
    low, high = 0, len(text)
    while low < high:  # the longest beginning that is there
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] in rendered else (low, middle - 1)
    at = rendered.find(text[:low]) + low
    if low < 2:
        return f"nothing of {text[:20]!r} is in {rendered[:60]!r}"
    return f"from character {low + 1} on {text[low : low + 20]!r} became {rendered[at : at + 20]!r}"


def model_file(spec: ModelSpec, where: str, name: str) -> Path | None:
    """A small file of a model, from its folder or the hub (`where`); None when it has no such file."""
    if spec.path is not None:
        file = spec.path / name
        return file if file.is_file() else None
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers.utils import cached_file  # slow to import, and readers of a lake come through this module

    try:
        found = cached_file(
            where,
            name,
            revision=spec.revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=not HF_HUB_OFFLINE,  # offline a file that is not there is no file
        )
    except OSError as error:
        raise LakeError(f"model {spec.name}: can't read {name} of {where}: {str(error).splitlines()[0]}") from None
    return Path(found) if found else None


def template_elsewhere(spec: ModelSpec, where: str) -> Any:
    """A chat template from the files that Hugging Face's tokenizers overlook; None when there is none.

    LakeError for such a file that can't be read.
    """
    for name in ELSEWHERE:
        file = model_file(spec, where, name)
        if file is None:
            continue
        try:
            held = parse_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise LakeError(f"model {spec.name}: {file}: can't be read as JSON ({error})") from None
        template = held.get("chat_template") if isinstance(held, dict) else None
        if isinstance(template, list) and all(isinstance(one, dict) for one in template):
            template = {str(one.get("name")): one.get("template") for one in template}
        if template:
            return template
    return None
