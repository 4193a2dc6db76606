"""The engine's pipeline over a runner without a model: ids are a hash of what attention would read.

The runner keeps a paged cache of token ids and reads the packed arrays that the real programs read, so that any mistake
in block tables, slots, positions, copies, tokens in flight, drafts, masks or preemption changes a hash or trips over a
key at the wrong position.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from model.params.sampling_batch import SamplingBatch
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.pipeline import Pipeline
from mpt_serve.engine.pooling import PooledStates
from mpt_serve.engine.prefill_limit import PrefillLimit
from mpt_serve.engine.programs import CompilationCounter
from mpt_serve.engine.request import Request
from mpt_serve.engine.runner import PreparedStep
from mpt_serve.engine.sampling_params import Pooling, SamplingParams
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.speculative import Drafter
from mpt_serve.engine.stats_board import StatsBoard
from mpt_serve.engine.step_inputs import pack_forward, pack_sampling, unpack_sampling
from mpt_serve.engine.step_output import StepOutput
from mpt_serve.engine.step_packer import StepPacker
from mpt_serve.engine.step_rows import StepRows
from mpt_serve.engine.step_shapes import StepShape, choose_shape, step_shapes
from mpt_serve.engine.token_masks import TokenMasks, Words, mask_below

unpack_jit = jax.jit(unpack_sampling)

VOCAB = 50
POSSIBLE = mask_below(VOCAB, VOCAB)
PARITIES = [np.array([0x55555555, 0x55555555], np.uint32), np.array([0xAAAAAAAA, 0xAAAAAAAA], np.uint32)]


class Alternating:
    """A grammar of outputs whose ids are even and odd in turn."""

    def __init__(self) -> None:
        self._count = 0

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def fill_masks(self, drafts: Sequence[int], out: Words) -> int:
        for j, row in enumerate(out):
            row[:] = POSSIBLE & PARITIES[(self._count + j) % 2]
        return len(drafts)

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == self._count % 2
        self._count += 1


def next_id(context: Sequence[int], choice_index: int = 0) -> int:
    """Return the id that follows a context, where every id is allowed."""
    return zlib.crc32(np.asarray([choice_index, *context], np.int32).tobytes()) % VOCAB


def first_allowed(token: int, mask: Words) -> int:
    """Return the id itself, or the next one that is allowed; the id where none is, as for a request that has ended."""
    while mask.any() and not mask[token // 32] >> (token % 32) & 1:
        token = (token + 1) % VOCAB
    return token


def completion(request: Request) -> list[int]:
    """Return what a request must generate, whatever happens around it."""
    prompt, output = request.prompt_ids, list[int]()
    while len(output) < request.max_output:
        token = next_id([*prompt, *output], request.choice_index)
        if request.token_masks is not None:
            token = first_allowed(token, POSSIBLE & PARITIES[len(output) % 2])
        output.append(token)
        if token in request.stop_ids:
            break
    return output


def make_request(
    name: str,
    prompt: Sequence[int],
    max_output: int,
    stop_ids: Sequence[int] = (),
    siblings: list[Request] | None = None,
    choice_index: int = 0,
    priority: int = 0,
    cache_salt: str = "",
    alternating: bool = False,
    background: bool = False,
    expedited: bool = False,
) -> Request:
    place = {"priority": priority, "cache_salt": cache_salt, "background": background, "expedited": expedited}
    params = SamplingParams(max_tokens=max_output, temperature=0, **place)  # type: ignore[arg-type]
    return Request(
        name,
        tuple(prompt),
        params,
        seed=0,
        max_output=max_output,
        stop_ids=frozenset(stop_ids),
        siblings=[] if siblings is None else siblings,
        choice_index=choice_index,
        token_masks=TokenMasks(params, (), POSSIBLE).with_grammar(Alternating()) if alternating else None,
    )


def make_pooled(
    name: str,
    prompt: Sequence[int],
    pooling: Pooling,
    priority: int = 0,
    cache_salt: str = "",
    background: bool = False,
    expedited: bool = False,
) -> Request:
    """Return a request for hidden states."""
    place = {"priority": priority, "cache_salt": cache_salt, "background": background, "expedited": expedited}
    params = SamplingParams(max_tokens=0, pooling=pooling, **place)  # type: ignore[arg-type]
    pooled = PooledStates(pooling, False, len(prompt))
    return Request(name, tuple(prompt), params, seed=0, max_output=0, pooled=pooled)


def pooled_prompt(request: Request) -> bytes:
    """Return what such a request must end with."""
    states = [next_id(request.prompt_ids[: i + 1]) for i in range(len(request.prompt_ids))]
    pooled = {"mean": [sum(states) / len(states)], "last": states[-1:], "none": states}[request.params.pooling or ""]
    return np.array(pooled, "<f4").tobytes()


class FakeStep(PreparedStep):
    """A prepared step with what tests want to know of it."""

    rows: StepRows
    hidden_states: "PendingStates"


class PendingIds:
    """The sampled ids of a step, computed when they are read, after those of all steps before."""

    def __init__(self, runner: "FakeRunner", step: FakeStep, masks: Words | None) -> None:
        self.step, self.masks = step, masks
        self.ids: np.ndarray | None = None
        self.contexts: dict[int, np.ndarray] = {}  # of each token
        self._runner = runner

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        while self.ids is None:
            self._runner.execute_next()
        return self.ids

    def block_until_ready(self) -> None:
        np.asarray(self)


class PendingStates:
    """The hidden states [T, 1] of a step: hashes of what each token sees, which are there when its ids are."""

    ids: PendingIds

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        np.asarray(self.ids)
        contexts = self.ids.contexts
        return np.array([[next_id(contexts[i])] for i in range(len(contexts))], np.float32)


class FakeRunner:
    """Executes steps in order, when their ids are read."""

    def __init__(self, scheduler: Scheduler, max_model_len: int, max_samples: int) -> None:
        pool = scheduler.pool
        limits = scheduler.max_num_seqs, scheduler.max_num_batched_tokens, max_samples
        self._shapes = step_shapes(*limits, ragged_decode=False)
        self._dimensions = (pool.blocks_for(max_model_len), pool.num_blocks, pool.block_size, scheduler.max_num_seqs)
        self._tokens = np.full((pool.num_blocks, pool.block_size), -1)
        self._positions = np.full((pool.num_blocks, pool.block_size), -1)
        self._last_tokens = np.full(scheduler.max_num_seqs, -1)
        self._packer = StepPacker(scheduler.max_num_seqs)
        self._pending: list[PendingIds] = []
        self.last: StepRows | None = None
        self.abandons = False  # the steps in the background that are waited for

    def prepare(self, step: StepRows) -> FakeStep:
        self.last = step
        shape = self._shape_of(choose_shape(self._shapes, step))
        packed = self._packer.pack(step, shape)
        expected = pack_forward(step, shape), pack_sampling(step, shape.key.num_samples, len(self._last_tokens))
        assert all(map(np.array_equal, packed, expected))
        prepared = FakeStep(shape.key, *packed, step.copies)
        prepared.rows, prepared.hidden_states = step, PendingStates()
        return prepared

    def step(self, step: FakeStep, masks: Words | None = None) -> tuple["PendingStates", PendingIds]:
        assert not step.rows.needs_ids
        return step.hidden_states, self._enqueue(step, masks)

    def forward(self, step: FakeStep) -> tuple["PendingStates", FakeStep]:
        return step.hidden_states, step

    def sample(self, step: FakeStep, logits: FakeStep, masks: Words | None = None) -> PendingIds:
        assert logits is step
        return self._enqueue(step, masks)

    def completes(self, sampled: PendingIds) -> bool:
        if not self.abandons:
            sampled.block_until_ready()
            return True
        while self._pending[0] is not sampled:
            self.execute_next()
        self._pending.pop(0)
        self._copy(sampled.step)
        _, (_, _, slots), *_ = self._shape_of(sampled.step.key).split(sampled.step.forward)
        written = slots < self._tokens.size
        self._positions.reshape(-1)[slots[written]] = -1  # nothing that a row could read
        return False

    def set_slot(self, slot: int, counts: np.ndarray, bias: np.ndarray) -> None:
        raise NotImplementedError

    def score(self, hidden_states: None, begin: int, ids: Sequence[int], stride: int = 1) -> None:
        raise NotImplementedError

    def final_states(self, hidden_states: np.ndarray) -> np.ndarray:
        return hidden_states

    def execute_next(self) -> None:
        pending = self._pending.pop(0)
        pending.contexts = self._compute(pending.step)
        pending.ids = self._sample(pending.step, pending.contexts, pending.masks)

    def _enqueue(self, step: FakeStep, masks: Words | None) -> PendingIds:
        self._pending.append(PendingIds(self, step, masks))
        step.hidden_states.ids = self._pending[-1]
        return self._pending[-1]

    def _shape_of(self, key: object) -> StepShape:
        return StepShape(key, *self._dimensions)  # type: ignore[arg-type]

    def _compute(self, step: FakeStep) -> dict[int, np.ndarray]:
        """Write the step's tokens to the cache, and return the context of each."""
        self._copy(step)
        shape = self._shape_of(step.key)
        num_decode, (tokens, positions, slots), row_fields, tables, _ = shape.split(step.forward)
        in_flight = tokens < 0
        tokens = np.where(in_flight, self._last_tokens[np.where(in_flight, -1 - tokens, 0)], tokens)
        written = slots < self._tokens.size
        self._tokens.reshape(-1)[slots[written]] = tokens[written]
        self._positions.reshape(-1)[slots[written]] = positions[written]
        query_start, query_len, context_len = row_fields
        assert (query_len[: num_decode[0]] == 1).all()
        assert (query_start[: num_decode[0]] == np.arange(num_decode[0])).all()
        assert query_len.sum() == written.sum()
        contexts: dict[int, np.ndarray] = {}
        for row in np.flatnonzero(query_len):
            at = np.arange(context_len[row])
            blocks, offsets = tables[row, at // shape.block_size], at % shape.block_size
            assert (self._positions[blocks, offsets] == at).all(), "a row reads a key of another position"
            context = self._tokens[blocks, offsets]
            for i in range(query_len[row]):
                assert context[positions[query_start[row] + i]] == tokens[query_start[row] + i]
                contexts[query_start[row] + i] = context[: positions[query_start[row] + i] + 1]
        return contexts

    def _copy(self, step: FakeStep) -> None:
        for source, to in step.copies:
            self._tokens[to], self._positions[to] = self._tokens[source], self._positions[source]

    def _sample(self, step: FakeStep, contexts: dict[int, np.ndarray], masks: Words | None) -> np.ndarray:
        """Return the sampled ids, packed as the programs do: [S, 3], without log probabilities."""
        count = step.rows.num_samples
        sampled = self._shape_of(step.key).split(step.forward)[4]
        batch = SamplingBatch(*map(np.asarray, unpack_jit(step.sampling)))  # type: ignore[arg-type]
        packed = np.zeros((step.key.num_samples, 3), np.int32)
        for i in range(count):
            context = contexts[sampled[i]]
            assert batch.position[i] == len(context)
            token = next_id(context, int(batch.choice_index[i]))
            if batch.masked[i]:
                assert masks is not None
                token = first_allowed(token, masks[i])
            packed[i, 0] = token
            if batch.write_slot[i] < len(self._last_tokens):
                self._last_tokens[batch.write_slot[i]] = token
        assert (np.asarray(batch.write_slot)[count:] >= len(self._last_tokens)).all()
        return packed


class ScriptedDrafter(Drafter):
    """Drafts ids of which a script says whether they are right."""

    def __init__(self) -> None:
        super().__init__(step_sizes=[1], max_draft_tokens=64)
        self.right: list[bool] = []
        self.reads_first = False

    def worth_reading(self, requests: Sequence[Request], num_rows: int) -> bool:
        return self.reads_first

    def plan(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        return [0 if request.in_flight else len(self.right) for request in requests]

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        return [self._draft(request)[:length] for request, length in zip(requests, lengths, strict=True)]

    def forget(self, request: Request) -> None:
        pass

    def _draft(self, request: Request) -> list[int]:
        context = [*request.prompt_ids, *request.output_ids]
        drafts: list[int] = []
        for is_right in self.right:
            token = next_id([*context, *drafts], request.choice_index)
            if request.token_masks is not None:
                token = first_allowed(token, POSSIBLE & PARITIES[(len(request.output_ids) + len(drafts)) % 2])
            drafts.append((token + (not is_right)) % VOCAB)
        return drafts


class Simulation:
    """A scheduler's pipeline over a `FakeRunner`, and everything that it returned."""

    def __init__(
        self, scheduler: Scheduler, max_model_len: int, max_samples: int, prefill_limit: PrefillLimit | None = None
    ) -> None:
        self._scheduler = scheduler
        self._runner = FakeRunner(scheduler, max_model_len, max_samples)
        self._drafter = ScriptedDrafter()
        plan = CachePlan(scheduler.pool.num_blocks, scheduler.pool.block_size, max_model_len)
        self.stats = StatsBoard(scheduler, self._drafter.stats, plan, CompilationCounter())
        runner: Any = self._runner
        self._pipeline = Pipeline(scheduler, runner, VOCAB, self._drafter, self.stats, prefill_limit)
        self.outputs: dict[Request, list[StepOutput]] = {}
        self._in_background = False

    @property
    def busy(self) -> bool:
        return self._pipeline.busy

    def turn(self, right: Sequence[bool] = (), reads_first: bool = False, abandons: bool = False) -> StepRows:
        """Turn the pipeline once, and return the rows that it dispatched.

        right, reads_first: of drafts. abandons: a step in the background.
        """
        self._drafter.right, self._drafter.reads_first = list(right), reads_first
        self.turn_to_end(abandons)
        self._in_background = self._turn() and self._runner.last is not None and self._runner.last.background
        return self._runner.last or StepRows([], 0)

    def turn_to_end(self, abandons: bool = False) -> None:
        """End a step in the background if one has started, which is a turn of the pipeline."""
        self._runner.abandons = abandons
        if self._in_background:
            assert not self._turn()
            self._in_background = False

    def _turn(self) -> bool:
        """Turn the pipeline, and return whether it has started a step."""
        self._runner.last = None
        steps = self.stats.steps
        result = self._pipeline.turn()
        if result.error is not None:
            raise result.error
        assert not result.failures
        for output in result.outputs:
            self.outputs.setdefault(output.request, []).append(output)
        assert self.stats.steps == self.stats.latest.steps == steps + result.scheduled
        assert result.scheduled == (self._runner.last is not None) == self.busy
        return result.scheduled

    def drain(self, limit: int = 2_000) -> Iterator[StepRows]:
        """Turn until nothing is left to do."""
        for _ in range(limit):
            if not (self.busy or self._scheduler.running or self._scheduler.waiting):
                return
            yield self.turn()
        raise AssertionError("requests are starving")
