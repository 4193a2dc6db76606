"""Reads one JSON object of a config strictly: every key is taken with a type, and none is left over."""

from collections.abc import Collection, Mapping
from typing import Any, Final


class ConfigError(ValueError):
    """A config.json that this package cannot run exactly; the message names the key, its value and the fix."""


class _Required:
    """The type of `REQUIRED`."""


REQUIRED: Final = _Required()


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and small enough for float64 to hold it exactly if an integer."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 2**53


def nearest_name(key: str, names: Collection[str]) -> str | None:
    """Return the name that a key may be a misspelling of; None where each differs by more than a slip."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "")

    wanted = plain(key)
    edits, name = min(((_edits(wanted, plain(name)), name) for name in sorted(names)), default=(len(key), ""))
    return name if edits <= (1 if len(wanted) < 8 else 2) and edits < len(wanted) / 2 else None


def _edits(left: str, right: str) -> int:
    """Return how many characters must be changed, added or removed to make one text of the other."""
    if abs(len(left) - len(right)) > 2 or len(left) > 64:  # no slip; a key may be a text of any length
        return 64
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            above, row[j] = row[j], min(above + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


class ConfigReader:
    """Takes typed values out of a JSON object, and refuses the keys that were not taken.

    Numbers are read by value, not by JSON spelling: `6` is a valid float and `4.0` a valid integer. Wrong values raise
    ConfigError; null counts as absent.
    """

    def __init__(self, data: Mapping[str, Any], section: str = "") -> None:
        self._data = dict(data)
        self._section = section
        self._taken: set[str] = set()

    def name(self, key: str) -> str:
        """Return the key as the user finds it in the file, e.g. `attn_config.clip_qkv`."""
        return f"{self._section}.{key}" if self._section else key

    def take(self, key: str) -> Any:
        """Return the raw value (None when absent or null), and mark the key as known."""
        self._taken.add(key)
        return self._data.get(key)

    def put(self, key: str, value: Any) -> None:
        """Set a key, as if the file had it."""
        self._data[key] = value

    def error(self, key: str, found: Any, fix: str) -> ConfigError:
        """Return an error that names the key, the value found, and the fix."""
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ConfigError(f"config key '{self.name(key)}' is {shown}; {fix}")

    def integer(self, key: str, default: int | _Required = REQUIRED, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`."""
        value = self.optional_integer(key, minimum)
        return self._or_default(key, value, default)

    def optional_integer(self, key: str, minimum: int = 0) -> int | None:
        """Return an integer of at least `minimum`, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not _is_number(value) or value != int(value) or value < minimum:
            raise self.error(key, value, f"it must be an integer of at least {minimum}")
        return int(value)

    def number(self, key: str, default: float | _Required = REQUIRED) -> float:
        """Return a finite number."""
        return self._or_default(key, self.optional_number(key), default)

    def optional_number(self, key: str) -> float | None:
        """Return a finite number, or None."""
        value = self.take(key)
        if value is None:
            return None
        if not _is_number(value):
            raise self.error(key, value, "it must be a finite number")
        return float(value)

    def positive(self, key: str, default: float | _Required = REQUIRED) -> float:
        """Return a number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self.error(key, value, "it must be a number above 0")
        return value

    def optional_positive(self, key: str) -> float | None:
        """Return a number above 0, or None."""
        return None if self.take(key) is None else self.positive(key)

    def boolean(self, key: str, default: bool) -> bool:
        """Return a boolean; 0 and 1 are accepted."""
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise self.error(key, value, "it must be true or false")

    def choice(self, key: str, default: str, allowed: Collection[str]) -> str:
        """Return one of the `allowed` strings."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.error(key, value, f"this package runs {', '.join(sorted(allowed))}")
        return value

    def section(self, key: str) -> "ConfigReader":
        """Return a reader of a nested object, empty when absent."""
        value = self.take(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(key, value, "it must be an object")
        return ConfigReader(value, self.name(key))

    def refuse(self, key: str, inert: Collection[Any], why: str, advice: str = "") -> None:
        """Refuse a key whose feature is not supported, unless its value is null or one of the `inert` ones."""
        value = self.take(key)
        if value is not None and value not in inert:
            more = f". {advice}" if advice else ""
            raise self.error(key, value, f"{why}, and ignoring it would change the model's output{more}")

    def ignore(self, keys: Collection[str]) -> None:
        """Mark keys that do not change inference as known."""
        self._taken.update(keys)

    def finish(self) -> None:
        """Refuse the keys that were not taken: an unknown key may change the mathematics."""
        unknown = sorted(key for key in set(self._data) - self._taken if self._data[key] is not None)
        if not unknown:
            return
        key = unknown[0]
        near = nearest_name(key, self._taken)
        hint = f"did you mean '{self.name(near)}'?" if near is not None else "no MPT model is known to have it"
        more = f" (and {len(unknown) - 1} more: {', '.join(unknown[1:9])})" if len(unknown) > 1 else ""
        raise self.error(key, self._data[key], f"unknown key; {hint}{more}")

    def _or_default(self, key: str, value: Any, default: Any) -> Any:
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise ConfigError(f"config key '{self.name(key)}' is missing; a config.json of the MPT family must have it")
        return default
