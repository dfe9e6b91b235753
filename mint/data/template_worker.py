"""Renders chat templates in a process of its own; started by ``template_process`` and run as a script.

A template is a program from the checkpoint. Jinja2's sandbox keeps it from files and from Python's internals, but not
from ``"x" * 10 ** 10`` or a loop without end, which also run while the template is compiled. The kernel ends or refuses
what exceeds a limit, whatever the expression is: time by timers, memory by RLIMIT_AS.

Each line of standard input is a request, each line of standard output its reply, both JSON. This file imports nothing
of the package, so that the process starts fast.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}``, by which newer templates mark the answer: its content, unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """The ``tojson`` filter of chat templates: unlike Jinja2's own it escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str):
    """By which a template refuses the messages."""
    raise jinja2.TemplateError(message)


def compile_template(source: str, date: datetime) -> jinja2.Template:
    """date: today, as the template sees it. Raises whatever Jinja2 raises for a source that is not valid."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=date.strftime)
    return environment.from_string(source)


def answer(request: dict, templates: dict[str, jinja2.Template], longest: int) -> dict:
    """{"text": the rendered conversation}, {} for a template that was compiled, {"error" or "limit": why not}."""
    try:
        if "source" in request:
            date = datetime.fromisoformat(request["date"])
            templates[request["template"]] = compile_template(request["source"], date)
            return {}
        text = templates[request["template"]].render(**request["variables"])
    except MemoryError:
        return {"limit": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself too often"}
    except Exception as error:  # someone else's program: whatever it raises is its refusal
        return {"error": str(error)[:10_000]}
    if len(text) > longest:
        return {"limit": f"it writes more than {longest:,} characters"}
    return {"text": text}


def main(seconds: float, patience: float, memory: int, longest: int) -> None:
    """Replies until standard input ends.

    seconds, patience: of processor time and of time for each request. memory: bytes of the process. longest:
    characters of a rendered conversation.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # ValueError: macOS knows no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    templates: dict[str, jinja2.Template] = {}
    timers = ((signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, patience)) if hasattr(signal, "setitimer") else ()
    for number in (signal.SIGPROF, signal.SIGALRM) if timers else ():
        signal.signal(number, signal.SIG_DFL)  # which ends this process
    for line in sys.stdin:
        for timer, limit in timers:
            signal.setitimer(timer, limit)
        try:
            reply = json.dumps(answer(json.loads(line), templates, longest))
        except MemoryError:
            reply = json.dumps({"limit": "it needs too much memory"})
        for timer, _ in timers:
            signal.setitimer(timer, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
