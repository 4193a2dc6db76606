"""The interface of drafters."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mpt_serve.engine.request import Request
from mpt_serve.engine.stats import DraftStats
from mpt_serve.engine.step_costs import StepCosts


class Drafter(ABC):
    """Proposes the ids that follow sequences. Not thread-safe: the engine's thread alone calls it.

    step_sizes: the numbers of tokens that steps are padded to. max_draft_tokens: for one request in one step.

    Around every step the engine calls, in this order: `worth_reading` while the step before is in flight, and where
    that returns True it reads that step first; `plan`, then `draft`, whose drafts it may shorten; after the step,
    `observe` for each row with draft tokens, and `step_took`. `forget` ends a request. All but `draft` are fast.
    """

    def __init__(self, step_sizes: Sequence[int], max_draft_tokens: int) -> None:
        if max_draft_tokens < 1:
            raise ValueError(f"max_draft_tokens must be at least 1, got {max_draft_tokens}")
        self.stats = DraftStats()
        self.max_draft_tokens = max_draft_tokens
        self._costs = StepCosts(step_sizes)

    @abstractmethod
    def worth_reading(self, requests: Sequence[Request], num_rows: int) -> bool:
        """Return whether to read the ids in flight before the next step of num_rows rows, as drafts will probably pay.

        requests: those that continue with one token. A step that starts before the last ids are known has no drafts.
        """

    @abstractmethod
    def plan(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        """Return how many ids to draft for each request of a step of num_rows rows; 0 where none pay.

        Requests with ids in flight get none, nor do those whose logits depend on the ids before (penalties).
        """

    @abstractmethod
    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return the drafts that `plan` decided on, one for each request, possibly shorter. May use the device."""

    @abstractmethod
    def forget(self, request: Request) -> None:
        """Take note that a request has ended, which may never have run, and drop what is known of it."""

    def observe(self, request: Request, drafted: int, accepted: int) -> None:
        """Take note that a step verified `drafted` >= 1 draft tokens and accepted the first `accepted` of them."""
        self.stats.rows += 1
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        self.stats.emitted += accepted + 1

    def step_took(self, num_tokens: int, seconds: float) -> None:
        """Take note of how long a step of num_tokens tokens took, drafts included, without chunks of prompts.

        seconds: from one step's ids being read to the next's, so that the host's work in between counts too.
        """
        self._costs.measured(num_tokens, seconds)

    def max_drafts(self, request: Request) -> int:
        """Return how many ids may be drafted for a request: its last id needs no draft, as each row generates one."""
        if request.params.penalised:
            return 0
        return max(0, min(self.max_draft_tokens, request.max_output - request.num_generated - 1))


def before_stop(request: Request, draft: list[int]) -> list[int]:
    """Return the draft up to the first id that would end the request: a row generates that id anyway."""
    end = next((i for i, token in enumerate(draft) if token in request.stop_ids), len(draft))
    return draft[:end]
