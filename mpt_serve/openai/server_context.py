"""What every endpoint works with: the backend, the limits, and the checks they share."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mpt_serve.configuration.limits import IGNORED_FIELDS_HEADER, Limits
from mpt_serve.openai.backend import Backend
from mpt_serve.openai.body_reader import BodyReader
from mpt_serve.openai.errors import (
    ContextLengthError,
    InvalidValueError,
    ModelNotFoundError,
    NotReadyError,
    UnsupportedParameterError,
    client_sentence,
)
from mpt_serve.openai.gate import TextRequests
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.server_metrics import ServerMetrics
from mpt_serve.text.tool_format import tool_texts, uses_tools

__all__ = ["ServerContext"]

logger = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_MAX_NAMES = 16
_MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class ServerContext:
    """The backend, the limits and the counters, with the checks that the endpoints share."""

    backend: Backend
    limits: Limits
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    bodies: BodyReader = field(init=False)
    text_requests: TextRequests = field(init=False)
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bodies", BodyReader(self.limits))
        object.__setattr__(self, "text_requests", TextRequests(self.limits.max_waiting_texts))

    def require_model(self, model_id: str | None) -> None:
        """Raise ModelNotFoundError unless the id is omitted or the served model's."""
        if model_id is not None and model_id != self.backend.model.id:
            message = f"The requested model does not exist; the served model is '{self.backend.model.id}'."
            raise ModelNotFoundError(message, param="model")

    async def require_ready(self, wait: bool = True) -> None:
        """Raise NotReadyError while requests cannot be served; with `wait`, only if a bounded wait does not help."""
        readiness = await (self.backend.wait_ready() if wait else self.backend.readiness())
        if not readiness.ready:
            message = readiness.reason or "The server cannot take requests now."
            error = NotReadyError(message, code=readiness.code, retry_after_s=readiness.retry_after_s)
            if readiness.progress is not None:
                error.loading = {"stage": readiness.stage, "progress": readiness.progress}
            raise error

    def require_bounded(self, texts: Iterable[str], param: str) -> None:
        """Raise InvalidValueError for more text than one request may have tokenized, whatever is cut off later."""
        chars, limit = sum(map(len, texts)), self.limits.max_text_chars
        if chars > limit:
            message = f"'{param}' has {chars} characters; this server tokenizes at most {limit} for one request."
            raise InvalidValueError(message, param=param)

    def require_short(self, text: str, param: str) -> None:
        """Raise ContextLengthError for a text that cannot fit into the context, without tokenizing it."""
        model = self.backend.model
        if model.max_chars_per_token is None or len(text) <= model.max_model_len * model.max_chars_per_token:
            return
        raise ContextLengthError(
            f"This model's maximum context length is {model.max_model_len} tokens, and the prompt is too long: it has"
            f" {len(text)} characters, at least {len(text) // model.max_chars_per_token} tokens. Send at most"
            f" {model.max_model_len - 1} prompt tokens, which truncate_prompt_tokens cuts a prompt to.",
            param=param,
        )

    async def tokenize_conversation(self, request: ConversationRequest) -> Sequence[int]:
        """Render and tokenize a conversation.

        Raises InvalidValueError if the model has no usable chat template, or one that has no form for its tools.
        """
        model = self.backend.model
        if model.chat_refusal is not None:
            message = client_sentence(f"This model takes no conversations: {model.chat_refusal}")
            raise InvalidValueError(message, param="messages")
        messages, tools = request.template_messages, request.prompt_tools
        if model.tools_refusal is not None and (tools or any(map(uses_tools, messages))):
            param = "tools" if tools else "messages"
            raise UnsupportedParameterError(f"'{param}' cannot have tools: {model.tools_refusal}.", param=param)
        self.require_bounded((message["content"] for message in messages), "messages")
        self.require_bounded(tool_texts(messages, tools), "tools")
        ending = (request.generation_prompt, request.continue_final_message)
        return await self.backend.encode_chat(messages, *ending, tools, request.add_special_tokens)

    def ignored_fields_header(self, unknown: Iterable[str]) -> Mapping[str, str]:
        """Return the header that names unknown fields, and warn of the first ones in the log.

        Names are text of clients: the log has them at DEBUG alone, each once in the life of the process.
        Raises UnsupportedParameterError where the settings refuse them.
        """
        unknown = list(unknown)
        names = [name for name in unknown if _PLAIN_NAME.fullmatch(name)]
        if unknown and self.limits.unknown_fields == "refuse":
            named = f"'{names[0]}'" if names else "A field of the request"
            message = f"{named} is unknown to this server, whose setting 'limits.unknown_fields' refuses that: omit it."
            raise UnsupportedParameterError(message, param=names[0] if names else None)
        shown = names[:_MAX_NAMES] + (["..."] if len(names) > _MAX_NAMES or not set(unknown) <= set(names) else [])
        new = [name for name in names[:_MAX_NAMES] if name not in self._warned]
        if new and len(self._warned) < _MAX_REMEMBERED:
            if not self._warned:
                logger.warning(
                    "A request has unknown fields, which have no effect; its response's %s names them",
                    IGNORED_FIELDS_HEADER,
                )
            self._warned.update(new)
            logger.debug("unknown fields: %s", ", ".join(new))
        return {IGNORED_FIELDS_HEADER: ", ".join(shown)} if shown else {}
