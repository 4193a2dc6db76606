"""Specs as grammars of llguidance, in its variant of Lark.

Every grammar lets the model choose how to split its text into tokens (`no_forcing`): an id is allowed exactly if its
bytes continue a text of the language. The option comes last, so that line numbers in errors are the author's.

Imports nothing of this package: `compile_worker` loads it by its path. Texts of clients are read in that process alone,
where what takes too long can be ended.
"""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from llguidance import LLMatcher
from llguidance._lib import regex_to_lark

__all__ = ["GrammarError", "check_parts", "grammar_of"]

# Where JSON allows whitespace: two spaces, or a new line and its indentation. A weak model would never stop otherwise.
_WHITESPACE = r" {1,2}|\r?\n[ \t]{0,32}"
# Without \uXXXX: the library would take a key written that way for one that the schema does not name. It leaves out
# characters that can be written in no other way, if a text consists of them.
_ESCAPES = 'nrbtf\\"'
_CONTROL_ESCAPE = re.compile(r"\\(?:x[01]|x7f|x\{|u00[01]|u007f|u\{|c|v|0)", re.IGNORECASE)
_UNWRITABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u00|\x7f")
_JSON_OPTIONS = {
    "whitespace_pattern": _WHITESPACE,
    "json_allowed_escapes": _ESCAPES,
    "lenient": False,
    "coerce_one_of": False,
}
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'

# Strings, expressions and comments, which may hold anything, and what is refused outside of them. A literal without an
# end, which the library refuses, extends to the end of the text: searching it again would take quadratic time.
_LARK = re.compile(
    r'"(?:\\.|[^"\\\x00-\x1f\x7f])*"?|(?://|\#)[^\n]*|/(?:\\.|[^/\\])+/?'
    r"|(?P<special><[^<>\s]+>)"
    r"|(?P<directive>%llguidance|%lark|%json)"
    r"|(?P<attribute>\b(?:max_tokens|temperature|stop|stop_capture)(?=\s*=))"
)
_REFUSED = {
    "special": "special tokens match no text: {} cannot be part of an output",
    "directive": "{} is not supported",
    "attribute": "the attribute {} is not supported; use lazy or suffix",
}


class GrammarError(ValueError):
    """The text is not valid for its kind of grammar; the message names what is wrong."""


def grammar_of(kind: str, text: str) -> str:
    """Return a spec in the library's form, which may still fail to compile. Raises GrammarError."""
    return _library_form(lambda: _lark(kind, text))


def check_parts(kind: str, text: str, compile: Callable[[str], object]) -> None:
    """Compile each schema of a spec of tools by itself, so that an error names the one that it is about.

    compile: raises ValueError for a grammar in the library's form. Raises GrammarError.
    """
    if kind != "tools":
        return
    spec = _load(text)
    parts = [(tool["name"], tool["schema"]) for tool in spec["tools"]]
    if not isinstance(spec["content"], bool):
        parts.append(("the content", spec["content"]))
    for name, schema in parts:
        try:
            compile(_library_form(partial(_json_grammar, schema)))
        except ValueError as error:
            raise GrammarError(f"{name}: {error}") from None


def _library_form(lark: Callable[[], str]) -> str:
    try:
        return LLMatcher.grammar_from_lark(lark() + _OPTIONS)
    except UnicodeEncodeError:
        raise GrammarError("it holds half of a surrogate pair, which is not valid text") from None


def _lark(kind: str, text: str) -> str:
    match kind:
        case "json_object":
            return _json_grammar({"type": "object"})
        case "json_schema":
            return _json_grammar(_load(text))
        case "regex":
            return f"start: /{regex_to_lark(text, '')}/"
        case "choice":
            return _choice_grammar(_load(text))
        case "grammar":
            return _checked_lark(text)
        case "tools":
            return _tools_grammar(**_load(text))
        case _:
            raise GrammarError(f"{kind!r} is not a kind of grammar")


def _json_grammar(schema: Any) -> str:
    return "start: " + _json_value(schema)


def _json_value(schema: Any) -> str:
    """Return the expression for a JSON value that is valid under the schema."""
    if schema is False:
        raise GrammarError("the schema false allows nothing")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError(f"a schema must be a JSON object, not {_kind(schema)}")
    if "x-guidance" in schema:
        raise GrammarError('unsupported keywords: "x-guidance"')
    _check_parts(schema)
    text = json.dumps({"x-guidance": _JSON_OPTIONS, **schema}, ensure_ascii=False)
    if _UNWRITABLE.search(text):
        raise GrammarError("it holds a control character that JSON writes as \\u and a number, which is not supported")
    return "%json " + text


def _tools_grammar(content: Any, trigger: str, tools: list[dict[str, Any]], separator: str, at_most: int) -> str:
    """Return the grammar of a content, or of calls; of any text before calls if the content is any text."""
    mark = re.escape(trigger).replace("/", r"\/")
    more = f" ({_literal(separator + trigger)} call){{0,{at_most - 1}}}" if at_most > 1 else ""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        rules.append(f"call_{i}: {_literal(tool['begin'])} value_{i} {_literal(tool['end'])}")
        rules.append(f"value_{i}: {_json_value(tool['schema'])}")
    if content is True:
        # Lazy: the text ends at the first trigger. What never comes to one is TEXT.
        rules = [f"start: TEXT | head call{more}", rf"head[lazy]: /(?s:.*){mark}/", *rules]
        rules.append(rf"TEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/")
    elif content is False:
        rules = [f"start: {_literal(trigger)} call{more}", *rules]
    else:
        rules = [f"start: content | {_literal(trigger)} call{more}", f"content: {_json_value(content)}", *rules]
    return "\n".join(rules)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_parts(schema: dict[str, Any]) -> None:
    """Raise GrammarError for keywords that the library would misinterpret."""
    rest: list[Any] = [schema]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest.extend(node)
        elif isinstance(node, dict):
            _check_property_count(node)
            for pattern in (node.get("pattern"), *_keys(node.get("patternProperties"))):
                if isinstance(pattern, str) and _CONTROL_ESCAPE.search(pattern):
                    raise GrammarError("control characters in a pattern are not supported")
            rest.extend(value for key, value in node.items() if key not in ("const", "enum", "default", "examples"))


def _check_property_count(schema: dict[str, Any]) -> None:
    """Raise GrammarError for a minProperties that duplicates of keys the schema does not name could satisfy."""
    least, named = schema.get("minProperties"), schema.get("required")
    most = 1 + (len({name for name in named if isinstance(name, str)}) if isinstance(named, list) else 0)
    if isinstance(least, int) and least > most:
        raise GrammarError(
            f"minProperties: {least} is not supported here; at most one more than the properties in required"
        )


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _choice_grammar(choices: Any) -> str:
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise GrammarError("choices must be a list of strings that is not empty")
    return "start: CHOICE\nCHOICE: " + " | ".join(map(_literal, dict.fromkeys(choices)))


def _checked_lark(text: str) -> str:
    for match in _LARK.finditer(text):
        if match.lastgroup is not None:
            name = match[match.lastgroup]
            name = name if len(name) <= 40 else name[:40] + "..."
            line = text.count("\n", 0, match.start()) + 1
            raise GrammarError(f"line {line}: {_REFUSED[match.lastgroup].format(name)}")
    return text


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise GrammarError(f"it is not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise GrammarError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise GrammarError(f"the number {digits[:40]} is beyond 64-bit floating point")
    return value


def _integer(digits: str) -> int:
    # The library would round it to the nearest integer that it can hold.
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise GrammarError(f"the integer {digits[:40]} is beyond 64 bits")
    return int(digits)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
