"""Drafts of a smaller model with the same vocabulary: it reads what the large one reads, and generates ahead of it."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.request import Request
from mpt_serve.engine.runner import Runner
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.speculative.acceptance import AcceptanceRates
from mpt_serve.engine.speculative.draft_policy import draft_lengths
from mpt_serve.engine.speculative.drafter import Drafter, before_stop
from mpt_serve.engine.step_output import Sampled, SampledIds
from mpt_serve.engine.step_rows import Row, StepRows

_PRIOR_RATE = {1: 0.7}
# Ids that a request generates without drafts before what was learned about it is forgotten, and drafts are tried again.
_FORGET_AFTER = 256
# Ids that the draft model may have to read first, for each id that the request can still generate.
_READ_PER_ID = 32
_WINDOW = 7


class _Sequence:
    """How far the draft model has read a request.

    num_read: positions whose keys and values are in `blocks`. drafted: ids at the positions after those, whose keys and
    values are there too; the request may have continued otherwise. known: its number of known ids at the last draft.
    """

    def __init__(self, request: Request) -> None:
        self.params = _filters_of(request.params)
        self.rates = AcceptanceRates(_PRIOR_RATE)
        self.known = request.num_known
        self.num_read = 0
        self.drafted: list[int] = []
        self.blocks: list[int] = []

    def follow(self, request: Request, block_size: int) -> None:
        """Keep what is still valid of the request: its ids may differ from the draft, preemption changes its blocks."""
        ids = request.known_ids(self.num_read, self.num_read + len(self.drafted))
        self.num_read += _common(ids, self.drafted)
        self.drafted = []
        if request.blocks[: len(self.blocks)] != self.blocks:
            del self.blocks[_common(request.blocks, self.blocks) :]
        # The last id is read again if necessary: its logits are needed. What went beyond the blocks is lost.
        self.num_read = min(self.num_read, len(self.blocks) * block_size, request.num_known - 1)
        self.blocks = list(request.blocks)
        if request.num_known - self.known > _FORGET_AFTER:
            self.rates, self.known = AcceptanceRates(_PRIOR_RATE), request.num_known


@dataclass(frozen=True, slots=True)
class _Task:
    """length ids to draft for a request; copy: what the draft model's runner reads of it."""

    sequence: _Sequence
    copy: Request
    length: int


class ModelDrafter(Drafter):
    """Drafts what a smaller model generates, with the request's own sampling parameters and random numbers.

    The draft model samples each id with the same random number as the large one (see `sampler.py`), so that they mostly
    agree where their distributions are alike, sampled or greedy. Masks, biases and grammars apply to the large model
    alone.

    Its cache has the blocks of the large model's, by the same tables, and one more for each slot, for draft tokens
    beyond a request's blocks. It reads a prompt when the request first decodes, `max_num_batched_tokens` ids at a time,
    and reads again what other requests have left in shared blocks.

    `draft_lengths` decides whether it drafts, from each request's acceptance rate and the measured cost of the draft
    model's steps. Where that is no, it tries again after some hundred ids.

    cache_plan, max_num_seqs, max_num_batched_tokens, vocab_limit: the large model's. cost_share: time of a step of the
    draft model, as a share of one of the large model, until it is measured.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        cache_plan: CachePlan,
        cache_dtype: DTypeLike,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_limit: int,
        step_sizes: Sequence[int],
        max_draft_tokens: int,
        cost_share: float,
        kernels: str = "auto",
    ) -> None:
        super().__init__(step_sizes, max_draft_tokens)
        plan = replace(cache_plan, num_blocks=cache_plan.num_blocks + max_num_seqs)
        limits = max_num_seqs, max_num_batched_tokens, max_num_seqs
        self._runner = Runner(weights, config, plan, cache_dtype, *limits, vocab_limit, kernels)
        self._num_blocks, self._block_size = cache_plan.num_blocks, cache_plan.block_size
        self._max_blocks = cache_plan.max_blocks_per_sequence
        self._max_num_batched_tokens = max_num_batched_tokens
        self._length_limit = min(cache_plan.max_model_len, config.length_limit or cache_plan.max_model_len)
        self._sequences: dict[Request, _Sequence] = {}
        self._tasks: list[_Task | None] = []
        self._shares: deque[float] = deque([cost_share], maxlen=_WINDOW)
        self._drafting_seconds = 0.0

    def compile_all(self) -> None:
        """Compile the draft model's programs."""
        self._runner.compile_all()

    def worth_reading(self, requests: Sequence[Request], num_rows: int) -> bool:
        return any(self._lengths([self._survivals(request) for request in requests], num_rows))

    def plan(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        survivals = [[] if request.in_flight else self._survivals(request) for request in requests]
        lengths = self._lengths(survivals, num_rows)
        self._tasks = [self._task(r, length) if length else None for r, length in zip(requests, lengths, strict=True)]
        return lengths

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        started = time.monotonic()
        tasks = [task for task in self._tasks if task is not None]
        drafts = self._generate(tasks, started)
        self._drafting_seconds = time.monotonic() - started
        found = iter(drafts)
        return [
            [] if task is None else before_stop(request, next(found))
            for request, task in zip(requests, self._tasks, strict=True)
        ]

    def observe(self, request: Request, drafted: int, accepted: int) -> None:
        super().observe(request, drafted, accepted)
        sequence = self._sequences.get(request)
        if sequence is not None:
            for place in range(min(drafted, accepted + 1)):
                sequence.rates.observe(1, place < accepted)

    def step_took(self, num_tokens: int, seconds: float) -> None:
        super().step_took(num_tokens, max(0.0, seconds - self._drafting_seconds))
        self._drafting_seconds = 0.0

    def forget(self, request: Request) -> None:
        self._sequences.pop(request, None)

    # The number of draft tokens

    def _lengths(self, survivals: Sequence[Sequence[float]], num_rows: int) -> list[int]:
        cost = statistics.median_low(self._shares) * self._costs.cost(num_rows)
        return draft_lengths(survivals, num_rows, self._costs, cost)

    def _survivals(self, request: Request) -> list[float]:
        count = min(self.max_drafts(request), self._length_limit - request.num_tokens)
        # There is one block for draft tokens beyond the request's own.
        count = min(count, (len(request.blocks) + 1) * self._block_size + 1 - request.num_tokens)
        if count <= 0:
            return []
        sequence = self._sequences.get(request)
        if sequence is None:
            sequence = self._sequences[request] = _Sequence(request)
        sequence.follow(request, self._block_size)
        unread, left = request.num_known - sequence.num_read, request.max_output - request.num_generated
        return sequence.rates.survivals([1] * count) if unread <= _READ_PER_ID * left else []

    # The drafts themselves

    def _task(self, request: Request, length: int) -> _Task:
        assert request.slot is not None
        sequence = self._sequences[request]
        sequence.known = request.num_known
        blocks = [*request.blocks, self._num_blocks + request.slot]
        copy = Request(
            request.request_id,
            request.prompt_ids,
            sequence.params,
            request.seed,
            request.max_output,
            request.choice_index,
            output_ids=list(request.output_ids),
            blocks=blocks[: self._max_blocks],  # no draft goes beyond the end of the context
            slot=request.slot,
        )
        return _Task(sequence, copy, length)

    def _generate(self, tasks: Sequence[_Task], started: float) -> list[list[int]]:
        """Read what is unread, then generate one id after the other; the device does so without the host in between."""
        drafts: dict[int, list[int]] = {id(task): [] for task in tasks}
        reading, ready = self._reading_rows(tasks)
        short = all(row.length <= 2 for row in reading)  # no chunks
        steps = [(ready, self._step(reading))] if reading else []
        for index in range(1, max((task.length for task in ready), default=0)):
            active = [task for task in ready if task.length > index]
            rows = [Row(task.copy, task.copy.num_known + index - 1, 1, 1, True) for task in active]
            steps.append((active, self._step(rows)))
        for active, packed in steps:
            for task, token in zip(active, SampledIds.read(packed).ids(len(active)), strict=True):
                drafts[id(task)].append(token)
        for task in ready:
            task.sequence.num_read, task.sequence.drafted = task.copy.num_known, drafts[id(task)][:-1]
        if ready and short and self._costs.known:
            share = (time.monotonic() - started) / len(steps) / self._costs.cost(len(ready))
            self._shares.append(share)
        return [drafts[id(task)] for task in tasks]

    def _reading_rows(self, tasks: Sequence[_Task]) -> tuple[list[Row], list[_Task]]:
        """Return rows for the ids that the draft model has not read, within its budget.

        And the tasks that have no unread ids after that, in the order of their rows.
        """
        rows: list[tuple[Row, _Task]] = []
        budget = self._max_num_batched_tokens
        for task in tasks:
            start = task.sequence.num_read
            length = min(budget, task.copy.num_known - start)
            if length:
                reaches = start + length == task.copy.num_known
                rows.append((Row(task.copy, start, length, int(reaches), False), task))
                task.sequence.num_read = start + length
                budget -= length
        rows.sort(key=lambda row: row[0].length)  # those of one token come first in a step
        return [row for row, _ in rows], [task for row, task in rows if row.samples]

    def _step(self, rows: list[Row]) -> Sampled:
        prepared = self._runner.prepare(StepRows(rows, sum(row.length == 1 for row in rows)))
        _, sampled = self._runner.step(prepared)
        return sampled


def _filters_of(params: SamplingParams) -> SamplingParams:
    """Return the parameters with which the draft model samples as the large one does; all others are for that one."""
    return SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
