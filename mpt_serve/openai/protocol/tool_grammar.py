"""What a message of the assistant's must match if it may have calls."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from mpt_serve.openai.protocol.closed_schema import closed
from mpt_serve.openai.protocol.tools import FunctionTool
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.tool_format import CALL_SEPARATOR, CALL_TAG, call_begin, call_end

__all__ = ["MAX_CALLS", "tools_grammar"]

MAX_CALLS = 16  # a weak model might never end otherwise


def tools_grammar(
    tools: Mapping[str, FunctionTool], mode: Literal["auto", "required"], at_most: int, content: GrammarSpec | None
) -> GrammarSpec:
    """Return the language of messages with calls.

    tools: those that may be called, by the path of their schema. mode: `auto` allows a message without calls.
    content: of kind json_object or json_schema, what such a message is then; None for any text, before calls too.
    """
    alternative: Any = False
    if mode == "auto":
        alternative = True if content is None else json.loads(content.text or '{"type": "object"}')
    calls = [
        {
            "name": place,
            "begin": call_begin(tool.function.name),
            "schema": closed(tool.schema_of_arguments),
            "end": call_end(),
        }
        for place, tool in tools.items()
    ]
    spec = {
        "content": alternative,
        "trigger": CALL_TAG,
        "tools": calls,
        "separator": CALL_SEPARATOR,
        "at_most": at_most,
    }
    return GrammarSpec("tools", json.dumps(spec, ensure_ascii=False, separators=(",", ":")))
