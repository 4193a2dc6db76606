"""The engine: requests in from any thread, deltas out on the engine's own thread."""

import atexit
import itertools
import logging
import operator
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from model.config import MptConfig
from model.kernels.choice import weight_format
from model.packed import PackedMatrix
from model.pretrained import find_device, mpt_from_pretrained
from model.quantization import WeightFormat, pack_weights
from model.weights import Weights
from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.completion import Collector, Completion
from mpt_serve.engine.config import EngineConfig
from mpt_serve.engine.memory import cache_plan_for
from mpt_serve.engine.request import (
    Delta,
    EngineClosedError,
    FinishReason,
    Request,
    RequestError,
    ignore_delta,
)
from mpt_serve.engine.runner import CompilationCounter, Runner, use_compilation_cache
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Row, Scheduler
from mpt_serve.engine.step_plan import MAX_MASKED_IDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine. Counters start at 0 with the engine.

    running, waiting: requests. free_blocks, total_blocks: of the key-value cache.
    steps: steps dispatched. compilations: programs compiled while serving; with pre_compile it stays 0.
    finished: requests ended, by finish reason. error: why the engine stopped, None while it works.
    notes: what was asked for at start and not given (a shortened context), as sentences.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    max_model_len: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    compilations: int
    finished: dict[FinishReason, int]
    error: str | None
    notes: tuple[str, ...]


class Engine:
    """Continuous batching for one model on one device or mesh.

    One thread runs the device: it schedules and dispatches step k + 1 before it reads what step k sampled. `_lock`
    guards the scheduler and is never held while the device works, so that `submit` and `cancel` take effect at once.

    vocab_limit: ids from here on are neither accepted nor sampled (the tokenizer's size, where the model's is padded).
    eos_token_ids: ids that end a request unless it ignores them; None takes the config's.
    Raises `ValueError` when the settings do not fit the model.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        settings: EngineConfig | None = None,
        vocab_limit: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        settings = settings or EngineConfig()
        weights = pack_weights(
            weights, config, weight_format(weights.norm_f.weight.devices(), "none", settings.kernels)
        )
        self._vocab_limit = config.vocab_size if vocab_limit is None else min(vocab_limit, config.vocab_size)
        self._eos_token_ids = frozenset(config.eos_token_ids if eos_token_ids is None else eos_token_ids)
        if settings.compilation_cache_dir is not None:
            use_compilation_cache(settings.compilation_cache_dir)
        cache_dtype = _weight_dtype(weights) if settings.cache_dtype == "auto" else jnp.dtype(settings.cache_dtype)
        self._cache_plan = cache_plan_for(weights, config, settings, cache_dtype)
        limits = settings.max_num_seqs, settings.max_num_batched_tokens
        self._scheduler = Scheduler(BlockPool(self._cache_plan.num_blocks, self._cache_plan.block_size), *limits)
        self._runner = Runner(
            weights, config, self._cache_plan, cache_dtype, *limits, self._vocab_limit, settings.kernels
        )
        if settings.pre_compile:
            self._runner.compile_all()

        self._lock = threading.Condition()
        self._requests: dict[str, Request] = {}
        self._outbox: deque[tuple[Request, Delta]] = deque()
        self._finished: dict[FinishReason, int] = {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
        self._steps = self._prompt_tokens = self._generated_tokens = 0
        self._compilations = CompilationCounter()
        self._closed = False
        self._error: str | None = None
        self._names = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        # A daemon thread inside the device's runtime while the interpreter goes down can crash it.
        atexit.register(self.close)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        settings: EngineConfig | None = None,
        dtype: DTypeLike | None = None,
        device: jax.Device | str | None = None,
        mesh: Mesh | None = None,
        vocab_limit: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        quantization: str = "none",
        quantization_cache_dir: str | Path | None = None,
    ) -> Self:
        """Load a checkpoint as `model.mpt_from_pretrained` does, and serve it.

        quantization: 'none', 'int8' or 'int4' weights.
        quantization_cache_dir: a folder that keeps quantised weights between starts.
        """
        kernels = (settings or EngineConfig()).kernels
        if mesh is not None:
            format = WeightFormat(quantization)
        else:
            format = weight_format({find_device(device)}, quantization, kernels)
        weights, config = mpt_from_pretrained(
            path_or_id, device=device, dtype=dtype, mesh=mesh, format=format, cache_dir=quantization_cache_dir
        )
        return cls(weights, config, settings, vocab_limit, eos_token_ids)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request, prompt and answer together."""
        return self._cache_plan.max_model_len

    @property
    def vocab_limit(self) -> int:
        """Ids of prompts and answers are below it."""
        return self._vocab_limit

    @property
    def num_blocks(self) -> int:
        return self._cache_plan.num_blocks

    def stats(self) -> EngineStats:
        """Thread-safe."""
        with self._lock:
            return EngineStats(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                free_blocks=self._scheduler.pool.num_free,
                total_blocks=self._cache_plan.num_blocks,
                max_model_len=self._cache_plan.max_model_len,
                steps=self._steps,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                preemptions=self._scheduler.num_preemptions,
                compilations=self._compilations.count,
                finished=dict(self._finished),
                error=self._error,
                notes=self._cache_plan.notes,
            )

    # Requests; any thread

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str | None = None,
    ) -> str:
        """Queue a request and return its id.

        on_delta is called on the engine's thread, in order, and must not block: every request waits for it. When it
        raises, its request is cancelled. Raises `RequestError` (nothing is queued then), `EngineClosedError` when the
        engine was closed or has failed.
        """
        ids = self._check_prompt(prompt_ids)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        if params.min_tokens and len(stop_ids) > MAX_MASKED_IDS:
            raise RequestError(
                f"min_tokens works with {MAX_MASKED_IDS} stop ids at most, this request has {len(stop_ids)}"
            )
        request = Request(
            request_id=request_id or f"request-{next(self._names)}",
            prompt_ids=ids,
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed % 2**64,
            max_output=min(params.max_tokens, self.max_model_len - len(ids)),
            stop_ids=stop_ids,
            on_delta=on_delta,
        )
        with self._lock:
            if self._closed or self._error:
                raise EngineClosedError(self._error or "the engine is closed")
            if request.request_id in self._requests:
                raise RequestError(
                    f"a request with the id {request.request_id!r} is running already; choose another id"
                )
            self._scheduler.add(request)
            self._requests[request.request_id] = request
            self._prompt_tokens += len(ids)
            self._lock.notify()
        return request.request_id

    def cancel(self, request_id: str) -> None:
        """End a request with 'cancelled'; its blocks are free when this returns. Unknown and ended ids do nothing."""
        with self._lock:
            if request_id in self._requests:
                self._end(self._requests[request_id], "cancelled")
                self._lock.notify()

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Submit all prompts, wait for all, and return their completions in order. Raises as `submit`.

        With one `SamplingParams` for all and a seed, prompts draw from the same random numbers: equal prompts give
        equal completions.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        collectors: list[Collector] = []
        ids: list[str] = []
        try:
            for prompt, own in zip(prompts, each, strict=True):
                collectors.append(Collector())
                ids.append(self.submit(prompt, own, collectors[-1]))
            return [collector.wait() for collector in collectors]
        finally:
            for request_id in ids:
                self.cancel(request_id)

    def close(self) -> None:
        """Cancel what is left and stop the engine's thread. Idempotent; waits for the step in flight."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            self._lock.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_prompt(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        try:
            ids = tuple(map(operator.index, prompt_ids))
        except TypeError:
            raise RequestError("the prompt must be a sequence of integer token ids") from None
        if not ids:
            raise RequestError("the prompt is empty; it needs at least one token")
        if min(ids) < 0 or max(ids) >= self._vocab_limit:
            bad = next(i for i in ids if not 0 <= i < self._vocab_limit)
            raise RequestError(f"token id {bad} is not in the vocabulary: ids are 0 to {self._vocab_limit - 1}")
        if len(ids) >= self.max_model_len:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; with at least one token of answer it must be shorter than the "
                f"context length of {self.max_model_len}"
            )
        return ids

    # The engine's thread

    def _run(self) -> None:
        try:
            with self._compilations:
                self._serve()
        except Exception as error:
            logger.exception("the engine stops: a step failed")
            with self._lock:
                # Its kind alone: this travels to clients, the exception's text stays in the log.
                self._error = f"the engine stopped because a step failed ({type(error).__name__})"
                self._end_all("error", self._error)
        else:
            with self._lock:
                self._end_all("cancelled")
        self._deliver()

    def _serve(self) -> None:
        """The loop: dispatch the next step, then read the one before."""
        ahead: tuple[list[Row], Array] | None = None
        while self._wait_for_work(idle=ahead is None):
            behind, ahead = ahead, self._dispatch()
            if behind is not None:
                self._accept(*behind)
            self._deliver()
        if ahead is not None:
            ahead[1].block_until_ready()

    def _wait_for_work(self, idle: bool) -> bool:
        """Sleep while there is nothing to do; False when the engine is closed."""
        with self._lock:
            while idle and not (self._closed or self._requests or self._outbox):
                self._lock.wait()
            return not self._closed

    def _dispatch(self) -> tuple[list[Row], Array] | None:
        """Start the next step; its rows and the ids it will have sampled, or None when there is nothing to compute."""
        with self._lock:
            step = self._scheduler.schedule()
            if not step.rows:
                return None
            self._steps += 1
            prepared = self._runner.prepare(step)
        return step.rows, self._runner.dispatch(*prepared)

    def _accept(self, rows: list[Row], sampled: Array) -> None:
        token_ids = np.asarray(sampled)[: len(rows)].tolist()  # waits for the device
        with self._lock:
            for request, token in self._scheduler.accept(rows, token_ids):
                self._generated_tokens += 1
                self._post(request, (token,))

    def _post(self, request: Request, token_ids: tuple[int, ...] = (), message: str | None = None) -> None:
        """Queue news about a request for delivery; forget it when that is the last. Holds the lock."""
        reason = request.finish_reason
        stop_reason = token_ids[-1] if reason == "stop" else None
        delta = Delta(token_ids, reason, stop_reason, len(request.prompt_ids), message=message)
        self._outbox.append((request, delta))
        if reason is not None:
            del self._requests[request.request_id]
            self._finished[reason] += 1

    def _end(self, request: Request, reason: FinishReason, message: str | None = None) -> None:
        self._scheduler.finish(request, reason)
        self._post(request, message=message)

    def _end_all(self, reason: FinishReason, message: str | None = None) -> None:
        for request in list(self._requests.values()):
            self._end(request, reason, message)

    def _deliver(self) -> None:
        """Call the listeners, without the lock: they may submit and cancel."""
        while self._outbox:
            request, delta = self._outbox.popleft()
            try:
                request.on_delta(delta)
            except Exception:
                logger.exception("the listener of request %s failed; the request is cancelled", request.request_id)
                request.on_delta = ignore_delta
                self.cancel(request.request_id)


def _weight_dtype(weights: Weights) -> jnp.dtype:
    """The dtype of the matrices; where they are quantised, that of the rest."""
    quantised = isinstance(weights.wte, PackedMatrix) and weights.wte.row_scale is not None
    return jnp.dtype(weights.norm_f.weight.dtype if quantised else weights.wte.dtype)
