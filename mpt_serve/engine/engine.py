"""The engine: requests in from any thread, deltas out on the engine's own thread."""

import atexit
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernel_selection import weight_format
from model.params.weight_format import WeightFormat
from model.params.weights import Weights
from model.pretrained import find_device, mpt_from_pretrained, resolve_checkpoint
from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.configuration.model_folder import model_path
from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.inbox import Abort, AddRequest, Inbox
from mpt_serve.engine.memory import cache_dtype_for, cache_plan_for
from mpt_serve.engine.outbox import Outbox, refuse
from mpt_serve.engine.pipeline import Pipeline, StepOutput
from mpt_serve.engine.request import Delta, EarlyReason, FinishReason, Request
from mpt_serve.engine.request_factory import RequestFactory
from mpt_serve.engine.runner import CompilationCounter, Runner, use_compilation_cache
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.speculative import DraftModel, DraftStats, check_draft, make_drafter
from mpt_serve.engine.stats import Counters, EngineStats
from mpt_serve.errors import EngineClosedError, RequestError
from mpt_serve.llm.generate import GenerationMixin
from mpt_serve.llm.model_text import ModelText
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_MIN_SAMPLES = 16  # ids that a step may sample at least where drafts are verified


class Engine(GenerationMixin):
    """Continuous batching for one model on one device or mesh.

    One thread, the engine's, runs the device: it schedules and dispatches step k + 1 before it reads what step k
    sampled. It alone changes requests, scheduler and drafter, so there is no lock; what other threads ask for comes
    through the inbox, and takes effect with the next step.

    vocab_limit: ids from here on are neither accepted nor sampled; None takes the tokenizer's size, where there is a
        tokenizer, as the model's may be padded.
    eos_token_ids: ids that end a request unless it ignores them; None takes the tokenizer's, or else the config's.
    guides: what understands `SamplingParams.guide`; None takes the tokenizer. Without either, guides are refused.
    draft: the smaller model that drafts, where settings.speculation is 'draft'.
    text: the model's text side, for prompts, answers and stop strings as text; None for ids alone.
    Raises `ValueError` when the settings do not fit the model.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        settings: EngineConfig | None = None,
        vocab_limit: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        guides: GrammarCompiler | None = None,
        draft: DraftModel | None = None,
        text: ModelText | None = None,
    ) -> None:
        settings = settings or EngineConfig()
        check_draft(settings, draft, config.vocab_size)
        weights = pack_weights(
            weights, config, weight_format(weights.norm_f.weight.devices(), "none", settings.kernels)
        )
        self._text = text or ModelText()
        limit = self._text.vocab_limit(config) if vocab_limit is None else vocab_limit
        self._vocab_limit = min(limit, config.vocab_size)
        end_ids = self._text.eos_token_ids(config) if eos_token_ids is None else eos_token_ids
        if settings.compilation_cache_dir is not None:
            use_compilation_cache(settings.compilation_cache_dir)
        cache_dtype = cache_dtype_for(weights, settings)
        self._cache_plan = cache_plan_for(weights, config, settings, cache_dtype, draft.config if draft else None)
        max_samples = max(settings.max_num_seqs, _MIN_SAMPLES) if settings.speculates else settings.max_num_seqs
        limits = settings.max_num_seqs, settings.max_num_batched_tokens, max_samples
        pool = BlockPool(self._cache_plan.num_blocks, self._cache_plan.block_size)
        self._scheduler = Scheduler(pool, *limits, prefix_caching=settings.prefix_caching)
        self._runner = Runner(
            weights, config, self._cache_plan, cache_dtype, *limits, self._vocab_limit, settings.kernels
        )
        if settings.pre_compile:
            self._runner.compile_all()

        self._guides = guides or self._text.guides(end_ids, self._vocab_limit)
        self._factory = RequestFactory(
            config.vocab_size, self._vocab_limit, end_ids, self.max_model_len, pool.block_size, self._guides
        )
        self._numbers = itertools.count()
        # Ids in use, for other threads to refuse them: these change it too, by one indivisible operation each time. Two
        # who race for one id may both get it; nothing else depends on it.
        self._names: dict[str, list[Request]] = {}
        self._requests: dict[str, list[Request]] = {}  # the engine's thread's: choices that are not over, by id
        self._inbox = Inbox()
        self._outbox = Outbox()
        self._counters = Counters()
        self._compilations = CompilationCounter()
        self._drafter = make_drafter(
            settings, draft, weights, self._cache_plan, cache_dtype, self._vocab_limit, self._runner.decode_sizes
        )
        self._pipeline = Pipeline(
            self._scheduler,
            self._runner,
            config.vocab_size,
            self._drafter,
            on_scheduled=self._publish,
            on_taken=self._taken,
            on_failed=self._failed,
        )
        self._closed = False
        self._error: str | None = None
        self._thread_ended = False
        self._publish()
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
        draft_model: str | Path | None = None,
        tokenizer: TextTokenizer | None = None,
        chat_template: str | None = None,
    ) -> Self:
        """Load a checkpoint as `model.mpt_from_pretrained` does, and its tokenizer, and serve it.

        path_or_id: a folder, a hub id, or 'embedded' for the small model in this package.
        quantization: 'none', 'int8' or 'int4' weights.
        quantization_cache_dir: a folder that keeps quantised weights between starts.
        draft_model: the smaller checkpoint that drafts, where settings.speculation is 'draft'; loaded alike.
        tokenizer: instead of the checkpoint's own; with neither, prompts and answers are ids alone.
        chat_template: 'chatml', 'dolly', a template's text or file; None takes the checkpoint's.
        Raises also `TokenizerError` for a damaged tokenizer.
        """
        folder = resolve_checkpoint(model_path(path_or_id) if isinstance(path_or_id, str) else path_or_id)
        text = ModelText.of_checkpoint(folder, tokenizer, chat_template)
        kernels = (settings or EngineConfig()).kernels
        if mesh is not None:
            format = WeightFormat(quantization)
        else:
            format = weight_format({find_device(device)}, quantization, kernels)

        def load(path: str | Path) -> tuple[Weights, MptConfig]:
            return mpt_from_pretrained(
                path, device=device, dtype=dtype, mesh=mesh, format=format, cache_dir=quantization_cache_dir
            )

        draft = None if draft_model is None else DraftModel(*load(draft_model))
        return cls(*load(folder), settings, vocab_limit, eos_token_ids, draft=draft, text=text)

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
        # In this order: who is taken in meanwhile is counted twice, rather than not at all.
        submitted = self._inbox.num_choices
        stats = self._stats
        return replace(stats, waiting=stats.waiting + submitted) if submitted else stats

    # Requests; any thread

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises `RequestError` where `submit` would refuse this."""
        self._factory.check(prompt_ids, params)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str | None = None,
        generated: Sequence[int] = (),
    ) -> str:
        """Queue a request with its params.n choices and return its id.

        on_delta is called on the engine's thread, in order, and must not block: every request waits for it. When it
        raises, its request is cancelled. generated: ids that choice params.choice_index (n must be 1) was given before,
        by an engine that did not come to its end; it goes on after them as that one would have.

        Compiles the guide, if there is one, before it returns. Raises `RequestError` (nothing is queued then),
        `EngineClosedError` when the engine was closed or has failed. When it is interrupted, `cancel` undoes whatever
        it did.
        """
        request_id = request_id or f"request-{next(self._numbers)}"
        choices = self._factory.make(prompt_ids, params, on_delta, request_id, generated)
        if self._closed or self._error:
            raise EngineClosedError(self._error or "the engine is closed")
        if self._names.setdefault(request_id, choices) is not choices:
            raise RequestError(f"a request with the id {request_id!r} is running already; choose another id")
        self._inbox.put(AddRequest(choices))
        if self._thread_ended:  # perhaps before it could see this
            self._refuse_rest()
        return request_id

    def cancel(self, request_id: str, index: int | None = None, reason: EarlyReason = "cancelled") -> None:
        """End a request, or one choice of it, before the next step.

        The id of a whole request is free when this returns. Unknown and ended ones do nothing. Never waits: also fit
        for finalizers. index: of the choice, as in `Delta`; None for all. reason: what its end counts as; 'stop' for a
        reader who has found a stop string.
        """
        self._inbox.put(Abort(request_id, index, reason))
        if index is None:  # after that: who takes the name from now on is not meant
            self._names.pop(request_id, None)

    def close(self) -> None:
        """Cancel what is left and stop the engine's thread. Idempotent; waits for the step in flight."""
        atexit.unregister(self.close)
        self._closed = True
        self._inbox.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._text.close()
        if self._guides is not None:
            self._guides.close()

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
            # Its kind alone: this travels to clients, the exception's text stays in the log.
            self._error = f"the engine stopped because a step failed ({type(error).__name__})"
        self._end([*self._scheduler.running, *self._scheduler.waiting], *self._last_words())
        self._publish()
        self._deliver()
        self._thread_ended = True
        self._refuse_rest()

    def _serve(self) -> None:
        while self._take_in():
            self._pipeline.turn()
            self._publish()
            self._deliver()
        self._pipeline.drain()

    def _take_in(self) -> bool:
        """Begin and end what others ask for, after a sleep where there is nothing to do; False when closed."""
        idle = not (self._scheduler.running or self._scheduler.waiting or self._pipeline.busy)
        items = self._inbox.take(wait=idle and not self._closed)
        for item in items:
            if isinstance(item, AddRequest):
                self._begin(item.choices)
            else:
                choices = self._requests.get(item.request_id, ())
                self._end([r for r in choices if item.index in (None, r.choice_index)], item.reason)
        if items:
            self._publish()
            self._inbox.done(len(items))
        return not self._closed

    def _begin(self, choices: Sequence[Request]) -> None:
        self._requests.setdefault(choices[0].request_id, []).extend(choices)
        for request in choices:
            self._scheduler.add(request)
        self._counters.prompt_tokens += len(choices[0].prompt_ids)

    def _end(self, requests: Iterable[Request], reason: FinishReason, message: str | None = None) -> None:
        for request in requests:
            if request.finish_reason is None:
                self._scheduler.finish(request, reason)
                self._outbox.post(request, message=message)
                self._forget(request, reason)

    def _taken(self, taken: StepOutput) -> None:
        """Take note of what a step brought."""
        self._counters.generated_tokens += len(taken.token_ids)
        self._outbox.post(taken.request, taken)
        if taken.request.finish_reason is not None:
            self._forget(taken.request, taken.request.finish_reason)

    def _failed(self, request: Request, message: str) -> None:
        self._end([request], "error", message)

    def _forget(self, request: Request, reason: FinishReason) -> None:
        self._counters.finish(request, reason)
        if self._drafter is not None:
            self._drafter.forget(request)
        for choices in (request.siblings, self._requests[request.request_id]):
            choices.remove(request)
        if not self._requests[request.request_id]:
            del self._requests[request.request_id]
        if not request.siblings and self._names.get(request.request_id) is request.siblings:
            self._names.pop(request.request_id, None)

    def _publish(self) -> None:
        """Let other threads see how it stands."""
        scheduler, counters = self._scheduler, self._counters
        drafts = self._drafter.stats if self._drafter else DraftStats()
        self._stats = EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.num_blocks,
            max_model_len=self._cache_plan.max_model_len,
            steps=self._pipeline.num_steps,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            drafted_tokens=drafts.drafted,
            accepted_tokens=drafts.accepted,
            preemptions=scheduler.num_preemptions,
            compilations=self._compilations.count,
            finished=dict(counters.finished),
            error=self._error,
            notes=self._cache_plan.notes,
        )

    def _deliver(self) -> None:
        """Call the listeners, who may submit, cancel and close."""
        for request in self._outbox.deliver():
            self._end(list(request.siblings), "cancelled")

    # The end

    def _last_words(self) -> tuple[FinishReason, str | None]:
        """With what requests end that are there when the engine ends."""
        return ("cancelled", None) if self._error is None else ("error", self._error)

    def _refuse_rest(self) -> None:
        """End what came too late for the engine's thread. On any thread, once that one has ended."""
        while (item := self._inbox.pop()) is not None:
            for request in item.choices if isinstance(item, AddRequest) else ():
                refuse(request, *self._last_words())
