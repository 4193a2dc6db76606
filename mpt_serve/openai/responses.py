"""POST /v1/responses: the assistant's next message and calls, in OpenAI's newer API. Chat generates them."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from mpt_serve.openai.chat import prepare_conversation
from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.errors import ApiError, error_body
from mpt_serve.openai.logprobs import chat_logprobs
from mpt_serve.openai.output_choice import ChoicePart, Token
from mpt_serve.openai.protocol.response_bodies import ResponseBody, ResponseEvent, ResponseUsage
from mpt_serve.openai.protocol.response_request import ResponseRequest
from mpt_serve.openai.protocol.responses import ChatFinishReason, ChatTokenLogprob
from mpt_serve.openai.response_builder import ResponseBasis, ResponseBuilder
from mpt_serve.openai.response_output import Event, ResponseOutput
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.sse import StreamForm
from mpt_serve.openai.tool_messages import new_message
from mpt_serve.openai.usage import Usage

__all__ = ["ResponsesBuilder", "prepare_response"]


class ResponsesBuilder(ResponseBuilder):
    """Builds a response of /v1/responses. request: what it responds to."""

    id_prefix = "resp"
    form = StreamForm(named=True, end=b"")
    plain = False  # events are numbered

    def __init__(self, basis: ResponseBasis, *, request: ResponseRequest) -> None:
        super().__init__(basis)
        self._request = request
        self._message = new_message(request.chat.choice.mode != "none")
        self._content_chars = 0
        self._tokens: deque[Token] = deque()  # whose text has not come, or belongs to a call
        self._result = ResponseOutput()
        self._finish_reason: ChatFinishReason | None = None
        self._num_events = 0

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> ResponseBody:
        """Return the response without streaming."""
        self.chunks(parts[0])
        return self._ended(usage)

    def opening(self, usage: Usage) -> Sequence[ResponseEvent]:
        """Return the events that a response begins with."""
        return [self._event((name, {"response": self._body("in_progress")})) for name in ("created", "in_progress")]

    def chunks(self, part: ChoicePart) -> Sequence[ResponseEvent]:
        """Return the events of a piece."""
        return list(map(self._event, self._read(part)))

    def closing(self, usage: Usage) -> Sequence[ResponseEvent]:
        """Return the event with the whole response."""
        body = self._ended(usage)
        return [self._event((body["status"], {"response": body}))]

    def failure(self, error: ApiError) -> ResponseEvent:
        """Return the event that ends a stream with an error, and with what has come before."""
        list(self._result.end(complete=False))
        body = self._body("failed")
        body["error"] = {"code": "server_error", "message": error_body(error)["error"]["message"]}
        return self._event(("failed", {"response": body}))

    def _read(self, part: ChoicePart) -> Iterable[Event]:
        delta = self._message.delta(part)
        self._finish_reason = self._message.finish_reason(part)
        self._tokens.extend(part.tokens)
        content, calls = delta.get("content") or "", delta.get("tool_calls", ())
        ended = self._finish_reason is not None
        if content or (ended and not calls and not self._result.items):
            self._content_chars += len(content)
            yield from self._result.text(content, self._logprobs())
        for call in calls:
            yield from self._result.call(call)
        if ended:
            yield from self._result.end(complete=self._finish_reason != "length")

    def _logprobs(self) -> list[ChatTokenLogprob]:
        """Return the log probabilities of the tokens whose text the message has now."""
        count = self._output.logprobs
        come: list[Token] = []
        while self._tokens and self._tokens[0].offset < self._content_chars:
            come.append(self._tokens.popleft())
        return [] if count is None else chat_logprobs(come, count, self._names)["content"]

    def _event(self, event: Event) -> ResponseEvent:
        name, members = event
        number = self._num_events
        self._num_events += 1
        return cast(ResponseEvent, {"type": f"response.{name}", "sequence_number": number, **members})

    def _ended(self, usage: Usage) -> ResponseBody:
        """Return the response with all that has come."""
        body = self._body("incomplete" if self._finish_reason == "length" else "completed")
        if body["status"] == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        body["usage"] = _usage(usage)
        return body

    def _body(self, status: Literal["in_progress", "completed", "incomplete", "failed"]) -> ResponseBody:
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model_id,
            "output": list(self._result.items),
            "usage": None,
            "background": False,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": request.text_format},
            "tool_choice": request.tool_choice or "auto",
            "tools": [tool.echo for tool in request.tools],
            "top_logprobs": request.top_logprobs,
            "top_p": request.top_p,
            "truncation": "disabled",
        }


def _usage(usage: Usage) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


async def prepare_response(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a request, render its conversation as chat does and tokenize it. Raises ApiError."""
    request = ResponseRequest.parse(body).with_defaults(context.backend.model.sampling_defaults)
    unknown = ResponseRequest.unknown_fields(body)
    with request.names.in_errors():
        prepared = await prepare_conversation(context, request.chat)
    builder = partial(ResponsesBuilder, request=request)
    return replace(prepared, builder=builder, unknown=unknown, names=request.names)
