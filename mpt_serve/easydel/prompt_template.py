"""A chat template from a `format_chat`: what makes the page at / and /v1/chat/completions use a subclass's prompts.

`format_chat` runs in the user's process and is any Python; the server renders templates. The function is called with
conversations of marks instead of texts, and what it writes around them becomes a template, if that is the same in every
conversation.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mpt_serve.easydel.server_config import JAXServerError

__all__ = ["FormatChat", "chat_template_of"]

FormatChat = Callable[[list[list[str]], str, str], str]  # history, prompt, system -> the text of a prompt

_LONGEST_HISTORY = 4

_TEMPLATE = """\
{%- set system = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if system else messages -%}
{%- if not turns -%}{{ raise_exception('a conversation needs a message of the user') }}{%- endif -%}
{%- set form = SYSTEM if system else PLAIN -%}
{%- set outer = form.first if turns | length <= 2 else form.later -%}
{{ outer.head }}
{%- if system -%}{{ messages[0].content + outer.after_system }}{%- endif -%}
{%- for message in turns -%}
{%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{ raise_exception('messages must be of user and assistant in turn, after at most one of system') }}
{%- endif -%}
{{ message.content }}
{%- if loop.last -%}
{{ outer.tail if message.role == 'user' else '' }}
{%- elif message.role == 'user' -%}
{{ form.first_answered if loop.first else form.answered }}
{%- else -%}
{{ form.last_asked if loop.revindex0 == 1 else form.asked }}
{%- endif -%}
{%- endfor -%}
"""


def chat_template_of(format_chat: FormatChat, prefix: str = "") -> str:
    """Return the Jinja template that writes what `format_chat(history, prompt, system)` returns.

    prefix: template text for what the tokenizer adds before every text, such as `{{ bos_token }}`.
    Raises JAXServerError if no template can: the function changes texts, leaves some out, or writes something else in
    longer conversations.
    """
    forms = [_literal(_form(format_chat, with_system)) for with_system in (True, False)]
    return prefix + _TEMPLATE.replace("SYSTEM", forms[0], 1).replace("PLAIN", forms[1], 1)


@dataclass(frozen=True)
class _Conversation:
    """What is written around the texts of one conversation. between: after each text but the last."""

    head: str
    after_system: str
    between: tuple[str, ...]
    tail: str


def _form(format_chat: FormatChat, with_system: bool) -> dict[str, object]:
    conversations = [_conversation(format_chat, turns, with_system) for turns in range(_LONGEST_HISTORY + 1)]
    first, *later = conversations
    longest = later[-1].between
    form: dict[str, object] = {
        "first_answered": longest[0],
        "asked": longest[1],
        "answered": longest[2],
        "last_asked": longest[-1],
        "first": _outer(first),
        "later": _outer(later[-1]),
    }
    for turns, conversation in enumerate(later, 1):
        middle = [longest[1], longest[2]] * (turns - 1)
        expected = (longest[0], *middle, longest[-1])
        if conversation.between != expected or _outer(conversation) != form["later"]:
            raise JAXServerError("format_chat writes something else around the turns of longer conversations")
    return form


def _outer(conversation: _Conversation) -> dict[str, object]:
    return {"head": conversation.head, "after_system": conversation.after_system, "tail": conversation.tail}


def _conversation(format_chat: FormatChat, turns: int, with_system: bool) -> _Conversation:
    marks = [f"x{secrets.token_hex(12)}x" for _ in range(2 * turns + 2)]
    system, *texts = marks
    history = [[texts[2 * turn], texts[2 * turn + 1]] for turn in range(turns)]
    written = format_chat(history, texts[-1], system if with_system else "")
    if not isinstance(written, str):
        raise JAXServerError(f"format_chat returned a value of type {type(written).__name__}; it must be a str")
    head, *pieces = _split(written, marks if with_system else texts)
    after_system = pieces.pop(0) if with_system else ""
    return _Conversation(head, after_system, tuple(pieces[:-1]), pieces[-1])


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """Return the parts of a text before, between and after marks. Raises JAXServerError unless each is there once."""
    places = [text.find(mark) for mark in marks]
    if any(text.count(mark) != 1 for mark in marks) or any(left > right for left, right in pairwise(places)):
        raise JAXServerError(
            "format_chat does not write system, history and prompt once each, in this order and unchanged"
        )
    parts = []
    for mark in marks:
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text]


def _literal(value: object) -> str:
    """Return a text, or a dictionary of them, as an expression of Jinja."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    escaped = str(value).encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return f"'{escaped}'"
