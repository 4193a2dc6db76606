r"""Tools in conversations, in the form of the Hermes models: definitions, calls and results as text with tags.

JSON that comes from clients has no tag of this form in it: where one stands in a string, its `<` is written `\u003c`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from mpt_serve.text.chat_template import Message, ToolCall

__all__ = [
    "CALL_SEPARATOR",
    "CALL_TAG",
    "as_text",
    "as_values",
    "call_begin",
    "call_end",
    "tool_texts",
    "uses_tools",
]

CALL_TAG = "<tool_call>"
CALL_SEPARATOR = "\n"

_TAG = re.compile(r"<(?=/?tool)")
_INSTRUCTIONS = """\
You may call functions. Their signatures are in <tools></tools>:
<tools>
{tools}
</tools>
To call one, write a JSON object with its name and arguments in <tool_call></tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def call_begin(name: str) -> str:
    """Return what stands between the tag of a call and its arguments."""
    return f'\n{{"name": {json.dumps(name)}, "arguments": '


def call_end() -> str:
    """Return what follows the arguments of a call. JSON never contains it: a `<` stands in strings alone."""
    return "}\n</tool_call>"


def uses_tools(message: Message) -> bool:
    """Return whether a message calls tools or has the result of a call."""
    return message["role"] == "tool" or bool(message.get("tool_calls"))


def tool_texts(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the texts of tools and calls, beside the contents, for bounds on their length."""
    yield from (call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ()))
    yield from map(_json, tools)


def as_text(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], result_role: Literal["tool", "user"]
) -> list[Message]:
    """Return a conversation whose messages have nothing but contents, for templates that know no tools.

    The tools go to the end of the first system message, which is added if there is none. result_role: of results.
    """
    plain = [_plain(message, result_role) for message in messages]
    if tools:
        instructions = _INSTRUCTIONS.format(tools="\n".join(map(_json, tools)))
        if plain and plain[0]["role"] == "system":
            own = plain.pop(0)["content"]
            instructions = f"{own}\n\n{instructions}" if own else instructions
        plain.insert(0, Message(role="system", content=instructions))
    return plain


def as_values(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation for templates that write tools and calls themselves: arguments are objects."""
    calls = [list(map(_with_value, message.get("tool_calls", ()))) for message in messages]
    pairs = zip(messages, calls, strict=True)
    return [cast(Message, {**message, "tool_calls": own} if own else message) for message, own in pairs]


def _plain(message: Message, result_role: Literal["tool", "user"]) -> Message:
    content = message["content"]
    if message["role"] == "tool":
        result = f'{{"name": {json.dumps(message.get("name", ""))}, "content": {_as_json(content)}}}'
        return Message(role=result_role, content=f"<tool_response>\n{result}\n</tool_response>")
    calls = CALL_SEPARATOR.join(map(_call_text, message.get("tool_calls", ())))
    gap = CALL_SEPARATOR if calls and content and not content[-1].isspace() else ""
    return Message(role=message["role"], content=f"{content}{gap}{calls}")


def _call_text(call: ToolCall) -> str:
    function = call["function"]
    return f"{CALL_TAG}{call_begin(function['name'])}{_as_json(function['arguments'] or '{}')}{call_end()}"


def _with_value(call: ToolCall) -> Mapping[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _value(function["arguments"] or "{}")}}


def _as_json(text: str) -> str:
    """Return a text as it is if it is the JSON of an object or an array, or else as a JSON string."""
    return _escaped(json.dumps(text, ensure_ascii=False) if isinstance(_value(text), str) else text)


def _value(text: str) -> Any:
    """Return the object or array in a JSON text, or the text if it is nothing of the kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (dict, list)) else text


def _json(value: Mapping[str, Any]) -> str:
    return _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(text: str) -> str:
    return _TAG.sub(r"\\u003c", text)
