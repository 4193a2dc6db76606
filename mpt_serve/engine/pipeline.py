"""The engine's steps in a pipeline: while the device computes step k + 1, the host reads what step k sampled."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from jax import Array

from model.sampling.batch import PROMPT
from mpt_serve.engine.request import Request, TokenLogprobs
from mpt_serve.engine.runner import SCORED, PreparedStep, Runner
from mpt_serve.engine.scheduler import Drafts, Row, Scheduler, StepRows
from mpt_serve.engine.speculative import Drafter
from mpt_serve.engine.step_inputs import generated_before, is_masked
from mpt_serve.engine.step_output import Sampled
from mpt_serve.engine.token_masks import Words, mask_words
from mpt_serve.errors import RequestError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step brought one request."""

    request: Request
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(slots=True)
class _Step:
    """A step from its scheduling to its reading. scores: (request, place in the prompt, number, packed array)."""

    rows: StepRows
    prepared: PreparedStep
    states: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]]]
    sampled: Array | None = None
    scores: list[tuple[Request, int, int, Array]] = field(default_factory=list)

    @property
    def needs_ids(self) -> bool:
        """Masks of it depend on the ids that the step before samples."""
        return any(row.samples and row.request.limits and row.request.limits.needs_ids for row in self.rows.rows)


class Pipeline:
    """Schedules steps, runs them, and takes what they sampled. One thread calls `turn`.

    on_scheduled: called when there is a step, before the device is asked for it.
    on_taken: called for each request that a step brought something, also when that ended it.
    on_failed: called for a request that cannot go on, with the reason.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        vocab_size: int,
        drafter: Drafter | None,
        on_scheduled: Callable[[], None],
        on_taken: Callable[[StepOutput], None],
        on_failed: Callable[[Request, str], None],
    ) -> None:
        self.num_steps = 0
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._drafter = drafter
        self._on_scheduled = on_scheduled
        self._on_taken = on_taken
        self._on_failed = on_failed
        self._ahead: _Step | None = None
        self._read_at: float | None = None  # when the step before was read; None after a pause

    @property
    def busy(self) -> bool:
        """A step is on its way."""
        return self._ahead is not None

    def turn(self) -> None:
        """Start the next step, if there is something to compute, and take what the one before sampled."""
        behind, self._ahead = self._ahead, None
        if behind is not None and self._decides(behind):
            self._take(behind)
            behind = None
        step = self._schedule()
        if step is not None:
            for state in step.states:
                self._runner.set_state(*state)
            if step.needs_ids:
                states, logits = self._runner.forward(step.prepared)
                if behind is not None:
                    self._take(behind)
                    behind = None
                step.sampled = self._runner.sample(step.prepared, logits, self._masks(step))
            else:
                states, step.sampled = self._runner.step(step.prepared, self._masks(step))
            self._score(step, states)
        if behind is not None:
            self._take(behind)
        self._ahead = step
        if step is None:
            self._read_at = None

    def drain(self) -> None:
        """Wait for the step on its way, and forget it."""
        if self._ahead is not None and self._ahead.sampled is not None:
            self._ahead.sampled.block_until_ready()
        self._ahead = None

    def _decides(self, step: _Step) -> bool:
        """Whether the next step waits for what this one sampled: where drafts were verified, or drafts may follow."""
        if step.rows.speculative or self._drafter is None:
            return step.rows.speculative
        decoding = self._decoding()
        return bool(decoding) and self._drafter.worth_reading(decoding, len(self._scheduler.running))

    def _decoding(self) -> list[Request]:
        """Requests that go on with one token."""
        running = self._scheduler.running
        return [r for r in running if r.num_tokens == r.num_computed + 1 and not r.exhausted]

    def _drafts(self) -> Drafts:
        if self._drafter is None:
            return {}
        decoding = self._decoding()
        lengths = self._drafter.plan(decoding, len(self._scheduler.running)) if decoding else []
        if not any(lengths):
            return {}
        drafts = self._drafter.draft(decoding, lengths)
        return {request: _verifiable(request, ids) for request, ids in zip(decoding, drafts, strict=True)}

    def _schedule(self) -> _Step | None:
        rows = self._scheduler.schedule(self._drafts())
        if not rows.rows:
            return None
        self.num_steps += 1
        self._on_scheduled()
        states = [self._state_of(row.request) for row in rows.rows if row.samples and _lacks_state(row.request)]
        return _Step(rows, self._runner.prepare(rows), states)

    def _score(self, step: _Step, states: Array) -> None:
        """Start scoring the ids of prompts that follow the step's tokens, where requests want to know."""
        begin = 0
        for row in step.rows.rows:
            if row.request.wants_prompt_logprobs:
                self._score_row(step, row, begin, states)
            begin += row.length

    def _score_row(self, step: _Step, row: Row, begin: int, states: Array) -> None:
        """Score what follows a row's tokens, the first of which is the step's token `begin`."""
        request = row.request
        place, stop = max(row.start + 1, len(request.prompt_logprobs)), min(row.stop + 1, len(request.prompt_ids))
        for first in range(place, stop, SCORED):
            ids = request.prompt_ids[first : min(first + SCORED, stop)]
            packed = self._runner.score(states, begin + first - 1 - row.start, ids)
            step.scores.append((request, first, len(ids), packed))

    def _state_of(self, request: Request) -> tuple[int, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """What penalties and bias of a request start from, for its slot."""
        assert request.slot is not None
        counts = np.bincount(request.output_ids, minlength=self._vocab_size).astype(np.int32)
        counts[list(request.prompt_ids)] += PROMPT
        bias = np.zeros(self._vocab_size, np.float32)
        for token, value in request.params.biases:
            bias[token] = value
        request.state_is_set = True
        return request.slot, counts, bias

    def _masks(self, step: _Step) -> Words | None:
        rows = step.rows.rows
        if not any(is_masked(row) for row in rows):
            return None
        masks = np.zeros((step.prepared.key.num_samples, mask_words(self._vocab_size)), np.uint32)
        begin = 0
        for row in rows:
            if is_masked(row) and row.request.finish_reason is None:
                self._fill(row, masks[begin : begin + row.samples])
            begin += row.samples
        return masks

    def _fill(self, row: Row, masks: Words) -> None:
        request = row.request
        assert request.limits is not None
        try:
            request.limits.fill(generated_before(row), request.output_ids, row.drafts, masks)
        except Exception as error:
            self._give_up(request, error)

    def _give_up(self, request: Request, error: Exception) -> None:
        """End a request whose guide cannot go on, for its limits of work or memory."""
        logger.warning("%s: its guide failed: %s", request.request_id, error)
        # Other errors are ours, and what they say is for the log alone.
        known = isinstance(error, RequestError)
        self._on_failed(request, str(error) if known else "the guide of the request could not say what may follow")

    def _take(self, step: _Step) -> None:
        sampled = Sampled.read(step.sampled)
        scores = [(request, place, Sampled.read(packed), count) for request, place, count, packed in step.scores]
        self._time(step.rows)
        for request, place, scored, count in scores:
            if place == len(request.prompt_logprobs):
                request.prompt_logprobs += scored.logprobs(0, count, request.params.prompt_logprobs or 0)
        self._accept(step.rows.rows, sampled)

    def _time(self, step: StepRows) -> None:
        """Tell the drafter how long a step without prompts took, from one reading to the next."""
        now = time.monotonic()
        decodes = all(row.samples == row.length for row in step.rows)
        if self._drafter is not None and self._read_at is not None and decodes:
            self._drafter.step_took(step.num_tokens, now - self._read_at)
        self._read_at = now

    def _accept(self, rows: Sequence[Row], sampled: Sampled) -> None:
        begins = dict(zip(map(id, rows), np.cumsum([0, *(row.samples for row in rows)]).tolist(), strict=False))
        for row, count in self._scheduler.accept(rows, sampled.ids(sum(row.samples for row in rows))):
            request = row.request
            if not count and request.finish_reason is None:
                continue
            token_ids = tuple(request.output_ids[len(request.output_ids) - count :])
            if self._drafter is not None and row.drafts:
                self._drafter.observe(request, len(row.drafts), count - 1)
            logprobs = None
            if request.params.logprobs is not None:
                begin = begins[id(row)]
                logprobs = tuple(sampled.logprobs(begin, begin + count, request.params.logprobs))
            self._on_taken(StepOutput(request, token_ids, logprobs))
            self._advance_guide(request, token_ids)

    def _advance_guide(self, request: Request, token_ids: Sequence[int]) -> None:
        if request.limits is None or request.finish_reason is not None:
            return
        try:
            for token in token_ids:
                request.limits.accept(token)
        except Exception as error:
            self._give_up(request, error)


def _verifiable(request: Request, drafts: Sequence[int]) -> Sequence[int]:
    if request.limits is None or not drafts:
        return drafts
    return drafts[: request.limits.count_verifiable(drafts)]


def _lacks_state(request: Request) -> bool:
    return (request.params.penalised or bool(request.params.logit_bias)) and not request.state_is_set
