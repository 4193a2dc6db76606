"""POST /v1/score and /v1/rerank: the likelihood of texts after others, by the model's own log probabilities."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Generic, TypeVar

from mpt_serve.engine.request import TokenLogprobs
from mpt_serve.openai.endpoint import Prepared
from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.prompts import READ_AT_ONCE, encode_texts
from mpt_serve.openai.protocol.completions import CompletionRequest
from mpt_serve.openai.protocol.reading import ReadingRequest
from mpt_serve.openai.protocol.responses import Ranked, Rerank, Score, Scores
from mpt_serve.openai.protocol.scoring import RerankRequest, ScoreRequest
from mpt_serve.openai.response_builder import ResponseBasis, WholeBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.usage import Usage

__all__ = ["prepare_rerank", "prepare_score"]

RequestT = TypeVar("RequestT", bound=ReadingRequest)


class ScoringBuilder(WholeBuilder, Generic[RequestT]):
    """What both responses are built from.

    scored_from: for each pair, the position of the first token that counts. request: the pairs' request.
    """

    def __init__(self, basis: ResponseBasis, *, scored_from: Sequence[int], request: RequestT) -> None:
        super().__init__(basis)
        self._scored_from = scored_from
        self._request = request

    def _scored(self, part: ChoicePart) -> list[TokenLogprobs]:
        """Return the log probabilities of the tokens that count."""
        known = part.prompt_logprobs or ()
        return [token for token in known[self._scored_from[part.index] :] if token is not None]


class ScoresBuilder(ScoringBuilder[ScoreRequest]):
    """Builds the response of /v1/score."""

    id_prefix = "score"

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> Scores:
        """Return the response, with a score for each pair."""
        return {
            "id": self._id,
            "object": "list",
            "created": self._created,
            "model": self._model_id,
            "data": [self._score(part) for part in parts],
            "usage": usage.body(),
        }

    def _score(self, part: ChoicePart) -> Score:
        scored = self._scored(part)
        total = math.fsum(token.logprob for token in scored)
        return {
            "index": part.index,
            "object": "score",
            "score": total / len(scored) if self._request.normalize else total,
            "num_tokens": len(scored),
            "is_greedy": all(token.rank == 1 for token in scored),
        }


class RerankBuilder(ScoringBuilder[RerankRequest]):
    """Builds the response of /v1/rerank."""

    id_prefix = "rerank"

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> Rerank:
        """Return the response, the most relevant documents first; of equal ones the earlier."""
        ranked = [self._ranked(part) for part in parts]
        ranked.sort(key=lambda result: -result["relevance_score"])
        return {
            "id": self._id,
            "model": self._model_id,
            "results": ranked[: self._request.top_n],
            "usage": usage.body(),
        }

    def _ranked(self, part: ChoicePart) -> Ranked:
        scored = self._scored(part)
        mean = math.fsum(token.logprob for token in scored) / len(scored)
        result: Ranked = {"index": part.index, "relevance_score": math.exp(mean)}
        if self._request.return_documents:
            result["document"] = {"text": self._request.documents[part.index]}
        return result


async def prepare_score(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a request for scores and tokenize its texts. Raises ApiError."""
    request = ScoreRequest.parse(body)
    prompts, scored_from = await _tokenized(context, request, request.pairs, "text_2")
    builder = partial(ScoresBuilder, scored_from=scored_from, request=request)
    return _prepared(context, request, "text_2", prompts, scored_from, builder, ScoreRequest.unknown_fields(body))


async def prepare_rerank(context: ServerContext, body: Mapping[str, Any]) -> Prepared:
    """Validate a request for a ranking and tokenize its texts. Raises ApiError."""
    request = RerankRequest.parse(body)
    prompts, scored_from = await _tokenized(context, request, request.pairs, "documents")
    builder = partial(RerankBuilder, scored_from=scored_from, request=request)
    return _prepared(context, request, "documents", prompts, scored_from, builder, RerankRequest.unknown_fields(body))


def _prepared(
    context: ServerContext,
    request: ReadingRequest,
    param: str,
    prompts: Sequence[Sequence[int]],
    scored_from: Sequence[int],
    builder: Callable[[ResponseBasis], WholeBuilder],
    unknown: Sequence[str],
) -> Prepared:
    """Return a completion of the pairs that generates nothing, and reports the prompts' log probabilities."""
    only_read = {"max_tokens": 0, "prompt_logprobs": 0, "priority": request.priority, "cache_salt": request.cache_salt}
    options = SamplingOptions.of(CompletionRequest.parse({"prompt": [0], **only_read}), context.backend.model)
    return Prepared(prompts, param, options, 0, builder, unknown, scored_from=scored_from, at_once=READ_AT_ONCE)


async def _tokenized(
    context: ServerContext, request: ReadingRequest, pairs: Sequence[tuple[str, str]], param: str
) -> tuple[list[list[int]], list[int]]:
    """Return each pair as ids, and the position of the first that counts.

    A text is tokenized together with what comes before it, as it would be read. What counts begins where the ids
    differ from those of the text before alone: a token across the border counts. Where nothing remains before it, the
    id that ends texts takes that place.
    """
    context.require_model(request.model)
    if len(pairs) > context.limits.max_inputs:
        message = f"'{param}' must hold at most {context.limits.max_inputs} texts; got {len(pairs)}."
        raise InvalidValueError(message, param=param)
    await context.require_ready()
    context.require_bounded((before + text for before, text in pairs), param)
    known: dict[str, Sequence[int]]
    begin = context.backend.tokenizer.eos_token_ids[:1]
    befores = list(dict.fromkeys(before for before, _ in pairs if before))
    known = {"": (), **dict(zip(befores, await encode_texts(context, befores), strict=True))}
    wholes = await encode_texts(context, (before + text for before, text in pairs))
    prompts: list[list[int]] = []
    scored_from: list[int] = []
    for (before, _), whole in zip(pairs, wholes, strict=True):
        shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(known[before], whole, strict=False)))
        if shared >= len(whole):
            raise InvalidValueError(f"'{param}' has a text that adds no token: nothing to score.", param=param)
        prompts.append(list(whole) if shared else [*begin, *whole])
        scored_from.append(shared or len(begin))
    if 0 in scored_from:
        message = "No token begins a text of this model, so the first has no probability: send some text before it."
        raise InvalidValueError(message, param=param)
    return prompts, scored_from
