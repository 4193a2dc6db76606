"""The engine: requests in from any thread, deltas out on the engine's own thread."""

import atexit
import itertools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from model.config import MptConfig
from model.kernels.choice import weight_format
from model.pretrained import find_device, mpt_from_pretrained, resolve_checkpoint
from model.quantization import WeightFormat, pack_weights
from model.weights import Weights
from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.config import EngineConfig
from mpt_serve.engine.drafting import DraftModel, DraftStats, check_draft, make_drafter
from mpt_serve.engine.generate import GenerationMixin
from mpt_serve.engine.memory import cache_dtype_for, cache_plan_for
from mpt_serve.engine.model_text import ModelText
from mpt_serve.engine.pipeline import Pipeline, Taken
from mpt_serve.engine.request import (
    Delta,
    EngineClosedError,
    FinishReason,
    Request,
    RequestError,
    ignore_delta,
)
from mpt_serve.engine.request_checks import check_ids, check_prompt
from mpt_serve.engine.runner import CompilationCounter, Runner, use_compilation_cache
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.scheduler import Scheduler, extend_digests
from mpt_serve.engine.stats import Counters, EngineStats
from mpt_serve.engine.token_limits import GuideState, TokenLimits
from mpt_serve.guided.compiler import GuideCompiler
from mpt_serve.model_folder import model_path
from mpt_serve.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_MIN_SAMPLES = 16  # ids that a step may sample at least where drafts are verified


class Engine(GenerationMixin):
    """Continuous batching for one model on one device or mesh.

    One thread runs the device: it schedules and dispatches step k + 1 before it reads what step k sampled. `_lock`
    guards the scheduler and is never held while the device works, so that `submit` and `cancel` take effect at once.

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
        guides: GuideCompiler | None = None,
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
        self._eos_token_ids = frozenset(self._text.eos_token_ids(config) if eos_token_ids is None else eos_token_ids)
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

        self._guides = guides or self._text.guides(self._eos_token_ids, self._vocab_limit)
        self._vocab_size = config.vocab_size
        self._lock = threading.Condition()
        self._requests: dict[str, list[Request]] = {}  # choices that are not finished
        self._outbox: deque[tuple[Request, Delta]] = deque()
        self._counters = Counters()
        self._compilations = CompilationCounter()
        self._drafter = make_drafter(
            settings, draft, weights, self._cache_plan, cache_dtype, self._vocab_limit, self._runner.decode_sizes
        )
        self._pipeline = Pipeline(
            self._scheduler, self._runner, self._lock, config.vocab_size, self._drafter, self._taken, self._failed
        )
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
        with self._lock:
            return self._counters.stats(
                self._scheduler,
                max_model_len=self._cache_plan.max_model_len,
                steps=self._pipeline.num_steps,
                compilations=self._compilations.count,
                drafts=self._drafter.stats if self._drafter else DraftStats(),
                error=self._error,
                notes=self._cache_plan.notes,
            )

    # Requests; any thread

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises `RequestError` where `submit` would refuse this."""
        check_prompt(prompt_ids, params, self._vocab_limit, self.max_model_len)
        self._guide_of(params)

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
        `EngineClosedError` when the engine was closed or has failed.
        """
        check_prompt(prompt_ids, params, self._vocab_limit, self.max_model_len)
        choices = self._choices(
            tuple(map(int, prompt_ids)), params, on_delta, request_id or f"request-{next(self._names)}"
        )
        if generated:
            self._resume(choices, list(generated))
        first = choices[0]
        extend_digests(first, len(prompt_ids), self._cache_plan.block_size)  # here, not on the engine's thread
        with self._lock:
            if self._closed or self._error:
                raise EngineClosedError(self._error or "the engine is closed")
            if first.request_id in self._requests:
                raise RequestError(f"a request with the id {first.request_id!r} is running already; choose another id")
            for request in choices:
                request.digests = list(first.digests)
                self._scheduler.add(request)
            self._requests[first.request_id] = choices
            self._counters.prompt_tokens += len(prompt_ids)
            self._lock.notify()
        return first.request_id

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, with 'cancelled'; its blocks are free when this returns.

        index: of the choice, as in `Delta`; None for all. Unknown and ended ones do nothing.
        """
        with self._lock:
            for request in list(self._requests.get(request_id, ())):
                if index is None or request.choice_index == index:
                    self._end(request, "cancelled")
            self._lock.notify()

    def close(self) -> None:
        """Cancel what is left and stop the engine's thread. Idempotent; waits for the step in flight."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            self._lock.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._text.close()
        if self._guides is not None:
            self._guides.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _choices(
        self, prompt_ids: tuple[int, ...], params: SamplingParams, on_delta: Callable[[Delta], None], request_id: str
    ) -> list[Request]:
        """A request's choices; all but the first take over what the first computes of the prompt."""
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        make_guide = self._guide_of(params)
        choices: list[Request] = []
        for i in range(params.n):
            limits = TokenLimits(params, stop_ids, self._vocab_size, make_guide() if make_guide else None)
            request = Request(
                request_id=request_id,
                prompt_ids=prompt_ids,
                params=params,
                seed=choices[0].seed if choices else _seed(params),
                max_output=min(params.max_tokens, self.max_model_len - len(prompt_ids)),
                choice_index=params.choice_index + i,
                stop_ids=stop_ids,
                on_delta=on_delta,
                source=choices[0] if choices else None,
                limits=limits if limits.binding else None,
            )
            choices.append(request)
        return choices

    def _guide_of(self, params: SamplingParams) -> Callable[[], GuideState] | None:
        if params.guide is None:
            return None
        if self._guides is None:
            raise RequestError(
                "guided output needs the model's tokenizer and its end-of-sequence id: there is none here"
            )
        if params.ignore_eos or not self._eos_token_ids:
            raise RequestError("guided output ends with an end-of-sequence id: it takes one, and no ignore_eos")
        return self._guides.compile(params.guide).start

    def _resume(self, choices: list[Request], generated: list[int]) -> None:
        check_ids("generated", generated, self._vocab_limit)
        request = choices[0]
        if len(choices) > 1 or len(generated) >= request.max_output or request.stop_ids & set(generated):
            raise RequestError("generated must be the unfinished answer of one choice")
        request.resume(generated)

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
        while self._wait_for_work():
            self._pipeline.turn()
            self._deliver()
        self._pipeline.drain()

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False when the engine is closed."""
        with self._lock:
            while not (self._closed or self._requests or self._outbox or self._pipeline.busy):
                self._lock.wait()
            return not self._closed

    def _taken(self, taken: Taken) -> None:
        """Take note of what a step brought; holds the lock."""
        self._counters.generated_tokens += len(taken.token_ids)
        self._post(taken.request, taken)

    def _failed(self, request: Request, message: str) -> None:
        if request.finish_reason is None:
            self._end(request, "error", message)

    def _end(self, request: Request, reason: FinishReason, message: str | None = None) -> None:
        self._scheduler.finish(request, reason)
        self._post(request, message=message)

    def _post(self, request: Request, taken: Taken | None = None, message: str | None = None) -> None:
        """Queue news about a request for delivery; forget it when that is the last. Holds the lock."""
        reason = request.finish_reason
        prompt_logprobs = None
        if request.wants_prompt_logprobs and not request.prompt_is_told and taken is not None:
            request.prompt_is_told = True
            prompt_logprobs = tuple(request.prompt_logprobs)
        delta = Delta(
            token_ids=taken.token_ids if taken else (),
            finish_reason=reason,
            stop_reason=request.output_ids[-1] if reason == "stop" else None,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=request.num_cached or 0,
            message=message,
            index=request.choice_index,
            logprobs=taken.logprobs if taken else None,
            prompt_logprobs=prompt_logprobs,
        )
        self._outbox.append((request, delta))
        if reason is not None:
            self._forget(request, reason)

    def _forget(self, request: Request, reason: FinishReason) -> None:
        self._counters.finish(request, reason)
        if self._drafter is not None:
            self._drafter.forget(request)
        choices = self._requests[request.request_id]
        choices.remove(request)
        if not choices:
            del self._requests[request.request_id]

    def _end_all(self, reason: FinishReason, message: str | None = None) -> None:
        for request in [request for choices in self._requests.values() for request in choices]:
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


def _seed(params: SamplingParams) -> int:
    return secrets.randbits(64) if params.seed is None else params.seed % 2**64
