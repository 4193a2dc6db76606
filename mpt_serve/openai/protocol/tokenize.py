"""The requests of POST /tokenize and /detokenize."""

from typing import Annotated

from pydantic import Field

from mpt_serve.openai.protocol.field_types import ModelId, Text, TokenId
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.protocol.request_model import RequestModel

__all__ = ["DetokenizeRequest", "TokenizeChatRequest", "TokenizeRequest"]

ReturnTokenStrs = Annotated[
    bool, Field(description="Add `token_strs`: the tokens as the vocabulary writes them, such as `Ġthe`.")
]


class TokenizeRequest(RequestModel):
    """The body of POST /tokenize with a text."""

    model: ModelId = None
    prompt: Text = Field(description="The text; send `messages` instead for a conversation.")
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own special tokens.")
    parse_special_tokens: bool = Field(
        True, description="Control tokens such as `<|endoftext|>` in the text become their ids; `false`: ordinary text."
    )
    return_token_strs: ReturnTokenStrs = False


class TokenizeChatRequest(ConversationRequest):
    """The body of POST /tokenize with a conversation."""

    return_token_strs: ReturnTokenStrs = False


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: ModelId = None
    tokens: Annotated[tuple[TokenId, ...], Field(max_length=262_144, strict=False, fail_fast=True)] = Field(
        description="The ids."
    )
