"""The types of settings, and the model that every group of settings derives from."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from mpt_serve.configuration.problems import ConfigurationError, schema_problems, value_text

__all__ = ["Count", "Seconds", "SettingsGroup", "Size", "not_boolean"]


def not_boolean(wanted: str) -> BeforeValidator:
    """Return a check that refuses true and false, which Python would take for 1 and 0."""

    def check(value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"must be {wanted}; got {value_text(value)}")
        return value

    return BeforeValidator(check)


Count = Annotated[int, Field(ge=1), not_boolean("an integer")]
Size = Annotated[ByteSize, Field(gt=0), not_boolean("a size such as 512MiB or 4GiB")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), not_boolean("a number")]


class SettingsGroup(BaseModel):
    """Settings that belong together: immutable, validated on construction, without unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(schema_problems(type(self), values)) from error

    # As BaseModel's own __init__ is marked: validation of a nested group bypasses it, so that errors keep their paths.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings in a parsed configuration. Raises ConfigurationError with every mistake in it."""
        problems = schema_problems(cls, values)
        if problems:
            raise ConfigurationError(problems)
        return cls.model_validate(values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated like a new one."""
        return type(self)(**{**dict(self), **changes})
