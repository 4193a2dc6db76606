"""Kinds of request values: each checks one JSON value and says in words what it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mpt_serve.openai.errors import InvalidValueError

__all__ = ["Boolean", "Choice", "Integer", "Kind", "ListOf", "Number", "Object", "OneOrMany", "String"]


class Kind(Protocol):
    """A checked type. Values arrive from JSON and are never null: null is the same as an omitted field."""

    @property
    def takes(self) -> str:
        """What is accepted, for messages and for the reference."""

    def check(self, value: Any, where: str) -> Any:
        """Return the value as the program uses it. Raises InvalidValueError with `where` as its param."""


def refuse(kind: Kind, value: Any, where: str) -> InvalidValueError:
    """Return the error for a value of the wrong kind; it names what came only by its JSON type."""
    return InvalidValueError(f"'{where}' must be {kind.takes}; got {json_type(value)}.", param=where)


def json_type(value: Any) -> str:
    """Return the JSON type of a value, in words."""
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "another number"
    names = {bool: "a boolean", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


@dataclass(frozen=True)
class Integer:
    low: int
    high: int

    @property
    def takes(self) -> str:
        return f"an integer from {_power(self.low)} to {_power(self.high)}"

    def check(self, value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise refuse(self, value, where)
        return value


@dataclass(frozen=True)
class Number:
    low: float
    high: float
    above_low: bool = False  # the low end itself is refused

    @property
    def takes(self) -> str:
        return (
            f"a number above {self.low:g}, up to {self.high:g}"
            if self.above_low
            else f"a number from {self.low:g} to {self.high:g}"
        )

    def check(self, value: Any, where: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise refuse(self, value, where)
        if self.above_low and value == self.low:
            raise refuse(self, value, where)
        return float(value) + 0.0  # -0.0 becomes 0.0


@dataclass(frozen=True)
class Boolean:
    takes: str = "true or false"

    def check(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise refuse(self, value, where)
        return value


@dataclass(frozen=True)
class String:
    max_chars: int | None = None
    may_be_empty: bool = True

    @property
    def takes(self) -> str:
        bound = "" if self.max_chars is None else f" of at most {self.max_chars} characters"
        return f"a{'' if self.may_be_empty else ' non-empty'} string{bound}"

    def check(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise refuse(self, value, where)
        if (not value and not self.may_be_empty) or (self.max_chars is not None and len(value) > self.max_chars):
            raise InvalidValueError(f"'{where}' must be {self.takes}; got {len(value)} characters.", param=where)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidValueError(
                f"'{where}' holds half of a surrogate pair, which is no text.", param=where
            ) from None
        return value


@dataclass(frozen=True)
class Choice:
    options: tuple[str, ...]

    @property
    def takes(self) -> str:
        return " or ".join(f'"{option}"' for option in self.options)

    def check(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise refuse(self, value, where)
        if value not in self.options:
            raise InvalidValueError(f"'{where}' must be {self.takes}; got another string.", param=where)
        return value


@dataclass(frozen=True)
class ListOf:
    kind: Kind
    max_items: int
    may_be_empty: bool = True

    @property
    def takes(self) -> str:
        count = f"{'at most' if self.may_be_empty else '1 to'} {self.max_items}"
        return f"an array of {count} items, each {self.kind.takes}"

    def check(self, value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise refuse(self, value, where)
        if len(value) > self.max_items or (not value and not self.may_be_empty):
            raise InvalidValueError(f"'{where}' must be {self.takes}; got {len(value)} items.", param=where)
        return tuple(self.kind.check(item, f"{where}[{i}]") for i, item in enumerate(value))


@dataclass(frozen=True)
class OneOrMany:
    """A value or an array of such values; always comes out as a tuple."""

    kind: Kind
    max_items: int

    @property
    def takes(self) -> str:
        return f"{self.kind.takes}, or an array of at most {self.max_items} such"

    def check(self, value: Any, where: str) -> tuple[Any, ...]:
        if isinstance(value, list):
            return ListOf(self.kind, self.max_items).check(value, where)
        return (self.kind.check(value, where),)


@dataclass(frozen=True)
class Object:
    """Any object; for fields that are accepted and not used."""

    takes: str = "an object"

    def check(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise refuse(self, value, where)
        return value


def _power(value: int) -> str:
    """Spell the ends of 31- and 63-bit ranges as powers."""
    names = {2**31 - 1: "2^31 - 1", 2**63 - 1: "2^63 - 1", -(2**63): "-2^63"}
    return names.get(value, str(value))
