"""The requests of POST /tokenize and /detokenize."""

from typing import Annotated, ClassVar

from pydantic import Field

from mpt_serve.openai.protocol.field_types import ModelId, Text, TokenId
from mpt_serve.openai.protocol.messages import ConversationRequest
from mpt_serve.openai.protocol.request_model import Refused, RequestModel

__all__ = ["DetokenizeRequest", "TokenizeChatRequest", "TokenizeRequest"]

_TOKEN_STRS = Refused("return_token_strs", "tokens are returned as ids", (False,))


class TokenizeRequest(RequestModel):
    """The body of POST /tokenize with a text."""

    model: ModelId = None
    prompt: Text = Field(description="The text; send `messages` instead for a conversation.")
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own special tokens.")
    parse_special_tokens: bool = Field(
        True, description="Control tokens such as `<|endoftext|>` in the text become their ids; `false`: ordinary text."
    )

    refused: ClassVar[tuple[Refused, ...]] = (_TOKEN_STRS,)


class TokenizeChatRequest(ConversationRequest):
    """The body of POST /tokenize with a conversation."""

    refused: ClassVar[tuple[Refused, ...]] = (
        *ConversationRequest.refused,
        Refused("add_special_tokens", "chat templates write their own special tokens", (False,)),
        _TOKEN_STRS,
    )


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: ModelId = None
    tokens: Annotated[tuple[TokenId, ...], Field(max_length=262_144, strict=False, fail_fast=True)] = Field(
        description="The ids."
    )
