"""Who guesses what requests generate next. Guesses are verified: they change how fast ids come, never which."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mpt_serve.engine.request import Request


class Drafter(Protocol):
    """Called by the engine's thread alone."""

    num_drafted: int
    num_accepted: int

    def hopes(self, request: Request) -> bool:
        """Whether guesses are likely once the request's token in flight is known: worth waiting for it."""

    def propose(self, requests: Sequence[Request]) -> Mapping[Request, Sequence[int]]:
        """Guesses for requests that decode next and whose ids are all known."""

    def observe(self, request: Request, drafts: Sequence[int], taken: int) -> None:
        """Learn that `taken` ids came from a row with these drafts: all but one of them were drafts."""

    def step_took(self, num_tokens: int, seconds: float) -> None:
        """Learn how long a step with so many tokens takes."""

    def forget(self, request: Request) -> None:
        """The request has ended."""
