"""From a request's conversation to the prompt's ids."""

from collections.abc import Sequence

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.server_context import ServerContext

__all__ = ["tokenize_conversation"]


async def tokenize_conversation(context: ServerContext, request: ConversationRequest) -> Sequence[int]:
    """Render and tokenize a conversation. Raises InvalidValueError if the model has no chat template."""
    if not context.backend.model.has_chat_template:
        raise InvalidValueError(
            "This model has no chat template, so it takes no conversations: use /v1/completions, or set the server's"
            " setting 'chat_template' to a format ('chatml' for the MPT chat models, 'dolly' for the MPT instruct"
            " models, or a .jinja file).",
            param="messages",
        )
    messages = request.template_messages
    context.require_bounded((message["content"] for message in messages), "messages")
    return await context.backend.encode_chat(messages, request.generation_prompt, request.continue_final_message)
