"""The request of POST /v1/embeddings."""

from typing import ClassVar, Literal

from pydantic import Field

from mpt_serve.engine.sampling_params import Pooling
from mpt_serve.openai.protocol.completions import Prompts
from mpt_serve.openai.protocol.field_types import TokensKept, shown_default
from mpt_serve.openai.protocol.reading import ReadingRequest
from mpt_serve.openai.protocol.request_model import Refused

__all__ = ["EmbeddingRequest"]


class EmbeddingRequest(ReadingRequest):
    """The body of POST /v1/embeddings."""

    input: Prompts = Field(description="What is embedded: an embedding for each.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or float32 in little-endian order as base64, a quarter of the size."
    )
    pooling: Pooling | None = Field(
        None,
        description="What an embedding is made of: the `mean` of all tokens' hidden states, the `last` token's, or"
        " `none`: one vector of each token.",
        json_schema_extra=shown_default("the setting `embedding_pooling`"),
    )
    normalize: bool | None = Field(
        None,
        description="Scale each vector to the length 1, as OpenAI's are; `false`: the hidden states as they are.",
        json_schema_extra=shown_default("`true`, with `pooling` `none` `false`"),
    )
    add_special_tokens: bool = Field(True, description="Let the tokenizer add its own special tokens to texts.")
    parse_special_tokens: bool = Field(
        True, description="Control tokens such as `<|endoftext|>` in texts become their ids; `false`: ordinary text."
    )
    truncate_prompt_tokens: TokensKept | None = Field(
        None,
        description="Cut a longer input to this number of tokens; -1 cuts to the context's length.",
        json_schema_extra=shown_default("never cut"),
    )
    truncation_side: Literal["left", "right"] = Field("left", description="The side that the cut takes tokens from.")

    refused: ClassVar[tuple[Refused, ...]] = (
        Refused("dimensions", "the model was not trained so that a part of a vector stands for the whole"),
        Refused("messages", "send the text as `input`"),
        Refused("embd_normalize", "use `normalize`", (2,)),
        Refused("use_activation", "use `normalize`"),
        Refused("embed_dtype", "`base64` is float32", ("float32",)),
        Refused("endianness", "`base64` is little-endian", ("native", "little")),
    )

    def normalizes(self, pooling: Pooling) -> bool:
        """Return whether vectors are scaled, with the pooling that the request has or the server's."""
        return pooling != "none" if self.normalize is None else self.normalize
