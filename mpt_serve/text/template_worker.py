"""The child process of `template_process`: renders its template once per line of input.

Runs as a script and imports nothing of this package, so that it starts fast and needs little memory.
"""

import functools
import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def main() -> None:
    """Read the setup and reply `{}`, then reply to each context with `{"text": ...}` or `{"error": ...}`."""
    setup = json.loads(sys.stdin.buffer.readline())
    limits = setup["limits"]
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    _send({})
    for line in sys.stdin.buffer:
        # The kernel ends the process when its time is over, whatever the template does. CPU time rather than elapsed
        # time: a busy machine is no fault of the template.
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        reply = _reply(setup, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(reply)


def _send(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def _reply(setup: dict[str, Any], context: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": _render(setup["source"], {**setup["variables"], **context}, setup["limits"]["chars"])}
    except TemplateError as error:
        return {"error": str(error)[:500]}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}"}


def _render(source: str, context: dict[str, Any], max_chars: int) -> str:
    pieces: list[str] = []
    size = 0
    for piece in _compiled(source).generate(context):
        size += len(piece)
        if size > max_chars:
            raise TemplateError(f"its output is longer than {max_chars} characters")
        pieces.append(piece)
    return "".join(pieces)


@functools.cache
def _compiled(source: str) -> Template:
    return _environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
_environment.filters["tojson"] = _tojson
_environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

if __name__ == "__main__":
    main()
