"""What requests share whose prompts are only read."""

from typing import Annotated

from pydantic import Field

from mpt_serve.openai.protocol.compatibility import IGNORED
from mpt_serve.openai.protocol.field_types import ModelId, shown_default
from mpt_serve.openai.protocol.request_model import RequestModel

__all__ = ["ReadingRequest"]


class ReadingRequest(RequestModel):
    """The fields that embeddings, scores and rankings share: nothing is generated after their prompts."""

    model: ModelId = None
    priority: int = Field(
        0, ge=-1000, le=1000, description="Lower goes first: each unit is worth 16 places in the queue."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None,
        description="Cached texts are shared only between requests with the same salt.",
        json_schema_extra=shown_default("shared by all without one"),
    )
    user: str | None = Field(None, max_length=1024, description="Nothing is kept by user.", json_schema_extra=IGNORED)
