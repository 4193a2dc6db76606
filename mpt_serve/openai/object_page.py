"""Lists of objects in pages: the query parameters `limit`, `after` and `order`."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from mpt_serve.openai.errors import InvalidValueError

__all__ = ["page_of"]


class Identified(Protocol):
    """Something with an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


def page_of(objects: Sequence[T], query: Mapping[str, str], most: int, default: int) -> tuple[Sequence[T], bool]:
    """Return the objects of a page, and whether others follow.

    objects: the newest first, which is the order unless the query says `asc`. most: of a page; default: without
    `limit`. Raises InvalidValueError.
    """
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidValueError("'order' must be 'asc' or 'desc'.", param="order")
    ordered = list(objects) if order == "desc" else list(reversed(objects))
    begin = 0
    if "after" in query:
        places = [place for place, each in enumerate(ordered) if each.id == query["after"]]
        if not places:
            raise InvalidValueError("'after' must be the id of an object in the list.", param="after")
        begin = places[0] + 1
    text = query.get("limit", str(default))
    limit = int(text) if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) else 0
    if not 1 <= limit <= most:
        raise InvalidValueError(f"'limit' must be an integer from 1 to {most}.", param="limit")
    return ordered[begin : begin + limit], begin + limit < len(ordered)
