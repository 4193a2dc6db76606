"""What the engine asks of a drafter."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import Request
from mpt_serve.engine.speculative.step_costs import StepCosts


@dataclass(slots=True)
class DraftStats:
    """Counters of a drafter, from 0 with the engine.

    rows: rows of steps that carried a draft. drafted: ids in those drafts. accepted: those that were right.
    emitted: ids that these rows yielded, the one that each yields anyway included.
    """

    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0


class Drafter(ABC):
    """Proposes the ids that follow sequences. Not thread-safe: the engine's thread alone calls it.

    step_sizes: the numbers of tokens that steps are padded to. max_draft_tokens: of one request in one step.

    Around every step the engine calls, in this order: `worth_reading` while the step before is in flight, and where
    that says so it reads that step first; `plan`, then `draft`, whose drafts it may cut short; after the step,
    `observe` for each row with a draft, and `step_took`. `forget` ends a request. All but `draft` are quick.
    """

    def __init__(self, step_sizes: Sequence[int], max_draft_tokens: int) -> None:
        if max_draft_tokens < 1:
            raise ValueError(f"max_draft_tokens must be at least 1, got {max_draft_tokens}")
        self.stats = DraftStats()
        self.max_draft_tokens = max_draft_tokens
        self._costs = StepCosts(step_sizes)

    @abstractmethod
    def worth_reading(self, requests: Sequence[Request], num_rows: int) -> bool:
        """Whether to read the ids in flight before the next step of num_rows rows, as drafts will probably pay.

        requests: those that go on with one token. A step that starts before the last ids are known cannot carry drafts.
        """

    @abstractmethod
    def plan(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        """How many ids to draft for each request of a step of num_rows rows; 0 where none pay.

        Requests with ids in flight get none, nor do those whose logits depend on the ids before (penalties).
        """

    @abstractmethod
    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """The drafts that `plan` decided on, one for each request, perhaps shorter. May use the device."""

    @abstractmethod
    def forget(self, request: Request) -> None:
        """The request has ended. Unknown requests do nothing."""

    def observe(self, request: Request, drafted: int, accepted: int) -> None:
        """A step has checked `drafted` >= 1 ids of the request's draft, and the first `accepted` of them were right."""
        self.stats.rows += 1
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        self.stats.emitted += accepted + 1

    def step_took(self, num_tokens: int, seconds: float) -> None:
        """A step of num_tokens tokens, drafts included and no chunk of a prompt among them, took so long.

        From one step's ids being read to the next's, so that what the host does in between counts too.
        """
        self._costs.measured(num_tokens, seconds)

    def room(self, request: Request) -> int:
        """Ids that may be drafted for a request: its last id needs no draft, as each row yields one anyway."""
        if request.params.penalised:
            return 0
        return max(0, min(self.max_draft_tokens, request.max_output - request.num_generated - 1))


def before_stop(request: Request, draft: list[int]) -> list[int]:
    """The draft without the first id that would end the request and all after it: a row yields that id anyway."""
    end = next((i for i, token in enumerate(draft) if token in request.stop_ids), len(draft))
    return draft[:end]
