"""The fields that say what an answer must match."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.body import parse_json_object
from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError
from mpt_serve.openai.fields import Field, Fields, Offered, Refused
from mpt_serve.openai.kinds import Boolean, Choice, ListOf, Object, String, refuse
from mpt_serve.structured_outputs.spec import GrammarKind, GrammarSpec

__all__ = ["GUIDE_FIELDS", "guide_from"]

MAX_GUIDE_CHARS = 65_536
MAX_ALTERNATIVES = 1024

_TEXT = String(MAX_GUIDE_CHARS, may_be_empty=False)
_TEXTS = ListOf(_TEXT, MAX_ALTERNATIVES, may_be_empty=False)


@dataclass(frozen=True)
class Schema:
    """A JSON Schema; comes out as a guide."""

    takes: str = f"a JSON Schema, as an object or as its JSON, of at most {MAX_GUIDE_CHARS} characters"

    def check(self, value: Any, where: str) -> GrammarSpec:
        if isinstance(value, str):
            value = self._parsed(value, where)
        elif not isinstance(value, dict):
            raise refuse(self, value, where)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return GrammarSpec("json_schema", _TEXT.check(text, where))

    def _parsed(self, text: str, where: str) -> dict[str, Any]:
        try:
            return parse_json_object(_TEXT.check(text, where).encode(), Limits(), f"The schema in '{where}'")
        except InvalidValueError as error:
            raise InvalidValueError(error.message, param=where) from None


@dataclass(frozen=True)
class Expression:
    """A text of a language that describes texts; comes out as a guide."""

    kind: GrammarKind
    what: str

    @property
    def takes(self) -> str:
        return f"{self.what}, {_TEXT.takes}"

    def check(self, value: Any, where: str) -> GrammarSpec:
        return GrammarSpec(self.kind, _TEXT.check(value, where))


@dataclass(frozen=True)
class Alternatives:
    """Texts, of which the answer is one; comes out as a guide."""

    takes: str = f"{_TEXTS.takes}; together at most {MAX_GUIDE_CHARS} characters of JSON"

    def check(self, value: Any, where: str) -> GrammarSpec:
        texts = _TEXTS.check(value, where)
        return GrammarSpec("choice", _TEXT.check(json.dumps(texts, ensure_ascii=False), where))


@dataclass(frozen=True)
class JsonObject:
    """A request for any JSON object, or none; comes out as a guide or None."""

    takes: str = "true or false"

    def check(self, value: Any, where: str) -> GrammarSpec | None:
        if not isinstance(value, bool):
            raise refuse(self, value, where)
        return GrammarSpec("json_object") if value else None


SCHEMA, ALTERNATIVES = Schema(), Alternatives()
REGEX = Expression("regex", "a regular expression that matches the whole answer")
GRAMMAR = Expression("grammar", "a Lark grammar whose start rule is `start`")
_LAYOUT = "the server chooses how JSON is laid out"

STRUCTURED_FIELDS = Fields(
    Offered("json", SCHEMA, ""),
    Offered("json_object", JsonObject(), ""),
    Offered("regex", REGEX, ""),
    Offered("choice", ALTERNATIVES, ""),
    Offered("grammar", GRAMMAR, ""),
    Refused("structural_tag", "the models have no tags"),
    Refused("disable_fallback", "there is nothing to fall back to", (False,)),
    Refused("disable_any_whitespace", _LAYOUT, (False,)),
    Refused("disable_additional_properties", "the schema says it", (False,)),
    Refused("whitespace_pattern", _LAYOUT),
)


@dataclass(frozen=True)
class StructuredOutputs:
    """vLLM's object; comes out as a guide."""

    takes: str = "an object with one of `json`, `json_object`, `regex`, `choice` and `grammar`"

    def check(self, value: Any, where: str) -> GrammarSpec:
        members = _members(STRUCTURED_FIELDS, Object(self.takes).check(value, where), where)
        given = [guide for guide in members.values() if guide is not None]
        if len(given) != 1:
            raise InvalidValueError(f"'{where}' must be {self.takes}; got {len(given)} of them.", param=where)
        return cast(GrammarSpec, given[0])


FORMAT_FIELDS = Fields(
    Offered("type", Choice(("text", "json_object", "json_schema")), "", required=True),
    Offered("json_schema", Object(), ""),
)
SCHEMA_FIELDS = Fields(
    Offered("name", String(256), ""),
    Offered("description", String(MAX_GUIDE_CHARS), ""),
    Offered("schema", SCHEMA, "", required=True),
    Offered("strict", Boolean(), ""),
)


@dataclass(frozen=True)
class ResponseFormat:
    """OpenAI's object; comes out as a guide, or None for text."""

    takes: str = (
        '`{"type": "text"}`, `{"type": "json_object"}` or'
        ' `{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}`'
    )

    def check(self, value: Any, where: str) -> GrammarSpec | None:
        members = _members(FORMAT_FIELDS, Object(self.takes).check(value, where), where)
        kind, schema = members["type"], members["json_schema"]
        if (kind == "json_schema") != (schema is not None):
            message = f"'{where}.json_schema' belongs to the type json_schema, and to no other."
            raise InvalidValueError(message, param=f"{where}.json_schema")
        if kind == "json_schema":
            return cast(GrammarSpec, _members(SCHEMA_FIELDS, schema, f"{where}.json_schema")["schema"])
        return GrammarSpec("json_object") if kind == "json_object" else None


def _members(fields: Fields, value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Parse an object. Members that nobody knows are refused: a constraint is never dropped."""
    parsed = fields.parse(value, f"{where}.")
    if any(value[name.removeprefix(f"{where}.")] is not None for name in parsed.unknown):
        known = ", ".join(field.name for field in fields.rows if isinstance(field, Offered))
        message = f"'{where}' has a member that is not offered; it may have {known}."
        raise UnsupportedParameterError(message, param=where)
    return parsed.values


GUIDE_FIELDS: tuple[Field, ...] = (
    Offered("response_format", ResponseFormat(), "The form of the answer; schemas are always strict."),
    Offered("structured_outputs", StructuredOutputs(), "What the answer must match; the fields below are older names."),
    Offered("guided_json", SCHEMA, "The answer is JSON that is valid under the schema."),
    Offered("guided_regex", REGEX, "The answer matches the expression."),
    Offered("guided_choice", ALTERNATIVES, "The answer is one of the texts."),
    Offered("guided_grammar", GRAMMAR, "The answer is a text of the grammar."),
    Refused("guided_whitespace_pattern", _LAYOUT),
    Refused("guided_decoding_backend", "the server has one of its own"),
)


def guide_from(values: Mapping[str, Any]) -> tuple[GrammarSpec | None, str | None]:
    """Return the guide among parsed fields and its field's name. Raises InvalidValueError if there are several."""
    names = [field.name for field in GUIDE_FIELDS if values.get(field.name) is not None]
    if len(names) > 1:
        raise InvalidValueError(f"'{names[0]}' and '{names[1]}' exclude each other.", param=names[1])
    return (cast(GrammarSpec, values[names[0]]), names[0]) if names else (None, None)
