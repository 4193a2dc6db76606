"""The output of /v1/responses: a message and calls, whole and as events, from the pieces that are generated."""

from collections.abc import Iterator, Sequence
from typing import Any

from mpt_serve.openai.ids import new_id
from mpt_serve.openai.protocol.response_bodies import FunctionCallItem, MessageItem, OutputItem, OutputText
from mpt_serve.openai.protocol.responses import ChatTokenLogprob, ToolCallDelta

__all__ = ["Event", "ResponseOutput"]

Event = tuple[str, dict[str, Any]]  # the type, after `response.`, and the members


class ResponseOutput:
    """The items of one response, which grow by pieces. Its methods return the events of what they add.

    items: as far as they have come.
    """

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._open = False  # whether the last item may grow

    def text(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> Iterator[Event]:
        """Add text of the message, with the log probabilities of its tokens."""
        if not self._open:
            item: MessageItem = {
                "id": new_id("msg"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            yield self._add(item)
            part: OutputText = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item["content"].append(part)
            yield "content_part.added", {**self._place(item), "content_index": 0, "part": {**part, "logprobs": []}}
        message = self.items[-1]
        assert message["type"] == "message"  # nothing follows a call but calls
        (part,) = message["content"]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            place = {**self._place(message), "content_index": 0}
            yield "output_text.delta", {**place, "delta": text, "logprobs": list(logprobs)}

    def call(self, delta: ToolCallDelta) -> Iterator[Event]:
        """Add a piece of a call."""
        function = delta["function"]
        if "name" in function:
            yield from self.end()
            item: FunctionCallItem = {
                "id": new_id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": delta["id"],
                "name": function["name"],
                "arguments": "",
            }
            yield self._add(item)
        call = self.items[-1]
        assert call["type"] == "function_call"
        call["arguments"] += function["arguments"]
        if function["arguments"]:
            yield "function_call_arguments.delta", {**self._place(call), "delta": function["arguments"]}

    def end(self, complete: bool = True) -> Iterator[Event]:
        """End the last item, if there is one that may grow. complete: whether nothing of it is missing."""
        if not self._open:
            return
        item = self.items[-1]
        self._open = False
        item["status"] = "completed" if complete else "incomplete"
        place = self._place(item)
        if item["type"] == "message":
            (part,) = item["content"]
            ended = {**place, "content_index": 0}
            yield "output_text.done", {**ended, "text": part["text"], "logprobs": part["logprobs"]}
            yield "content_part.done", {**ended, "part": part}
        else:
            ended = {**place, "name": item["name"], "arguments": item["arguments"]}
            yield "function_call_arguments.done", ended
        yield "output_item.done", {"output_index": place["output_index"], "item": item}

    def _add(self, item: OutputItem) -> Event:
        self.items.append(item)
        self._open = True
        return "output_item.added", {"output_index": len(self.items) - 1, "item": _copy(item)}

    def _place(self, item: OutputItem) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.items) - 1}


def _copy(item: OutputItem) -> dict[str, Any]:
    """Return an item as it begins, since it grows before its event is written."""
    return {**item, "content": []} if item["type"] == "message" else {**item}
