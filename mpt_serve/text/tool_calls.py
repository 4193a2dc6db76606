"""Generated text with tool calls, taken apart as it arrives."""

import re
from dataclasses import dataclass
from enum import Enum, auto

from mpt_serve.text.tool_format import CALL_TAG, call_end

__all__ = ["CallPiece", "ToolCallParser"]

_BEGIN = re.compile(r'\s*\{"name": "([^"\\]*)", "arguments": ')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of the call with this number; the first one has the function's name."""

    index: int
    name: str | None
    arguments: str


class _State(Enum):
    CONTENT = auto()
    BEGIN = auto()
    ARGUMENTS = auto()
    BETWEEN = auto()


class ToolCallParser:
    """Separates the calls in a text from what stands before them. The text is of the grammar of `tools`.

    num_calls: begun so far. What may be part of a tag waits for the next text. Of a call that is cut off, the
    arguments are a beginning of those that it would have had.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._state = _State.CONTENT
        self._waiting = ""

    @property
    def complete(self) -> bool:
        """Return whether there are calls, and all have ended."""
        return self._state is _State.BETWEEN

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Return the content that the text adds, and at most one piece of each call, in order."""
        self._waiting += text
        content = ""
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        while True:
            state = self._state
            if state is _State.CONTENT:
                content += self._take_until(CALL_TAG, _State.BEGIN)
            elif state is _State.BETWEEN:
                self._take_until(CALL_TAG, _State.BEGIN)
            elif state is _State.ARGUMENTS:
                index = self.num_calls - 1
                arguments[index] = arguments.get(index, "") + self._take_until(call_end(), _State.BETWEEN)
            elif begin := _BEGIN.match(self._waiting):
                names[self.num_calls] = begin[1]
                self.num_calls += 1
                self._waiting = self._waiting[begin.end() :]
                self._state = _State.ARGUMENTS
            if self._state is state:
                break
        indices = sorted(names.keys() | {index for index, piece in arguments.items() if piece})
        return content, [CallPiece(index, names.get(index), arguments.get(index, "")) for index in indices]

    def finish(self) -> str:
        """Return the content that waits, when no more text comes."""
        rest = self._waiting if self._state is _State.CONTENT else ""
        self._waiting = ""
        return rest

    def _take_until(self, tag: str, following: _State) -> str:
        """Return what stands before the tag, as far as it is known, and go on to the state after it."""
        before, found, after = self._waiting.partition(tag)
        if found:
            self._waiting, self._state = after, following
            return before
        longest = min(len(tag) - 1, len(before))
        held = next((n for n in range(longest, 0, -1) if before.endswith(tag[:n])), 0)
        self._waiting = before[len(before) - held :]
        return before[: len(before) - held]
