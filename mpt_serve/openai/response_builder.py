"""What the responses of completions and chat have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from mpt_serve.openai.ids import new_id
from mpt_serve.openai.logprobs import prompt_logprobs
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.token_names import TokenNames
from mpt_serve.openai.usage import Usage

__all__ = ["ResponseBuilder"]


class ResponseBuilder(ABC):
    """Builds one response, whole or in chunks, all with the same id and time.

    prompts: ids of each prompt; they have the same number of choices, numbered prompt by prompt.
    """

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self, model_id: str, output: OutputOptions, names: TokenNames, prompts: Sequence[Sequence[int]], choices: int
    ) -> None:
        self._id = new_id(self.id_prefix)
        self._created = int(time.time())
        self._model_id = model_id
        self._output = output
        self._names = names
        self._prompts = prompts
        self._choices = choices
        self._begun: set[int] = set()
        self._known_prompt_logprobs: dict[int, list[dict[str, Any] | None]] = {}

    @abstractmethod
    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        """Return a finished choice."""

    @abstractmethod
    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        """Return a piece of a choice."""

    def opening(self) -> Sequence[dict[str, Any]]:
        """Return the chunks that a stream begins with, before any text."""
        return ()

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> dict[str, Any]:
        """Return the response without streaming."""
        choices = [self.whole_choice(part) for part in parts]
        return {**self._head(self.whole_object), "choices": choices, "usage": usage.body()}

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a chunk of the stream, without its usage."""
        return {**self._head(self.chunk_object), "choices": list(choices)}

    def _head(self, object_: str) -> dict[str, Any]:
        return {"id": self._id, "object": object_, "created": self._created, "model": self._model_id}

    def _prompt_of(self, index: int) -> Sequence[int]:
        return self._prompts[index // self._choices]

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        """Return the member with the ids of a choice's prompt, if they are requested."""
        return {"prompt_token_ids": list(self._prompt_of(index))} if self._output.token_ids else {}

    def _token_ids(self, part: ChoicePart) -> dict[str, Any]:
        """Return the member with the generated ids of a piece, if they are requested."""
        ids = [token.token_id for token in part.tokens if not token.of_prompt]
        return {"token_ids": ids} if self._output.token_ids else {}

    def _prompt_logprobs(self, part: ChoicePart) -> dict[str, Any]:
        """Return the member with the prompt's log probabilities, null if they are not requested."""
        count = self._output.prompt_logprobs
        if count is None or part.prompt_logprobs is None:
            return {"prompt_logprobs": None}
        prompt = part.index // self._choices
        if prompt not in self._known_prompt_logprobs:  # the same for each of its choices, and large
            shaped = prompt_logprobs(self._prompts[prompt], part.prompt_logprobs, count, self._names)
            self._known_prompt_logprobs[prompt] = shaped
        return {"prompt_logprobs": self._known_prompt_logprobs[prompt]}
