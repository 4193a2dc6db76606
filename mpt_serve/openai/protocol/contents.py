"""Contents of messages: a string, or an array of parts of which the text is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.protocol.field_types import encodable
from mpt_serve.openai.protocol.schema_words import json_type
from mpt_serve.openai.protocol.validation_errors import invalid, unsupported

__all__ = ["MAX_PARTS", "ContentForm"]

MAX_PARTS = 1024


@dataclass(frozen=True, eq=False)
class ContentForm:
    """The form of a content, and the validator that returns its text; that of several parts is joined by line ends.

    words: what is accepted. members: by a part's type, the member that holds its text.
    """

    words: str
    members: Mapping[str, str]

    def __call__(self, value: Any) -> str:
        if isinstance(value, str):
            return encodable(value)
        if not isinstance(value, list):
            raise invalid(f"must be {self.words}; got {json_type(value)}")
        if not 0 < len(value) <= MAX_PARTS:
            raise invalid(f"must be a string or an array of 1 to {MAX_PARTS} parts; got {len(value)} parts")
        return "\n".join(self._part(part, f"[{place}]") for place, part in enumerate(value))

    def _part(self, part: Any, place: str) -> str:
        if not isinstance(part, dict):
            raise invalid(f"must be an object; got {json_type(part)}", place)
        kind = part.get("type")
        member = self.members.get(kind) if isinstance(kind, str) else None
        if member is None:
            *first, last = (f'"{name}"' for name in self.members)
            readable = f"{', '.join(first)} or {last}" if first else last
            raise unsupported(f"must be {readable}: the models read nothing else", f"{place}.type")
        text = part.get(member)
        if not isinstance(text, str):
            raise invalid(f"must be a string; got {json_type(text)}", f"{place}.{member}")
        return encodable(text, f"{place}.{member}")
