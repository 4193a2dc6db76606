"""From a request's conversation to the prompt's ids."""

from collections.abc import Sequence

from mpt_serve.openai.errors import InvalidValueError, client_sentence
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.server_context import ServerContext

__all__ = ["tokenize_conversation"]


async def tokenize_conversation(context: ServerContext, request: ConversationRequest) -> Sequence[int]:
    """Render and tokenize a conversation. Raises InvalidValueError if the model has no usable chat template."""
    refusal = context.backend.model.chat_refusal
    if refusal is not None:
        raise InvalidValueError(client_sentence(f"This model takes no conversations: {refusal}"), param="messages")
    messages = request.template_messages
    context.require_bounded((message["content"] for message in messages), "messages")
    return await context.backend.encode_chat(
        messages, request.generation_prompt, request.continue_final_message, request.add_special_tokens
    )
