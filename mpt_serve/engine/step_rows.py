"""The rows of a step: which tokens of which requests it computes, and after which of them it samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mpt_serve.engine.request import Request

Drafts = Mapping[Request, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One request's share of a step: compute the tokens at positions [start, start + length).

    samples: number of its last tokens after which an id is sampled: 0 for a chunk that ends inside the prompt, 1 at the
        sequence's end, 1 + len(drafts) where drafts are verified.
    token_in_flight: the host does not know the row's last token yet; the device has it.
    drafts: the row's last tokens, which are draft tokens.
    """

    request: Request
    start: int
    length: int
    samples: int
    token_in_flight: bool
    drafts: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """Return the position after the last token."""
        return self.start + self.length

    @property
    def num_generated(self) -> int:
        """Return how many ids the request has generated before the first one that the row samples."""
        return self.stop - self.samples + 1 - len(self.request.prompt_ids)

    @property
    def masked(self) -> bool:
        """Return whether some id may not be sampled at some position of the row."""
        token_masks = self.request.token_masks
        return self.samples > 0 and token_masks is not None and token_masks.apply(self.num_generated)

    def undo(self) -> None:
        """Take the row back, whose step was abandoned: its tokens are to be computed again.

        No later row of its request may have been scheduled. The request keeps its slot and its blocks.
        """
        self.request.in_flight -= bool(self.samples)
        if self.request.finish_reason is None:
            self.request.num_computed = self.start


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of one step; the first `num_decode` rows have one token each.

    copies: (from, to) pairs of cache blocks, to be copied before the step writes anything.
    """

    rows: list[Row]
    num_decode: int
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that the step computes."""
        return sum(row.length for row in self.rows)

    @property
    def num_samples(self) -> int:
        """Return the number of ids that the step samples."""
        return sum(row.samples for row in self.rows)

    @property
    def background(self) -> bool:
        """Return whether nobody waits for any of the step's rows."""
        return all(row.request.background for row in self.rows)

    @property
    def speculative(self) -> bool:
        """Return whether the sampled ids decide where the step's rows end."""
        return any(row.drafts for row in self.rows)

    @property
    def needs_ids(self) -> bool:
        """Return whether masks of the step depend on the ids that the step before samples."""
        return any(row.samples and row.request.token_masks and row.request.token_masks.needs_ids for row in self.rows)


def readers_of(request: Request, running: Sequence[Request]) -> list[Request]:
    """Return running choices that have computed the prompt that the request needs, or are about to."""
    unscored = request.wants_prompt_logprobs and len(request.prompt_logprobs) < len(request.prompt_ids)
    if request.output_ids or unscored:
        return []
    return [other for other in running if other.siblings is request.siblings]


def has_all_rows(
    step: StepRows, foreground: int, left: int, running: Sequence[Request], waiting: Sequence[Request]
) -> bool:
    """Return whether no prompt may have rows in a step, which then is complete. running, waiting: in order.

    foreground: its rows of requests that are not in the background. left: tokens for the prompts of those that are.
    """
    if left > 0 and (waiting or len(step.rows) < len(running)):
        return False
    if waiting and not waiting[0].background:
        return False
    return foreground == len(running) or running[foreground].background


def has_written_prompt(request: Request, rows: Sequence[Row], begun: int) -> bool:
    """Return whether steps before this one have computed its prompt: copies come before what the step itself writes.

    Rows from `begun` on belong to requests just admitted; even the blocks found for those may be written in this step.
    """
    prompt = len(request.prompt_ids)
    writing = any(row.request is request and (i >= begun or row.start < prompt) for i, row in enumerate(rows))
    return request.num_computed >= prompt and not writing
