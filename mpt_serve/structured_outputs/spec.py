"""What an output must match, as plain data."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["GrammarKind", "GrammarSpec"]

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A language, to which every output belongs.

    text: for json_schema the schema, and for choice a list of strings, each as JSON; for regex the expression, which
        matches the whole output; for grammar a Lark grammar whose start rule is `start`; empty for json_object.
    """

    kind: GrammarKind
    text: str = ""
