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

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


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


class _Generation(Extension):
    """`{% generation %}`: what the assistant writes, marked for training. Renders its body, in a separate scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict(...)` without the attributes of Python's class."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)`, which has no attributes of Python's internals."""

    def __init__(*args: Any, **attributes: Any) -> None:  # an attribute may be called self
        values = dict(*args[1:], **attributes)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has an attribute {name!r}; names that begin with _ are unsafe")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


# What templates find in transformers, whose users write them.
_environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)
_environment.filters["tojson"] = _tojson
_environment.globals |= {
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
    "dict": _Dict(),
    "namespace": _Namespace,
}

if __name__ == "__main__":
    main()
