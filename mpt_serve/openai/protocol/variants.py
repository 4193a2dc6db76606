"""Objects of requests that are of one of several types, each with its own members."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator

from mpt_serve.openai.protocol.validation_errors import invalid, unsupported

__all__ = ["check_members", "one_of"]


def one_of(*names: str, otherwise: str) -> BeforeValidator:
    """Return what refuses other strings than these. otherwise: what it must be, and why nothing else is offered."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise unsupported(f"must be {otherwise}")
        return value

    return BeforeValidator(check)


def check_members(
    item: BaseModel, kind: str, required: Mapping[str, Sequence[str]], optional: Mapping[str, Sequence[str]] = {}
) -> None:
    """Raise an error for a member that an item lacks, or that belongs to those of another type.

    kind: what items are called. required, optional: the members of each type, beside those that all have.
    """
    own = str(item.__dict__["type"])
    for name in required[own]:
        if getattr(item, name) is None:
            raise invalid(f"is required in {kind} of the type {own}", name)
    allowed = {*required[own], *optional.get(own, ())}
    for name in (name for names in (*required.values(), *optional.values()) for name in names):
        if name not in allowed and getattr(item, name) is not None:
            raise invalid(f"belongs to {kind} of another type than {own}", name)
