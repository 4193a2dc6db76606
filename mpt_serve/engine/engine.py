"""The engine: requests in from any thread, deltas out on the engine's own thread."""

import atexit
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, TypedDict, Unpack

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernel_selection import limit_kernel_threads, weight_format
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, weight_bytes
from model.pretrained import find_device, mpt_from_pretrained
from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.configuration.model_folder import model_path
from mpt_serve.engine.active_requests import ActiveRequests
from mpt_serve.engine.background_priority import BackgroundPriority
from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.inbox import Abort, AddRequest, Inbox
from mpt_serve.engine.memory import cache_dtype_for, cache_plan_for
from mpt_serve.engine.outbox import refuse
from mpt_serve.engine.pipeline import Pipeline
from mpt_serve.engine.prefill_limit import PrefillLimit
from mpt_serve.engine.programs import CompilationCounter, use_compilation_cache
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import AbortReason, Delta, FinishReason
from mpt_serve.engine.request_factory import RequestFactory
from mpt_serve.engine.runner import Runner
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.speculative import DraftModel, check_draft, make_drafter
from mpt_serve.engine.stats import DraftStats, EngineStats
from mpt_serve.engine.stats_board import StatsBoard
from mpt_serve.engine.thread_choice import ThreadChoice, thread_counts, usable_cores
from mpt_serve.engine.token_masks import Grammar
from mpt_serve.errors import EngineClosedError, RequestError

logger = logging.getLogger(__name__)

_MIN_SAMPLES = 16  # ids that a step may sample at least where drafts are verified


class LoadOptions(TypedDict, total=False):
    """The keyword arguments with which `Engine.from_pretrained` loads a model.

    dtype, device, mesh: as for `model.mpt_from_pretrained`.
    vocab_limit, eos_token_ids: as for `Engine`, which does not read the checkpoint's tokenizer.
    quantization: 'none' (also without it), 'int8' or 'int4' weights.
    quantization_cache_dir: a folder that keeps quantised weights between starts.
    draft_model: the smaller checkpoint that drafts, where settings.speculation is 'draft'; loaded in the same way.
    """

    dtype: DTypeLike | None
    device: jax.Device | str | None
    mesh: Mesh | None
    vocab_limit: int | None
    eos_token_ids: Sequence[int] | None
    quantization: str
    quantization_cache_dir: str | Path | None
    draft_model: str | Path | None


class Engine:
    """Continuous batching for one model on one device or mesh: token ids in, token ids out.

    One thread, the engine's, runs the device: it schedules and dispatches step k + 1 before it reads what step k
    sampled. It alone changes requests, scheduler and drafter, so there is no lock; what other threads ask for arrives
    through the inbox, and takes effect with the next step.

    vocab_limit: ids from here on are neither accepted nor sampled, as a model's vocabulary may be padded; None takes
        the model's.
    eos_token_ids: ids that end a request unless it ignores them; None takes the config's.
    draft: the smaller model that drafts, where settings.speculation is 'draft'.
    hidden_size: the numbers in a hidden state.
    weight_bytes, cache_bytes: the memory that the model's weights and the KV cache take.
    on_delivered: called on the engine's thread each time that it has called the listeners of all requests with the
        deltas of a step; must not block. Set it before the first request.
    Raises `ValueError` when the settings do not fit the model.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        settings: EngineConfig | None = None,
        vocab_limit: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        settings = settings or EngineConfig()
        check_draft(settings, draft, config.vocab_size)
        self.vocab_limit = min(config.vocab_size if vocab_limit is None else vocab_limit, config.vocab_size)
        self.hidden_size = config.d_model
        self.eos_token_ids = frozenset(config.eos_token_ids if eos_token_ids is None else eos_token_ids)
        if settings.compilation_cache_dir is not None:
            use_compilation_cache(settings.compilation_cache_dir)
        limit_kernel_threads(settings.threads)
        format = weight_format(weights.norm_f.weight.devices(), "none", settings.kernels)
        weights = pack_weights(weights, config, format)
        self.weight_bytes = weight_bytes(weights)
        cache_dtype = cache_dtype_for(weights, settings)
        plan = self._cache_plan = cache_plan_for(
            weights, config, settings, cache_dtype, draft.config if draft else None
        )
        max_samples = max(settings.max_num_seqs, _MIN_SAMPLES) if settings.speculates else settings.max_num_seqs
        limits = settings.max_num_seqs, settings.max_num_batched_tokens, max_samples
        pool = BlockPool(plan.num_blocks, plan.block_size)
        self._scheduler = Scheduler(pool, *limits, settings.prefix_caching, settings.background_patience)
        self._runner = Runner(
            weights, config, plan, cache_dtype, *limits, self.vocab_limit, settings.kernels, settings.prompt_embeds
        )
        compiling_since = time.perf_counter()
        self.cache_bytes = self._runner.cache_bytes
        if settings.pre_compile:
            self._runner.compile_all()
        drafter = self._drafter = make_drafter(
            settings, draft, weights, plan, cache_dtype, self.vocab_limit, self._runner.decode_sizes
        )

        self._compilations = CompilationCounter(time.perf_counter() - compiling_since)
        self._stats = StatsBoard(
            self._scheduler, DraftStats() if drafter is None else drafter.stats, plan, self._compilations
        )
        self._priority = BackgroundPriority() if format.packed else None  # else the engine's thread computes nothing
        prefill_limit = None
        if settings.max_gap_ms is not None:
            prefill_limit = PrefillLimit(self._runner.step_sizes, settings.max_gap_ms / 1000)
        threads = None
        if settings.threads is None and format.packed:
            threads = ThreadChoice(thread_counts(usable_cores()), limit_kernel_threads)
        policies = prefill_limit, threads, self._priority
        self._pipeline = Pipeline(self._scheduler, self._runner, config.vocab_size, drafter, self._stats, *policies)
        self._factory = RequestFactory(
            config.vocab_size,
            self.vocab_limit,
            self.eos_token_ids,
            plan.max_model_len,
            plan.block_size,
            config.d_model if settings.prompt_embeds else None,
        )
        self._requests = ActiveRequests(self._scheduler, drafter)
        self._inbox = Inbox()
        self._request_numbers = itertools.count()
        self.on_delivered: Callable[[], None] = _nothing
        self._closed = False
        self._thread_ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        # A daemon thread inside the device's runtime while the interpreter goes down can crash it.
        atexit.register(self.close)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, settings: EngineConfig | None = None, **options: Unpack[LoadOptions]
    ) -> Self:
        """Load a checkpoint's weights as `model.mpt_from_pretrained` does, and start an engine.

        path_or_id: a folder, a hub id, or 'embedded' for the small model in this package. options: see `LoadOptions`.
        """
        if unknown := options.keys() - LoadOptions.__annotations__.keys():
            raise TypeError(f"from_pretrained() got an unexpected keyword argument '{min(unknown)}'")
        device, mesh = options.get("device"), options.get("mesh")
        quantization = options.get("quantization", "none")
        if mesh is not None:
            format = WeightFormat(quantization)
        else:
            format = weight_format({find_device(device)}, quantization, (settings or EngineConfig()).kernels)

        def load(path: str | Path) -> tuple[Weights, MptConfig]:
            path = model_path(path) if isinstance(path, str) else path
            cache_dir = options.get("quantization_cache_dir")
            return mpt_from_pretrained(
                path, device=device, dtype=options.get("dtype"), mesh=mesh, format=format, cache_dir=cache_dir
            )

        draft_model = options.get("draft_model")
        draft = None if draft_model is None else DraftModel(*load(draft_model))
        return cls(*load(path_or_id), settings, options.get("vocab_limit"), options.get("eos_token_ids"), draft)

    @property
    def max_model_len(self) -> int:
        """Return the length of the longest request in tokens, prompt and output together."""
        return self._cache_plan.max_model_len

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks in the KV cache."""
        return self._cache_plan.num_blocks

    def stats(self) -> EngineStats:
        """Return a snapshot of the engine's counters. Thread-safe."""
        # In this order: a request that is taken in between is counted twice, rather than not at all.
        submitted = self._inbox.num_choices
        stats = self._stats.latest
        return replace(stats, waiting=stats.waiting + submitted) if submitted else stats

    def request_ids(self) -> list[str]:
        """Return the ids of the requests that were submitted and have not ended. Thread-safe."""
        return self._requests.ids()

    # Requests; any thread

    def check(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        with_grammar: bool = False,
        embeds: PromptEmbeds | None = None,
    ) -> None:
        """Raise `RequestError` where `submit` would refuse this. with_grammar: whether it comes with a grammar."""
        self._factory.check(prompt_ids, params, with_grammar, embeds)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str | None = None,
        generated: Sequence[int] = (),
        grammar: Grammar | None = None,
        embeds: PromptEmbeds | None = None,
    ) -> str:
        """Queue a request with its params.n choices and return its id.

        on_delta: called on the engine's thread, in order; must not block, as every request waits for it. When it
            raises, its request is cancelled.
        generated: ids of choice params.choice_index (n must be 1) from an engine that did not finish it; generation
            continues after them exactly as there.
        grammar: what the output of each choice must match.
        embeds: what stands in the prompt in place of ids, where settings.prompt_embeds is true.

        Raises `RequestError` (nothing is queued then), `EngineClosedError` when the engine was closed or has failed.
        When it is interrupted, `cancel` undoes whatever it did.
        """
        request_id = request_id or f"request-{next(self._request_numbers)}"
        choices = self._factory.make(prompt_ids, params, on_delta, request_id, generated, grammar, embeds)
        if self._closed or self._stats.error:
            raise EngineClosedError(self._stats.error or "the engine is closed")
        if not self._requests.claim(request_id, choices):
            raise RequestError(f"a request with the id {request_id!r} is running already; choose another id")
        self._inbox.put(AddRequest(choices))
        if not params.background:
            self._runner.abandon()
            if self._priority is not None:
                self._priority.restore()
        if self._thread_ended:  # perhaps before it could see this
            self._refuse_rest()
        return request_id

    def cancel(self, request_id: str, index: int | None = None, reason: AbortReason = "cancelled") -> None:
        """End a request, or one choice of it, before the next step.

        The id of a whole request is available again when this returns. Unknown and finished ones do nothing. Never
        waits, so finalizers may call it. index: of the choice, as in `Delta`; None for all. reason: what its end counts
        as; 'stop' for a caller that has found a stop string.
        """
        self._inbox.put(Abort(request_id, index, reason))
        if index is None:  # after that: the abort is not for a later request with this id
            self._requests.release(request_id)

    def close(self) -> None:
        """Cancel what is left and stop the engine's thread. Idempotent; waits for the step in flight."""
        atexit.unregister(self.close)
        self._closed = True
        self._inbox.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The engine's thread

    def _run(self) -> None:
        try:
            with self._compilations:
                self._serve()
        except Exception as error:
            logger.exception("the engine stops: a step failed")
            # Its kind alone: this is sent to clients, the exception's text stays in the log.
            self._stats.error = f"the engine stopped because a step failed ({type(error).__name__})"
        self._requests.end_all(*self._end_reason())
        self._stats.publish()
        self._deliver()
        self._thread_ended = True
        self._refuse_rest()

    def _serve(self) -> None:
        while self._take_requests():
            result = self._pipeline.turn()
            self._requests.take(result)
            if result.error is not None:
                raise result.error
            self._stats.publish()
            self._deliver()
        self._pipeline.drain()

    def _take_requests(self) -> bool:
        """Add and abort what others ask for, after a sleep where there is nothing to do; False when closed."""
        idle = not (self._scheduler.running or self._scheduler.waiting or self._pipeline.busy)
        items = self._inbox.take(wait=idle and not self._closed)
        for item in items:
            if isinstance(item, AddRequest):
                self._requests.add(item.choices)
                if not item.choices[0].background:
                    self._runner.abandon()  # a step that has started since this was asked for
            else:
                self._requests.abort(item)
        if items:
            self._stats.publish()
            self._inbox.done(len(items))
        return not self._closed

    def _deliver(self) -> None:
        self._requests.deliver()
        self.on_delivered()

    def _end_reason(self) -> tuple[FinishReason, str | None]:
        """Return how requests finish that are there when the engine ends."""
        return ("cancelled", None) if self._stats.error is None else ("error", self._stats.error)

    def _refuse_rest(self) -> None:
        """End requests that came too late for the engine's thread. On any thread, once that one has ended."""
        while (item := self._inbox.pop()) is not None:
            for request in item.choices if isinstance(item, AddRequest) else ():
                refuse(request, *self._end_reason())


def _nothing() -> None:
    """Do nothing."""
