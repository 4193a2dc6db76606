"""What an output must match, as plain data."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["GrammarKind", "GrammarSpec"]

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "tools"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A language, to which every output belongs.

    text: for json_schema the schema, and for choice a list of strings, each as JSON; for regex the expression, which
        matches the whole output; for grammar a Lark grammar whose start rule is `start`; empty for json_object; for
        tools an object as JSON:
        content: what may stand in place of calls: true for any text, which calls may follow; false for nothing; or a
            JSON Schema.
        trigger: what begins a call, and only that; no other text contains it.
        tools: the calls. Each has a `begin`, which follows the trigger, a JSON `schema`, an `end`, and a `name` for
            error messages. separator: between calls. at_most: that many calls.
    """

    kind: GrammarKind
    text: str = ""
