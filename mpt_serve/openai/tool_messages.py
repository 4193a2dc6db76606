"""Messages with tool calls in the shapes of the API, from the text that is generated for them."""

from mpt_serve.openai.ids import new_id
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.protocol.responses import (
    AssistantMessage,
    CalledFunctionDelta,
    ChatDelta,
    ChatFinishReason,
    ToolCallBody,
    ToolCallDelta,
)
from mpt_serve.text.tool_calls import CallPiece, ToolCallParser

__all__ = ["PlainMessage", "ToolMessage", "new_message"]


class PlainMessage:
    """One choice's message without calls."""

    def delta(self, part: ChoicePart) -> ChatDelta:
        """Return what the next part adds, maybe nothing."""
        return {"content": part.text} if part.text else {}

    def whole(self, part: ChoicePart) -> AssistantMessage:
        """Return the message of a choice that is one part."""
        return {"role": "assistant", "content": part.text, "refusal": None}

    def finish_reason(self, part: ChoicePart) -> ChatFinishReason | None:
        """Return why the message ends with the part; None if it does not."""
        return part.finish_reason


class ToolMessage:
    """One choice's message that may have calls, made of its parts: all as they come, or the whole as one."""

    def __init__(self) -> None:
        self._parser = ToolCallParser()

    def delta(self, part: ChoicePart) -> ChatDelta:
        """Return what the next part adds, maybe nothing."""
        content, calls = self._read(part)
        delta: ChatDelta = {}
        if content:
            delta["content"] = content
        if calls:
            delta["tool_calls"] = [_delta(call) for call in calls]
        return delta

    def whole(self, part: ChoicePart) -> AssistantMessage:
        """Return the message of a choice that is one part."""
        content, calls = self._read(part)
        message: AssistantMessage = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [_call(call) for call in calls]
        return message

    def finish_reason(self, part: ChoicePart) -> ChatFinishReason | None:
        """Return why the message ends with the part that was read last; None if it does not."""
        return "tool_calls" if part.finish_reason == "stop" and self._parser.complete else part.finish_reason

    def _read(self, part: ChoicePart) -> tuple[str, list[CallPiece]]:
        content, calls = self._parser.push(part.text)
        return (content if part.finish_reason is None else content + self._parser.finish()), calls


def new_message(calls: bool) -> PlainMessage | ToolMessage:
    """Return the message of a choice. calls: whether it may have some."""
    return ToolMessage() if calls else PlainMessage()


def _delta(piece: CallPiece) -> ToolCallDelta:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function: CalledFunctionDelta = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": new_id("call"), "type": "function", "function": function}


def _call(piece: CallPiece) -> ToolCallBody:
    assert piece.name is not None  # the first piece of its call
    return {"id": new_id("call"), "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}
