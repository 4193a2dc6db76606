"""The base of all requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mpt_serve.openai.protocol.schema_words import Schema
from mpt_serve.openai.protocol.validation_errors import invalid_value_error, unsupported

__all__ = ["Refused", "RequestModel"]


@dataclass(frozen=True)
class Refused:
    """A field that would change the response in a way that is not offered. Values that request nothing pass."""

    name: str
    why: str
    neutral: tuple[Any, ...] = ()

    def passes(self, value: Any) -> bool:
        """Return whether the value requests nothing."""
        return value is None or any(_equal(value, neutral) for neutral in self.neutral)


class RequestModel(BaseModel):
    """A JSON object of a request. Types are those of JSON: true is not a number, 1.0 not an integer; null is omitted.

    refused: fields that are refused by name, in the order of the reference. Other unknown members are ignored, or
    refused where the class forbids extra fields.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    refused: ClassVar[tuple[Refused, ...]] = ()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Return the request in a JSON object.

        Raises InvalidValueError or UnsupportedParameterError for the first wrong field; its path is the `param`.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise invalid_value_error(error, json_schema(cls), cls.field_order(), body) from None

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Return the request with other values for those of its fields that the client has left out."""
        names = (defaults.keys() & type(self).model_fields.keys()) - self.model_fields_set
        return self.model_copy(update={name: defaults[name] for name in names}) if names else self

    @classmethod
    def field_order(cls) -> Sequence[str]:
        """Return the fields' names on the wire, in the order of the reference and of what is reported first."""
        return cls.wire_names()

    @classmethod
    def wire_names(cls) -> Sequence[str]:
        """Return the fields' names on the wire, in the order of the class."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def unknown_fields(cls, body: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
        """Return the paths of the members that are neither offered, ignored nor refused."""
        known = _known_names(cls)
        return [prefix + name for name in body if name not in known]

    @classmethod
    def check_refused(cls, members: Mapping[str, Any]) -> None:
        """Raise an error for the first member that is refused by name."""
        for field in cls.refused:
            if field.name in members and not field.passes(members[field.name]):
                raise unsupported(f"is not offered: {field.why}", field.name)

    @model_validator(mode="wrap")
    @classmethod
    def _validate_members(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        offered = data.keys() & _offered_names(cls)  # in a time that does not grow with unknown members
        request = handler({name: data[name] for name in offered if data[name] is not None})
        cls.check_refused(data)
        if cls.model_config["extra"] == "forbid" and any(data[name] is not None for name in cls.unknown_fields(data)):
            raise unsupported(f"has a member that is not offered; it may have {', '.join(cls.field_order())}")
        return request

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema; every field that may be omitted may be null."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, field in properties.items():
            if "default" in field and {"type": "null"} not in field.get("anyOf", ()):
                properties[name] = _nullable(field)
        return schema


@cache
def json_schema(model: type[RequestModel]) -> Schema:
    """Return the model's JSON Schema."""
    return model.model_json_schema()


@cache
def _offered_names(model: type[RequestModel]) -> frozenset[str]:
    return frozenset(model.field_order())


@cache
def _known_names(model: type[RequestModel]) -> frozenset[str]:
    return _offered_names(model).union(field.name for field in model.refused)


def _nullable(schema: Schema) -> JsonSchemaValue:
    annotations = {name: schema[name] for name in schema if name in ("title", "description", "default")}
    annotations |= {name: schema[name] for name in schema if name.startswith("x-")}
    value = {name: schema[name] for name in schema if name not in annotations}
    return {"anyOf": [*(value["anyOf"] if list(value) == ["anyOf"] else [value]), {"type": "null"}], **annotations}


def _equal(value: Any, neutral: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0, but not true."""
    if type(neutral) is int and type(value) is float:
        return value == neutral
    return type(value) is type(neutral) and bool(value == neutral)
