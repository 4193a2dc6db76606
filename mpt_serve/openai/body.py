"""A JSON object in bytes: its structure is bounded before it is parsed."""

import json
import math
import re
from typing import Any, NoReturn

from model.checkpoint.json_names import RepeatedNameError, unique_members
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.errors import InvalidValueError

__all__ = ["parse_json_object"]

# Possessive and with an optional end, so that the scan is linear on any input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ITEMS_PER_MEMBER = 8
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_FIELD_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_MAX_DIGITS = 4300  # of an integer; Python refuses to parse more


def parse_json_object(body: bytes, limits: Limits, what: str = "The body") -> dict[str, Any]:
    """Parse a JSON object strictly.

    UTF-8, no NaN or infinity in any spelling, no member of an object twice, depth and items within the limits. A byte
    order mark, which some editors and .NET put before UTF-8, is skipped.
    Raises InvalidValueError, whose message begins with `what`; its `param` is the member with a number that is refused.
    """
    param = None
    try:
        _check_structure(body, limits)
        value = json.loads(
            body.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=unique_members,  # with none, parsing keeps the interpreter's lock until it is done
        )
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
    except _BadNumberError as error:
        problem, param = str(error), _member_with_bad_number(body)
    except _BadJsonError as error:
        problem = str(error)
    except RepeatedNameError as error:
        member = f"the member '{error.name}'" if _FIELD_NAME.fullmatch(error.name) else "a member"
        problem = f"has {member} twice"
    except ValueError:  # an integer of thousands of digits
        problem, param = "contains a number with too many digits", _member_with_bad_number(body)
    else:
        if isinstance(value, dict):
            return value
        problem = f"must be a JSON object, not {_kind(value)}"
    raise InvalidValueError(f"{what} {problem}.", param=param)


class _BadJsonError(ValueError):
    """Text that may be JSON, but is refused; the message says why."""


class _BadNumberError(_BadJsonError):
    """A number that is refused."""


def _check_structure(body: bytes, limits: Limits) -> None:
    """Raise an error for a body that is too large or too deep, in linear time: other requests wait meanwhile."""
    most_strings = 2 * limits.max_json_items + 1  # each is the name of a member, or an item
    skeleton, strings = _STRING.subn(b"", body, most_strings)
    brackets = skeleton.translate(None, _NOT_BRACKETS)
    openers = brackets.count(b"[") + brackets.count(b"{")
    if strings == most_strings or skeleton.count(b",") + openers > limits.max_json_items:
        raise _BadJsonError(f"has more than {limits.max_json_items} items")
    if skeleton.count(b":") > limits.max_json_items // _ITEMS_PER_MEMBER:  # objects take ten times as long as arrays
        raise _BadJsonError(f"has more than {limits.max_json_items // _ITEMS_PER_MEMBER} members of objects")
    depth = 0
    for bracket in brackets[: 2 * openers + 1]:  # one more than that is not JSON
        depth += 1 if bracket in b"[{" else -1
        if depth > limits.max_json_depth:
            raise _BadJsonError(f"is nested more than {limits.max_json_depth} levels deep")


def _refuse_constant(name: str) -> NoReturn:
    raise _BadNumberError(f"contains {name}, which is not JSON: numbers must be finite")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _BadNumberError("contains a number beyond the range of 64-bit floats: numbers must be finite")
    return value


def _member_with_bad_number(body: bytes) -> str | None:
    """Return the name of the outermost member with a number that is refused; None if it is no name of a field."""
    bad = object()
    outermost: str | None = None

    def is_bad(value: Any) -> bool:
        return any(map(is_bad, value)) if isinstance(value, list) else value is bad

    def note(members: list[tuple[str, Any]]) -> Any:  # objects inside others come first
        nonlocal outermost
        outermost = next((name for name, value in members if is_bad(value)), None)
        return bad if outermost is not None else {}

    try:
        json.loads(
            body.decode("utf-8-sig"),
            parse_constant=lambda _: bad,
            parse_float=lambda digits: bad if math.isinf(float(digits)) else None,
            parse_int=lambda digits: bad if len(digits) > _MAX_DIGITS else None,
            object_pairs_hook=note,
        )
    except ValueError:  # it has other faults, too
        return None
    return outermost if outermost is not None and _FIELD_NAME.fullmatch(outermost) else None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
