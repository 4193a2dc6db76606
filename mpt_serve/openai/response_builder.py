"""What the responses of all endpoints that generate have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.responses import JSONResponse, Response

from mpt_serve.openai.errors import ApiError, error_body
from mpt_serve.openai.ids import new_id
from mpt_serve.openai.logprobs import prompt_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.protocol.responses import PromptLogprobs
from mpt_serve.openai.sse import CHUNKS, StreamForm
from mpt_serve.openai.token_names import TokenNames
from mpt_serve.openai.usage import Usage

__all__ = ["Chunk", "ResponseBasis", "ResponseBuilder", "WholeBuilder"]

Chunk = Mapping[str, object]  # one of those in `protocol`


@dataclass(frozen=True)
class ResponseBasis:
    """What every response is built from.

    prompts: ids of each prompt; they have the same number of `choices`, numbered prompt by prompt.
    embedded: that many of the first ones are embeddings, and have no ids.
    """

    model_id: str
    output: OutputOptions
    names: TokenNames
    prompts: Sequence[Sequence[int]]
    choices: int
    embedded: int = 0


class WholeBuilder(ABC):
    """Builds one response."""

    id_prefix: ClassVar[str]

    def __init__(self, basis: ResponseBasis) -> None:
        self._id = new_id(self.id_prefix)
        self._created = int(time.time())
        self._model_id = basis.model_id
        self._output = basis.output
        self._names = basis.names
        self._prompts = basis.prompts
        self._choices = basis.choices
        self._embedded = basis.embedded
        self._begun: set[int] = set()  # choices that have had a chunk
        self._shaped_prompt_logprobs: dict[int, PromptLogprobs] = {}

    @abstractmethod
    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> Mapping[str, object]:
        """Return the response without streaming, made of the finished choices."""

    def response(self, parts: Sequence[ChoicePart], usage: Usage) -> Response:
        """Return the same as an HTTP response."""
        return JSONResponse(self.whole(parts, usage))


class ResponseBuilder(WholeBuilder):
    """Builds one response, whole or in chunks, all with the same id and time.

    form: of its streams.
    """

    form: ClassVar[StreamForm] = CHUNKS

    @abstractmethod
    def chunks(self, part: ChoicePart) -> Sequence[Chunk]:
        """Return the chunks of a stream for a piece of a choice; none if it adds nothing."""

    @property
    def plain(self) -> bool:
        """Return whether a piece with text alone has one chunk with that text, and nothing else that depends on it."""
        return True

    def opening(self, usage: Usage) -> Sequence[Chunk]:
        """Return the chunks that a stream begins with, before any text."""
        return ()

    @abstractmethod
    def closing(self, usage: Usage) -> Sequence[Chunk]:
        """Return the chunks that a stream ends with, after the last piece of every choice."""

    def failure(self, error: ApiError) -> Chunk:
        """Return the chunk that ends a stream with an error."""
        return error_body(error)

    def _prompt_ids(self, index: int) -> list[int] | None:
        """Return the ids of a choice's prompt; None for one of embeddings."""
        prompt = index // self._choices
        return None if prompt < self._embedded else list(self._prompts[prompt])

    def _prompt_logprobs(self, part: ChoicePart) -> PromptLogprobs | None:
        """Return the prompt's log probabilities; None if they are not requested."""
        count = self._output.prompt_logprobs
        if count is None or part.prompt_logprobs is None:
            return None
        prompt = part.index // self._choices
        if prompt not in self._shaped_prompt_logprobs:  # the same for each of its choices, and large
            shaped = prompt_logprobs(self._prompts[prompt], part.prompt_logprobs, count, self._names)
            self._shaped_prompt_logprobs[prompt] = shaped
        return self._shaped_prompt_logprobs[prompt]
