"""The parts that completion and chat answers have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from mpt_serve.openai.choice import ChoicePart
from mpt_serve.openai.ids import new_id
from mpt_serve.openai.usage import Usage

__all__ = ["Answer"]


class Answer(ABC):
    """Shapes one answer, whole or in chunks, all under one id and time."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model_id: str) -> None:
        self._id = new_id(self.id_prefix)
        self._created = int(time.time())
        self._model_id = model_id

    @abstractmethod
    def whole_choice(self, part: ChoicePart) -> dict[str, Any]:
        """Return a finished choice."""

    @abstractmethod
    def chunk_choice(self, part: ChoicePart) -> dict[str, Any]:
        """Return a piece of a choice."""

    def opening_choices(self, choices: int) -> Sequence[dict[str, Any]]:
        """Return what a stream says about its choices before any text."""
        return ()

    def whole(self, parts: Sequence[ChoicePart], usage: Usage) -> dict[str, Any]:
        """Return the unstreamed answer."""
        choices = [self.whole_choice(part) for part in parts]
        return {**self._head(self.whole_object), "choices": choices, "usage": usage.body()}

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a chunk of the stream, without its usage."""
        return {**self._head(self.chunk_object), "choices": list(choices)}

    def _head(self, object_: str) -> dict[str, Any]:
        return {"id": self._id, "object": object_, "created": self._created, "model": self._model_id}
