"""Tables of request fields: one row says how a field is treated, and the same rows make the reference."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError
from mpt_serve.openai.kinds import Kind

__all__ = ["Field", "Fields", "Ignored", "Offered", "Parsed", "Refused"]


@dataclass(frozen=True)
class Offered:
    """A field that does what it says."""

    name: str
    kind: Kind
    meaning: str
    default: Any = None
    required: bool = False
    shown_default: str | None = None  # where the default is not a constant

    def parse(self, body: Mapping[str, Any], where: str) -> Any:
        value = body.get(self.name)
        if value is None:
            if self.required:
                raise InvalidValueError(f"'{where}' is required: {self.kind.takes}.", param=where)
            return self.default
        return self.kind.check(value, where)


@dataclass(frozen=True)
class Ignored:
    """A field that is checked and then has no effect, because nothing here depends on it."""

    name: str
    kind: Kind
    meaning: str

    def parse(self, body: Mapping[str, Any], where: str) -> None:
        value = body.get(self.name)
        if value is not None:
            self.kind.check(value, where)


@dataclass(frozen=True)
class Refused:
    """A field that would change the answer in a way that is not offered. Values that ask for nothing pass."""

    name: str
    why: str
    neutral: tuple[Any, ...] = ()

    def parse(self, body: Mapping[str, Any], where: str) -> None:
        value = body.get(self.name)
        if value is None or any(type(value) is type(n) and value == n for n in self._neutral_values()):
            return
        raise UnsupportedParameterError(f"'{where}' is not offered: {self.why}.", param=where)

    def _neutral_values(self) -> Iterable[Any]:
        for value in self.neutral:
            yield value
            if isinstance(value, int) and not isinstance(value, bool):
                yield float(value)


Field = Offered | Ignored | Refused


@dataclass(frozen=True)
class Parsed:
    """The offered fields' values by name, null and omitted ones as their defaults, and the names nobody knows."""

    values: dict[str, Any]
    unknown: tuple[str, ...]
    given: frozenset[str]  # offered fields that came with a value


class Fields:
    """The fields of one kind of object, in the order of the reference."""

    def __init__(self, *fields: Field) -> None:
        self.rows = fields
        self._names = frozenset(field.name for field in fields)
        assert len(self._names) == len(fields), "a field is listed twice"

    def parse(self, body: Mapping[str, Any], prefix: str = "") -> Parsed:
        """Check every field. Raises InvalidValueError or UnsupportedParameterError, whose param is the field's path."""
        values: dict[str, Any] = {}
        for field in self.rows:
            value = field.parse(body, prefix + field.name)
            if isinstance(field, Offered):
                values[field.name] = value
        unknown = tuple(prefix + name for name in body if name not in self._names)
        return Parsed(values, unknown, frozenset(name for name in values if body.get(name) is not None))
