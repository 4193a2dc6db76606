"""What the engine counts, and how that is told to others."""

from dataclasses import dataclass, field

from mpt_serve.engine.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine. Counters start at 0 with the engine.

    running, waiting: choices of requests. free_blocks, total_blocks: of the key-value cache; blocks that are only kept
    for later prompts are free.
    steps: steps dispatched. compilations: programs compiled while serving; with pre_compile it stays 0.
    prompt_tokens, cached_tokens: of prompts, and of those that were found in the cache rather than computed; a prompt
    counts once, however many choices it has.
    drafted_tokens, accepted_tokens: of speculative decoding.
    finished: choices ended, by finish reason; those that a reader ended at a stop string are 'stop'.
    error: why the engine stopped, None while it works.
    notes: what was asked for at start and not given (a shortened context), as sentences.
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
    finished: dict[FinishReason, int]
    error: str | None
    notes: tuple[str, ...]


@dataclass(slots=True)
class Counters:
    """Counters that grow while requests come and go."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
    )

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Count a choice that ended."""
        self.finished[reason] += 1
        if request.is_first:
            self.cached_tokens += request.num_cached or 0
