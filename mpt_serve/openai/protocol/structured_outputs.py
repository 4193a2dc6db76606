"""The fields that say what the output must match."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, model_validator

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.body import parse_json_object
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.field_types import encodable
from mpt_serve.openai.protocol.request_model import Refused, RequestModel
from mpt_serve.openai.protocol.schema_words import Accepts, json_type
from mpt_serve.openai.protocol.validation_errors import invalid
from mpt_serve.structured_outputs.spec import GrammarKind, GrammarSpec

__all__ = ["ResponseFormat", "StructuredOutputFields", "StructuredOutputs"]

MAX_GRAMMAR_CHARS = 65_536
MAX_CHOICES = 1024

_SCHEMA_WORDS = f"a JSON Schema, as an object or as its JSON, of at most {MAX_GRAMMAR_CHARS} characters"
_TEXT_WORDS = f"a non-empty string of at most {MAX_GRAMMAR_CHARS} characters"
_CHOICE_WORDS = (
    f"an array of 1 to {MAX_CHOICES} items, each {_TEXT_WORDS}; together at most {MAX_GRAMMAR_CHARS} characters of JSON"
)
_LAYOUT = "the server chooses the layout of JSON"


def _schema_text(value: Any) -> str:
    """Return a JSON Schema as compact JSON. It comes as an object, or as its JSON."""
    if isinstance(value, str):
        value = _parsed(_bounded(value, _SCHEMA_WORDS))
    elif not isinstance(value, dict):
        raise invalid(f"must be {_SCHEMA_WORDS}; got {json_type(value)}")
    return _bounded(json.dumps(value, ensure_ascii=False, separators=(",", ":")), _SCHEMA_WORDS)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return parse_json_object(text.encode(), Limits(), "the text")
    except InvalidValueError as error:
        raise invalid(f"must be a JSON Schema: {error.message.rstrip('.')}") from None


def _bounded(text: str, words: str) -> str:
    if not 0 < len(text) <= MAX_GRAMMAR_CHARS:
        raise invalid(f"must be {words}; got {len(text)} characters")
    return encodable(text)


def _choices_text(choices: tuple[str, ...] | None) -> str | None:
    return None if choices is None else json.dumps(choices, ensure_ascii=False)


def _bounded_choices(choices: tuple[str, ...]) -> tuple[str, ...]:
    _bounded(json.dumps(choices, ensure_ascii=False), _CHOICE_WORDS)
    return choices


_Text = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]

JsonSchema = Annotated[
    str, PlainValidator(_schema_text, json_schema_input_type=dict[str, Any] | _Text), Accepts(_SCHEMA_WORDS)
]
Regex = Annotated[_Text, Accepts(f"a regular expression that matches the whole output, {_TEXT_WORDS}")]
Choices = Annotated[
    tuple[_Text, ...],
    Field(min_length=1, max_length=MAX_CHOICES, strict=False, fail_fast=True),
    AfterValidator(_bounded_choices),
    Accepts(_CHOICE_WORDS),
]
Grammar = Annotated[
    _Text,
    Accepts(f"a Lark grammar whose start rule is `start`, or a GBNF grammar whose start rule is `root`, {_TEXT_WORDS}"),
]

_MEMBERS_WORDS = "an object with one of `json`, `json_object`, `regex`, `choice` and `grammar`"


class StructuredOutputs(RequestModel):
    """The object of vLLM's API."""

    model_config = ConfigDict(extra="forbid")  # a constraint is never dropped

    json_schema: JsonSchema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("structural_tag", "the models have no tags"),
        Refused("disable_fallback", "there is nothing to fall back to", (False,)),
        Refused("disable_any_whitespace", _LAYOUT, (False,)),
        Refused("disable_additional_properties", "the schema says it", (False,)),
        Refused("whitespace_pattern", _LAYOUT),
    )

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        count = len(self._specs())
        if count != 1:
            raise invalid(f"must be {_MEMBERS_WORDS}; got {count} of them")
        return self

    @property
    def spec(self) -> GrammarSpec:
        """The language that the output must be of."""
        return self._specs()[0]

    def _specs(self) -> list[GrammarSpec]:
        specs = (
            _spec("json_schema", self.json_schema),
            _spec("json_object", "" if self.json_object else None),
            _spec("regex", self.regex),
            _spec("choice", _choices_text(self.choice)),
            _spec("grammar", self.grammar),
        )
        return [spec for spec in specs if spec is not None]


class NamedSchema(RequestModel):
    """The schema of a response format."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=256)
    description: str | None = Field(None, max_length=MAX_GRAMMAR_CHARS)
    json_schema: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """The object of OpenAI's API."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    object_schema: JsonSchema | None = Field(None, alias="schema")  # of llama-server and SGLang

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise invalid('is required where the type is json_schema: {"name": "...", "schema": {...}}', "json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise invalid("belongs to the type json_schema, and to no other", "json_schema")
        if self.object_schema is not None and self.type != "json_object":
            raise invalid("belongs to the type json_object, and to no other", "schema")
        return self

    @property
    def spec(self) -> GrammarSpec | None:
        """The language that the output must be of; None for any text."""
        schema = self.object_schema if self.json_schema is None else self.json_schema.json_schema
        if schema is not None:
            return GrammarSpec("json_schema", schema)
        return GrammarSpec("json_object") if self.type == "json_object" else None


_FORMAT_WORDS = (
    '`{"type": "text"}`, `{"type": "json_object"}`, `{"type": "json_object", "schema": {...}}` or'
    ' `{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}`'
)


def _other_name(field: str) -> str:
    """Return the description of a field that SGLang or llama-server has under another name than vLLM."""
    return f"Another name of `{field}`."


class StructuredOutputFields(RequestModel):
    """The fields of both generating endpoints that say what the output must match; at most one of them has a value."""

    response_format: Annotated[ResponseFormat, Accepts(_FORMAT_WORDS)] | None = Field(
        None, description="The form of the output; schemas are always strict."
    )
    structured_outputs: Annotated[StructuredOutputs, Accepts(_MEMBERS_WORDS)] | None = Field(
        None, description="What the output must match; the fields below are other names."
    )
    guided_json: JsonSchema | None = Field(None, description="The output is JSON that is valid under the schema.")
    guided_regex: Regex | None = Field(None, description="The output matches the expression.")
    guided_choice: Choices | None = Field(None, description="The output is one of the strings.")
    guided_grammar: Grammar | None = Field(None, description="The output is a text of the grammar.")
    top_json_schema: JsonSchema | None = Field(None, alias="json_schema", description=_other_name("guided_json"))
    top_regex: Regex | None = Field(None, alias="regex", description=_other_name("guided_regex"))
    top_choice: Choices | None = Field(None, alias="choice", description=_other_name("guided_choice"))
    top_grammar: Grammar | None = Field(None, alias="grammar", description=_other_name("guided_grammar"))
    ebnf: Grammar | None = Field(None, description=_other_name("guided_grammar"))

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("guided_whitespace_pattern", _LAYOUT),
        Refused("guided_decoding_backend", "the server has one backend"),
    )

    @model_validator(mode="after")
    def _check_one_grammar(self) -> Self:
        names = list(self._grammars())
        if len(names) > 1:
            raise invalid(f"and '{names[0]}' exclude each other", names[1])
        return self

    @property
    def output_grammar(self) -> tuple[str, GrammarSpec] | None:
        """The field that says what the output must match, and what it says."""
        return next(iter(self._grammars().items()), None)

    def _grammars(self) -> dict[str, GrammarSpec]:
        grammars = {
            "response_format": None if self.response_format is None else self.response_format.spec,
            "structured_outputs": None if self.structured_outputs is None else self.structured_outputs.spec,
            "guided_json": _spec("json_schema", self.guided_json),
            "guided_regex": _spec("regex", self.guided_regex),
            "guided_choice": _spec("choice", _choices_text(self.guided_choice)),
            "guided_grammar": _spec("grammar", self.guided_grammar),
            "json_schema": _spec("json_schema", self.top_json_schema),
            "regex": _spec("regex", self.top_regex),
            "choice": _spec("choice", _choices_text(self.top_choice)),
            "grammar": _spec("grammar", self.top_grammar),
            "ebnf": _spec("grammar", self.ebnf),
        }
        return {name: spec for name, spec in grammars.items() if spec is not None}


def _spec(kind: GrammarKind, text: str | None) -> GrammarSpec | None:
    return None if text is None else GrammarSpec(kind, text)
