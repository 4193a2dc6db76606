"""The engine's steps in a pipeline: while the device computes step k + 1, the host reads what step k sampled.

Steps in the background run one by one, and may be abandoned, so that whoever comes hardly waits for them. One turn
starts such a step and the next one ends it, so that what others have generated is delivered, and those that have come
are known, before anything waits for it.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from jax import Array

from model.sampling.batch import PROMPT
from model.sampling.sampler import NO_NUMBER
from mpt_serve.engine.background_priority import BackgroundPriority
from mpt_serve.engine.named_logprobs import Named, read_named, start_named
from mpt_serve.engine.prefill_limit import PrefillLimit
from mpt_serve.engine.programs import SCORED
from mpt_serve.engine.request import NO_NUMBERS_MESSAGE, NO_STATES_MESSAGE, Request
from mpt_serve.engine.runner import PreparedStep
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.speculative import Drafter
from mpt_serve.engine.stats_board import StatsBoard
from mpt_serve.engine.step_output import Sampled, SampledIds, StepFailure, StepOutput, TurnResult
from mpt_serve.engine.step_rows import Drafts, Row, StepRows
from mpt_serve.engine.thread_choice import ThreadChoice
from mpt_serve.engine.token_masks import Words, mask_words
from mpt_serve.errors import RequestError

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """The device's side of a pipeline; see `Runner`."""

    def prepare(self, step: StepRows) -> PreparedStep: ...

    def step(self, step: PreparedStep, masks: Words | None = None) -> tuple[Array | None, Sampled]: ...

    def completes(self, sampled: Sampled) -> bool: ...

    def forward(self, step: PreparedStep) -> tuple[Array, Array]: ...

    def sample(self, step: PreparedStep, logits: Array, masks: Words | None = None) -> Array: ...

    def set_slot(self, slot: int, counts: npt.NDArray[np.int32], bias: npt.NDArray[np.float32]) -> None: ...

    def score(self, hidden_states: Array, begin: int, ids: Sequence[int], stride: int = 1) -> Array: ...

    def final_states(self, hidden_states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...


@dataclass(slots=True)
class _Step:
    """A step from its scheduling to its reading.

    sampled: the packed array. scores: (request, position of the first id, number of ids, packed array).
    pooled: (row, the step's token that is its first) of rows whose hidden states are wanted; hidden_states: [T, d]
        float32 before the last norm, None where no row's are.
    named: what rows, by their places, have of ids that their requests name.
    """

    rows: StepRows
    prepared: PreparedStep
    sampled: Sampled | None = None
    scores: list[tuple[Request, int, int, Array]] = field(default_factory=list)
    pooled: list[tuple[Row, int]] = field(default_factory=list)
    hidden_states: Array | None = None
    named: dict[int, Named] = field(default_factory=dict)


class Pipeline:
    """Schedules steps, runs them, and takes what they sampled. One thread calls it.

    Requests that a step ends, and those that fail, have left the scheduler when `turn` returns.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        vocab_size: int,
        drafter: Drafter | None,
        stats: StatsBoard,
        prefill_limit: PrefillLimit | None = None,
        threads: ThreadChoice | None = None,
        priority: BackgroundPriority | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._drafter = drafter
        self._stats = stats
        self._prefill_limit = prefill_limit
        self._threads = threads
        self._priority = priority
        self._ahead: _Step | None = None
        self._read_at: float | None = None  # when the step before was read; None after a pause

    @property
    def busy(self) -> bool:
        """Return whether a step is in flight."""
        return self._ahead is not None

    def turn(self) -> TurnResult:
        """Start the next step, if there is something to compute, and read what the one before sampled.

        After a step in the background the next one is left to the next turn.
        """
        result = TurnResult()
        try:
            self._turn(result)
        except Exception as error:
            result.error = error
        return result

    def drain(self) -> None:
        """Wait for the step in flight, and forget it."""
        if self._ahead is not None and self._ahead.sampled is not None:
            self._ahead.sampled.block_until_ready()
        self._ahead = None

    def _turn(self, result: TurnResult) -> None:
        behind, self._ahead = self._ahead, None
        if behind is not None and behind.rows.background:
            self._end_background(behind, result)
            return
        if behind is not None and self._must_read(behind):
            self._read(behind, result)
            behind = None
        step = self._schedule()
        if step is not None:
            result.scheduled = True
            self._set_slots(step.rows)
            if self._threads is not None:
                self._threads.use(step.prepared.key.num_tokens, spare_one=step.rows.background)
            hidden_states: Array | None
            if step.rows.needs_ids:
                hidden_states, logits = self._runner.forward(step.prepared)
                if behind is not None:
                    self._read(behind, result)
                    behind = None
                step.sampled = self._runner.sample(step.prepared, logits, self._masks(step, result))
            else:
                hidden_states, step.sampled = self._runner.step(step.prepared, self._masks(step, result))
            if hidden_states is not None:
                self._use_hidden_states(step, hidden_states)
        if behind is not None:
            self._read(behind, result)
        self._ahead = step
        if step is None:
            self._read_at = None
        elif step.rows.background:  # which is measured from here
            self._read_at = time.monotonic()

    def _end_background(self, step: _Step, result: TurnResult) -> None:
        """Wait for a step in the background and read it, or take its rows back if it was abandoned."""
        assert step.sampled is not None
        with nullcontext() if self._priority is None else self._priority.lowered():
            done = self._runner.completes(step.sampled)
        if done:
            self._read(step, result)
        else:
            self._scheduler.undo(step.rows.rows)
        self._read_at = None

    # The next step

    def _must_read(self, step: _Step) -> bool:
        """Return whether to read this step before the next one: where it verifies drafts, or drafts may follow."""
        if step.rows.speculative or self._drafter is None:
            return step.rows.speculative
        decoding = self._decoding()
        return bool(decoding) and self._drafter.worth_reading(decoding, self._num_foreground())

    def _decoding(self) -> list[Request]:
        """Return the requests that continue with one token, and may have drafts: those in the background have none."""
        running = self._scheduler.running
        return [r for r in running if r.num_tokens == r.num_computed + 1 and not r.exhausted and not r.background]

    def _num_foreground(self) -> int:
        """Return how many running requests may have rows beside drafts: those in the background have none."""
        return sum(not request.background for request in self._scheduler.running)

    def _drafts(self) -> Drafts:
        if self._drafter is None:
            return {}
        decoding = self._decoding()
        lengths = self._drafter.plan(decoding, self._num_foreground()) if decoding else []
        if not any(lengths):
            return {}
        drafts = self._drafter.draft(decoding, lengths)
        return {request: _verifiable(request, ids) for request, ids in zip(decoding, drafts, strict=True)}

    def _schedule(self) -> _Step | None:
        if self._prefill_limit is None:
            rows = self._scheduler.schedule(self._drafts())
        else:
            rows = self._scheduler.schedule(self._drafts(), self._prefill_limit.beside, self._prefill_limit.background)
            self._prefill_limit.scheduled(rows)
        if not rows.rows:
            return None
        # Published before the device is asked: a step that hangs there must be seen as one that has begun.
        self._stats.steps += 1
        self._stats.publish()
        return _Step(rows, self._runner.prepare(rows))

    def _set_slots(self, step: StepRows) -> None:
        """Set the state of slots whose request has penalties or a bias and samples for the first time there."""
        for row in step.rows:
            request, params = row.request, row.request.params
            if row.samples and not request.slot_state_is_set and (params.penalised or params.logit_bias):
                self._set_slot(request)

    def _set_slot(self, request: Request) -> None:
        assert request.slot is not None
        counts = np.bincount(request.output_ids, minlength=self._vocab_size).astype(np.int32)
        counts[request.read_ids] += PROMPT
        bias = np.zeros(self._vocab_size, np.float32)
        for token, value in request.params.biases:
            bias[token] = value
        request.slot_state_is_set = True
        self._runner.set_slot(request.slot, counts, bias)

    def _masks(self, step: _Step, result: TurnResult) -> Words | None:
        """Return the masks of a step's samples, [S, W]; None where nothing is masked."""
        rows = step.rows.rows
        if not any(row.masked for row in rows):
            return None
        masks = np.zeros((step.prepared.key.num_samples, mask_words(self._vocab_size)), np.uint32)
        begin = 0
        for row in rows:
            if row.masked and row.request.finish_reason is None:
                self._fill(row, masks[begin : begin + row.samples], result)
            begin += row.samples
        return masks

    def _fill(self, row: Row, masks: Words, result: TurnResult) -> None:
        request = row.request
        assert request.token_masks is not None
        try:
            request.token_masks.fill(row.num_generated, request.output_ids, row.drafts, masks)
        except Exception as error:
            self._fail(request, error, result)

    def _use_hidden_states(self, step: _Step, hidden_states: Array) -> None:
        """Start scoring the ids of prompts that follow the step's tokens, and keep hidden states that requests want."""
        begin = 0

        def score(token: int, ids: Sequence[int]) -> Array:
            return self._runner.score(hidden_states, token, ids, stride=0)

        for place, row in enumerate(step.rows.rows):
            if row.request.wants_prompt_logprobs:
                self._score_row(step, row, begin, hidden_states)
            if (named := start_named(row, begin, score, SCORED)) is not None:
                step.named[place] = named
            if row.request.pooled is not None and row.stop > row.request.pooled.begin:
                step.pooled.append((row, begin))
            begin += row.length
        if step.pooled:
            step.hidden_states = hidden_states
            hidden_states.copy_to_host_async()

    def _score_row(self, step: _Step, row: Row, begin: int, hidden_states: Array) -> None:
        """Score what follows a row's tokens, the first of which is the step's token `begin`."""
        request = row.request
        start, stop = max(row.start + 1, len(request.prompt_logprobs)), min(row.stop + 1, len(request.prompt_ids))
        for first in range(start, stop, SCORED):
            ids = request.prompt_ids[first : min(first + SCORED, stop)]
            packed = self._runner.score(hidden_states, begin + first - 1 - row.start, ids)
            step.scores.append((request, first, len(ids), packed))

    # The step before

    def _read(self, step: _Step, result: TurnResult) -> None:
        assert step.sampled is not None
        sampled = SampledIds.read(step.sampled)
        scores = [(request, first, SampledIds.read(packed), count) for request, first, count, packed in step.scores]
        self._measure(step)
        for request, first, scored, count in scores:
            if not scored.has_numbers(0, count):
                self._end_broken(request, NO_NUMBERS_MESSAGE, result)
            elif first == len(request.prompt_logprobs):
                request.prompt_logprobs += scored.logprobs(0, count, request.params.prompt_logprobs or 0)
        if step.hidden_states is not None:
            self._pool(step.pooled, np.asarray(step.hidden_states), result)
        self._accept(step, sampled, result)

    def _pool(
        self, rows: Sequence[tuple[Row, int]], hidden_states: npt.NDArray[np.float32], result: TurnResult
    ) -> None:
        """Hand requests the hidden states of their tokens; a preempted one has some of them already."""
        for row, begin in rows:
            pooled = row.request.pooled
            assert pooled is not None
            if row.request.finish_reason is not None:
                continue
            skipped = max(0, pooled.begin - row.start)
            states = self._runner.final_states(hidden_states[begin + skipped : begin + row.length])
            if np.isfinite(states).all():
                pooled.take(states)
            else:
                self._end_broken(row.request, NO_STATES_MESSAGE, result)

    def _measure(self, step: _Step) -> None:
        """Note how long a step took, from one reading to the next; some want to know of those without prompts alone."""
        now = time.monotonic()
        if self._read_at is not None:
            seconds, rows = now - self._read_at, step.rows
            if self._prefill_limit is not None:
                self._prefill_limit.measured(rows.num_tokens, seconds)
            if all(row.samples == row.length for row in rows.rows):
                if self._threads is not None and not rows.background:
                    self._threads.measured(step.prepared.key.num_tokens, seconds)
                if self._drafter is not None:
                    self._drafter.step_took(rows.num_tokens, seconds)
        self._read_at = now

    def _accept(self, step: _Step, sampled: SampledIds, result: TurnResult) -> None:
        rows = step.rows.rows
        named = {id(rows[place]): own for place, own in step.named.items()}
        begins: dict[int, int] = {}  # of each row's samples
        count = 0
        for row in rows:
            begins[id(row)] = count
            count += row.samples
        ids = sampled.ids(count)
        if min(ids, default=0) < 0:
            for row in rows:
                if NO_NUMBER in ids[begins[id(row)] :][: row.samples]:
                    self._end_broken(row.request, NO_NUMBERS_MESSAGE, result)
        for row, count in self._scheduler.accept(rows, ids):
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
                if own := named.get(id(row)):
                    tops = read_named(own[:count], request.params.logprob_token_ids or (), SCORED)
                    logprobs = tuple(replace(lp, top=top) for lp, top in zip(logprobs, tops, strict=True))
            result.outputs.append(StepOutput(request, token_ids, logprobs, request.finish_reason))
            self._advance_grammar(request, token_ids, result)

    def _end_broken(self, request: Request, message: str, result: TurnResult) -> None:
        """End a request for which the model computes no numbers; message: which."""
        if request.finish_reason is None:
            logger.error("%s: %s", request.request_id, message)
            self._scheduler.finish_broken(request)
            result.failures.append(StepFailure(request, message))

    def _advance_grammar(self, request: Request, token_ids: Sequence[int], result: TurnResult) -> None:
        if request.token_masks is None or request.finish_reason is not None:
            return
        try:
            for token in token_ids:
                request.token_masks.accept(token)
        except Exception as error:
            self._fail(request, error, result)

    def _fail(self, request: Request, error: Exception, result: TurnResult) -> None:
        """End a request whose grammar cannot continue within its limits of work or memory."""
        logger.warning("%s: its grammar failed (%s)", request.request_id, type(error).__name__)
        logger.debug("the grammar's error", exc_info=error)  # with the client's text
        self._scheduler.finish(request, "error")
        # Other errors are bugs of this program, and their texts are for the log alone.
        known = isinstance(error, RequestError)
        message = str(error) if known else "the grammar of the request failed to compute the allowed tokens"
        result.failures.append(StepFailure(request, message))


def _verifiable(request: Request, drafts: Sequence[int]) -> Sequence[int]:
    """Return the draft tokens that can have masks."""
    if request.token_masks is None or not drafts:
        return drafts
    return drafts[: request.token_masks.count_verifiable(drafts)]
