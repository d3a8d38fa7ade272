"""Render chat templates in a process of its own, with limits: run as a script by `checkpoint.templates`.

It imports nothing of actlake.
Standard input is a JSON object (see `templates._ask`), standard output a list with one {"text"} or {"error"} per conversation.
A template that computes for too long ends the process (SIGPROF), one that takes too much memory or room is an error.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Any


def main() -> None:
    """Read one request, render its conversations, write the answers."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    from jinja2.exceptions import TemplateSyntaxError

    _limit_memory(asked["memory"], asked["watch"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    found: list[dict[str, str]] = []
    template: Any = None
    for talk in asked["conversations"]:
        signal.setitimer(
            signal.ITIMER_PROF, asked["seconds"]
        )  # processor time, so that a busy machine does not count against the template
        try:
            template = template or environment(asked["date"]).from_string(asked["template"])
            template.environment.marks = talk.pop("marks", ("", ""))
            most = asked["characters"] + 4 * len(json.dumps(talk))
            found.append(_whole(template.generate({**asked["variables"], **talk}), most))
        except TemplateSyntaxError as error:
            found.append({"error": f"line {error.lineno}: {error.message}"})
        except MemoryError:
            found.append({"error": f"it takes more than {asked['memory'] >> 20} MB of memory"})
        except Exception as error:  # foreign code: whatever it raises becomes a message
            first = next(iter(str(error).splitlines()), "")[:300]
            found.append({"error": f"{type(error).__name__}: {first}" if first else type(error).__name__})
    signal.setitimer(signal.ITIMER_PROF, 0)
    json.dump(found, sys.stdout)


def _whole(pieces: Any, most: int) -> dict[str, str]:
    """The text of a rendering, which ends where it grows beyond `most` characters."""
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            return {"error": f"its rendering of a prompt is longer than {most:,} characters"}
        kept.append(piece)
    return {"text": "".join(kept)}


def _limit_memory(most: int, watch: bool) -> None:
    """At most so many bytes; with `watch` (where the system does not keep that limit) by looking at what is used."""
    if not watch:
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return
    unit = 1 if sys.platform == "darwin" else 1024

    def look() -> None:
        while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < most:
            time.sleep(0.02)
        os._exit(77)

    threading.Thread(target=look, daemon=True).start()


def environment(date: str) -> Any:
    """What Hugging Face renders chat templates with (utils/chat_template_utils.py), but for the date, which is this one."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what an assistant writes; the text inside stands between the marks that were asked for."""

        environment: Any
        tags = {"generation"}  # noqa: RUF012 (jinja's own way)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Any) -> Any:
            return caller().join(self.environment.marks)

    class Dict:
        """`dict` without its other attributes."""

        def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
            return dict(*args, **named)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        """Without names that begin with an underscore."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace can't hold {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def at_random(*args: Any, **named: Any) -> None:
        raise jinja2.exceptions.TemplateError("it draws at random, so that no stream could be made twice")

    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    found.filters |= {"tojson": tojson, "random": at_random}
    found.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": datetime.fromisoformat(date).strftime,
        "lipsum": at_random,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return found


if __name__ == "__main__":
    main()
