"""What the engine counts. Plain Python, so that other processes can read it."""

from dataclasses import dataclass, field

from mpt_serve.engine.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine. Counters start at 0 with the engine.

    running, waiting: choices of requests. free_blocks, total_blocks: of the KV cache; blocks that are only kept for
    later prompts are free.
    steps: steps dispatched. compilations: programs compiled while serving; with pre_compile it stays 0.
    compile_seconds: spent on compiling, at the start and while serving.
    prompt_tokens, cached_tokens: of prompts, and of those that were found in the cache rather than computed; a prompt
    counts once, however many choices it has.
    drafted_tokens, accepted_tokens: of speculative decoding.
    without_numbers: choices ended because the model's logits held no finite number; also among those `finished` with an
    error.
    finished: choices ended, by finish reason; those that a caller ended at a stop string are 'stop'.
    error: why the engine stopped, None while it works.
    notes: where the engine deviates from its settings (a shortened context), as sentences.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    max_model_len: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    compilations: int
    compile_seconds: float
    without_numbers: int
    finished: dict[FinishReason, int]
    error: str | None
    notes: tuple[str, ...]


@dataclass(slots=True)
class RequestCounters:
    """Counters over all requests; a prompt counts once, however many choices it has.

    cached_tokens: of the prompts of finished choices. finished: choices by finish reason.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    without_numbers: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
    )

    def submit(self, request: Request) -> None:
        """Count a choice that was submitted."""
        if request.is_first:
            self.prompt_tokens += len(request.prompt_ids)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Count a choice that finished."""
        self.finished[reason] += 1
        if request.is_first:
            self.cached_tokens += request.num_cached or 0


@dataclass(slots=True)
class DraftStats:
    """Counters of a drafter.

    rows: rows of steps that carried draft tokens. drafted: draft tokens in those rows. accepted: those that were right.
    emitted: ids that these rows generated, including the one that each row generates without drafts.
    """

    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
