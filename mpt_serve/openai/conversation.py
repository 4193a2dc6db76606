"""From a request's conversation to the prompt's ids."""

from collections.abc import Sequence

from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.text.tool_format import tool_texts, uses_tools

__all__ = ["tokenize_conversation"]


async def tokenize_conversation(context: ServerContext, request: ConversationRequest) -> Sequence[int]:
    """Render and tokenize a conversation.

    Raises InvalidValueError if the model has no usable chat template, or one that has no form for its tools.
    """
    model = context.backend.model
    if model.chat_refusal is not None:
        raise InvalidValueError(f"This model takes no conversations: {model.chat_refusal}.", param="messages")
    messages, tools = request.template_messages, request.prompt_tools
    if model.tools_refusal is not None and (tools or any(map(uses_tools, messages))):
        param = "tools" if tools else "messages"
        raise UnsupportedParameterError(f"'{param}' cannot have tools: {model.tools_refusal}.", param=param)
    context.require_bounded((message["content"] for message in messages), "messages")
    context.require_bounded(tool_texts(messages, tools), "tools")
    generation_prompt, continues = request.generation_prompt, request.continue_final_message
    return await context.backend.encode_chat(messages, generation_prompt, continues, tools)
