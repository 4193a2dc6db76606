"""POST /v1/embeddings: the model's hidden states of texts."""

import base64
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.responses import Response

from mpt_serve.engine.sampling_params import Pooling
from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.prompts import READ_AT_ONCE, check_prompts, tokenize_prompts
from mpt_serve.openai.protocol.completions import CompletionRequest
from mpt_serve.openai.protocol.embeddings import EmbeddingRequest
from mpt_serve.openai.protocol.responses import Embedding, Embeddings
from mpt_serve.openai.response_builder import ResponseBasis, WholeBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.usage import Usage

__all__ = ["EmbeddingsBuilder", "prepare_embeddings"]

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class EmbeddingsBuilder(WholeBuilder):
    """Builds the response of /v1/embeddings. by_token: each embedding is a list of vectors, one of each token."""

    id_prefix = "embd"

    def __init__(self, basis: ResponseBasis, *, encoding: str, by_token: bool) -> None:
        super().__init__(basis)
        self._encoding = encoding
        self._by_token = by_token

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> Embeddings:
        """Return the response, with an embedding for each input."""
        return {
            "id": self._id,
            "object": "list",
            "created": self._created,
            "model": self._model_id,
            "data": [self._embedding(part) for part in parts],
            "usage": usage.body(),
        }

    def response(self, parts: Sequence[ChoicePart], usage: Usage) -> Response:
        """Return the HTTP response. Each vector is encoded alone: no other thread runs while the encoder does."""
        data = ",".join(map(_encoded, self.whole(parts, usage)["data"]))
        head, tail = _encode(self.whole([], usage)).split('"data":[]')  # no string of JSON has this in it
        return Response(f'{head}"data":[{data}]{tail}', media_type="application/json")

    def _embedding(self, part: ChoicePart) -> Embedding:
        assert part.hidden_states is not None
        embedding: str | list[float] | list[list[float]]
        if self._encoding == "base64":
            embedding = base64.b64encode(part.hidden_states).decode()
        elif self._by_token:
            embedding = list(_vectors(part.hidden_states, len(self._prompts[part.index])))
        else:
            [embedding] = _vectors(part.hidden_states, 1)
        return {"object": "embedding", "index": part.index, "embedding": embedding}


def _vectors(hidden_states: bytes, count: int) -> Iterator[list[float]]:
    """Yield the vectors, `count` of them, in float32 of this machine: little-endian, as everywhere that JAX runs."""
    size = len(hidden_states) // count
    for begin in range(0, len(hidden_states), size):
        yield array("f", hidden_states[begin : begin + size]).tolist()


def _encoded(embedding: Embedding) -> str:
    values = embedding["embedding"]
    if isinstance(values, list) and isinstance(values[0], list):
        encoded = f"[{','.join(map(_encode, values))}]"
    else:
        encoded = _encode(values)
    return f'{{"object":"embedding","index":{embedding["index"]},"embedding":{encoded}}}'


async def prepare_embeddings(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a request for embeddings and tokenize its inputs. Raises ApiError."""
    request = EmbeddingRequest.parse(body)
    context.require_model(request.model)
    await context.require_ready()
    cut = request.truncate_prompt_tokens is not None
    check_prompts(context, request.input, "input", context.limits.max_inputs, cut=cut)
    pooling = request.pooling or context.backend.model.embedding_pooling
    options = _options(context, request)
    ids = await tokenize_prompts(context, request.input, request.add_special_tokens, request.parse_special_tokens)
    prompts = [options.fit(prompt, context.backend.model, 0, "input") for prompt in ids]
    _check_size(context, prompts, pooling)
    return Prepared(
        prompts,
        "input",
        options,
        0,
        partial(EmbeddingsBuilder, encoding=request.encoding_format, by_token=pooling == "none"),
        EmbeddingRequest.unknown_fields(body),
        pooling=pooling,
        normalize=request.normalizes(pooling),
        at_once=READ_AT_ONCE,
    )


def _options(context: ServerContext, request: EmbeddingRequest) -> SamplingOptions:
    """Return the options of a completion that generates nothing."""
    only_read = {
        "max_tokens": 0,
        "priority": request.priority,
        "cache_salt": request.cache_salt,
        "truncate_prompt_tokens": request.truncate_prompt_tokens,
        "truncation_side": request.truncation_side,
    }
    return SamplingOptions.of(CompletionRequest.parse({"prompt": [0], **only_read}), context.backend.model)


def _check_size(context: ServerContext, prompts: Sequence[Sequence[int]], pooling: Pooling) -> None:
    """Raise InvalidValueError if the response would hold too many numbers."""
    vectors = sum(map(len, prompts)) if pooling == "none" else len(prompts)
    size, limit = context.backend.model.hidden_size, context.limits.max_embedding_numbers
    if vectors * size > limit:
        kind = "tokens" if pooling == "none" else "inputs"
        raise InvalidValueError(
            f"'input' has {vectors} {kind}, each with a vector of {size} numbers; a response can hold at most {limit}"
            f" numbers. Send at most {limit // size} {kind} in one request.",
            param="input",
        )
