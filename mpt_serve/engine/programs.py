"""The compiled programs that a runner dispatches, one for each step shape and purpose."""

import logging
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Sharding

from model.config.mpt_config import MptConfig
from model.kernel_selection import SelectedKernels
from model.layers.paged_forward import forward_and_logits, lm_logits
from model.params.kv_cache import KvCache, copy_blocks
from model.params.step_batch import TokenEmbeds
from model.params.weights import Weights
from model.sampling.batch import SamplerState
from model.sampling.logprobs import prompt_logprobs
from model.sampling.sampler import sample, set_slot_state
from mpt_serve.engine.program_store import compiled_afresh, program_store
from mpt_serve.engine.sampling_params import MAX_LOGPROBS
from mpt_serve.engine.step_inputs import Packed, pack_sampling, unpack_forward, unpack_sampling
from mpt_serve.engine.step_output import pack_sampled
from mpt_serve.engine.step_rows import StepRows
from mpt_serve.engine.step_shapes import StepKey, StepShape
from mpt_serve.engine.token_masks import mask_words

logger = logging.getLogger(__name__)

COPIES = 8  # cache blocks that one call copies
SCORED = 32  # ids that one call scores: bounds their logits to [32, V]

Purpose = Literal["forward", "embeds", "step", "sample", "score", "copy", "set_slot"]
_LOG_PERIOD_S = 2.0
_Record = TypeVar("_Record", KvCache, SamplerState)

ProgramKey = StepKey | int | None  # a step's, a number of samples (sample) or tokens (score), or none
ProgramName = tuple[Purpose, ProgramKey]


@dataclass(slots=True)
class DeviceState:
    """What stays on the device from step to step.

    leaves: the weights, flattened: a call with plain leaves is dispatched several times faster than one with nested
        records. cache, slots: donated to the programs, and replaced by their results.
    """

    leaves: list[Array]
    cache: KvCache
    slots: SamplerState


class Programs:
    """Compiles programs, ahead or on first use.

    fused: the step shapes that also have one program for the whole step, beside those for its two halves.
    replicated: sharding of small arrays. embeds: each step shape has one more for steps with embeddings in prompts.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        shapes: Mapping[StepKey, StepShape],
        kernels: SelectedKernels,
        vocab_limit: int,
        fused: Collection[StepKey],
        replicated: Sharding,
        embeds: bool = False,
    ) -> None:
        self._treedef = jax.tree.structure(weights)
        self._config = config
        self._shapes = shapes
        self._kernels = kernels
        self._vocab_limit = vocab_limit
        self._fused = fused
        self._replicated = replicated
        self._embeds = embeds
        self._stored = kernels.sampling is not None  # on a single CPU device with the native kernels
        self._max_num_seqs = next(iter(shapes.values())).max_num_seqs
        self._compiled: dict[ProgramName, jax.stages.Compiled] = {}

    def get(self, purpose: Purpose, key: ProgramKey, state: DeviceState) -> jax.stages.Compiled:
        """Return a program; compiles it where `compile_all` has not."""
        program = self._compiled.get((purpose, key))
        if program is None:
            program = self._compiled[purpose, key] = self._lower(purpose, key, state).compile()
        return program

    def compile_all(self, state: DeviceState) -> None:
        """Compile every program, or load them where an engine with the same programs has stored them.

        Tracing holds the interpreter; compiling and loading run in parallel.
        """
        started = time.monotonic()
        names = self._names()
        store = program_store(self._identity(state)) if self._stored else None
        loaded = None if store is None else store.load(names)
        if loaded is not None:
            self._compiled = loaded
            logger.info("loaded %d programs in %.1f s", len(loaded), time.monotonic() - started)
            return
        if store is None:
            self._compiled = self._compile(names, state)
        else:
            with compiled_afresh():
                self._compiled = self._compile(names, state)
            store.save(self._compiled)
        logger.info("compiled %d programs in %.1f s", len(self._compiled), time.monotonic() - started)

    def _compile(self, names: Sequence[ProgramName], state: DeviceState) -> dict[ProgramName, jax.stages.Compiled]:
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compile") as executor:
            pending = {name: executor.submit(self._lower(*name, state).compile) for name in names}
            _log_progress(list(pending.values()))
            return {name: future.result() for name, future in pending.items()}

    def _names(self) -> list[ProgramName]:
        names: list[ProgramName] = [("copy", None), ("set_slot", None)]
        names += [("forward", key) for key in self._shapes]
        names += [("embeds", key) for key in self._shapes if self._embeds]
        names += [("step", key) for key in self._fused]
        names += [("sample", samples) for samples in sorted({key.num_samples for key in self._shapes})]
        names += [("score", tokens) for tokens in sorted({key.num_tokens for key in self._shapes})]
        return names

    def _identity(self, state: DeviceState) -> list[object]:
        """Return what the programs depend on, beside the code."""
        arrays = [
            (array.shape, array.dtype.name, array.weak_type, str(array.sharding))
            for array in jax.tree.leaves((state.leaves, state.cache, state.slots))
        ]
        structures = [str(jax.tree.structure(part)) for part in (state.cache, state.slots)]
        made_for = [self._vocab_limit, list(self._fused), self._embeds, str(self._replicated), self._kernels.names]
        return [self._config, str(self._treedef), *structures, arrays, list(self._shapes.values()), *made_for]

    # Lowering. Output shardings are fixed: the next program expects cache and slots where this one expected them.

    def _lower(self, purpose: Purpose, key: ProgramKey, state: DeviceState) -> jax.stages.Lowered:
        match purpose, key:
            case "forward", StepKey():
                return self._lower_forward(self._shapes[key], state)
            case "embeds", StepKey():
                return self._lower_forward(self._shapes[key], state, *self._embeds_of(key.num_tokens))
            case "step", StepKey():
                return self._lower_step(self._shapes[key], state)
            case "sample", int():
                return self._lower_sample(key, state)
            case "score", int():
                return self._lower_score(key, state)
            case "copy", None:
                return self._lower_copy(state)
            case "set_slot", None:
                return self._lower_set_slot(state)
        raise ValueError(f"there is no program {purpose!r} for the key {key}")

    def _lower_forward(self, shape: StepShape, state: DeviceState, *embeds: jax.ShapeDtypeStruct) -> jax.stages.Lowered:
        shardings = (self._replicated, self._replicated, _shardings(state.cache))
        jitted = jax.jit(partial(self._forward, shape), donate_argnums=1, out_shardings=shardings)
        return jitted.lower(state.leaves, state.cache, state.slots.last_tokens, _words(shape.size), *embeds)

    def _lower_sample(self, samples: int, state: DeviceState) -> jax.stages.Lowered:
        shardings = (self._replicated, _shardings(state.slots))
        jitted = jax.jit(self._sample, donate_argnums=1, out_shardings=shardings)
        logits = jax.ShapeDtypeStruct((samples, self._config.vocab_size), jnp.float32, sharding=self._replicated)
        return jitted.lower(logits, state.slots, *self._sampling(samples))

    def _lower_step(self, shape: StepShape, state: DeviceState) -> jax.stages.Lowered:
        def step(
            leaves: list[Array], cache: KvCache, slots: SamplerState, forward: Array, sampling: Array, masks: Array
        ) -> tuple[Array, Array, KvCache, SamplerState]:
            hidden_states, logits, cache = self._forward(shape, leaves, cache, slots.last_tokens, forward)
            packed, slots = self._sample(logits, slots, sampling, masks)
            return hidden_states, packed, cache, slots

        shardings = (self._replicated, self._replicated, _shardings(state.cache), _shardings(state.slots))
        jitted = jax.jit(step, donate_argnums=(1, 2), out_shardings=shardings)
        arrays = _words(shape.size), *self._sampling(shape.key.num_samples)
        return jitted.lower(state.leaves, state.cache, state.slots, *arrays)

    def _lower_score(self, tokens: int, state: DeviceState) -> jax.stages.Lowered:
        def score(leaves: list[Array], hidden_states: Array, begin: Array, stride: Array, ids: Array) -> Array:
            weights = jax.tree.unflatten(self._treedef, leaves)
            positions = jnp.minimum(begin + stride * jnp.arange(SCORED), hidden_states.shape[0] - 1)
            logits = lm_logits(weights, self._config, hidden_states[positions])
            logprobs = prompt_logprobs(logits, ids, self._vocab_limit, MAX_LOGPROBS, self._kernels.sampling)
            return pack_sampled(ids, logprobs)

        shape = (tokens, self._config.d_model)
        hidden_states = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self._replicated)
        jitted = jax.jit(score, out_shardings=self._replicated)
        return jitted.lower(state.leaves, hidden_states, _words(), _words(), _words(SCORED))

    def _lower_copy(self, state: DeviceState) -> jax.stages.Lowered:
        def copy(cache: KvCache, pairs: Array) -> KvCache:
            return copy_blocks(cache, pairs[0], pairs[1])

        jitted = jax.jit(copy, donate_argnums=0, out_shardings=_shardings(state.cache))
        return jitted.lower(state.cache, _words(2, COPIES))

    def _lower_set_slot(self, state: DeviceState) -> jax.stages.Lowered:
        jitted = jax.jit(set_slot_state, donate_argnums=0, out_shardings=_shardings(state.slots))
        bias = jax.ShapeDtypeStruct((self._config.vocab_size,), jnp.float32)
        return jitted.lower(state.slots, _words(), _words(self._config.vocab_size), bias)

    def _sampling(self, samples: int) -> tuple[Packed, jax.ShapeDtypeStruct]:
        """Return examples of what a step samples with: packed parameters and masks."""
        masks = jax.ShapeDtypeStruct((samples, mask_words(self._config.vocab_size)), jnp.uint32)
        return pack_sampling(StepRows([], 0), samples, self._max_num_seqs), masks

    def _embeds_of(self, tokens: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Return examples of the fields of `TokenEmbeds`."""
        rows = jax.ShapeDtypeStruct((tokens, self._config.d_model), jnp.float32)
        return rows, jax.ShapeDtypeStruct((tokens,), jnp.bool_)

    # What the programs compute

    def _forward(
        self,
        shape: StepShape,
        leaves: list[Array],
        cache: KvCache,
        last_tokens: Array,
        packed: Array,
        *embeds: Array,
    ) -> tuple[Array, Array, KvCache]:
        weights = jax.tree.unflatten(self._treedef, leaves)
        batch, sampled = unpack_forward(packed, last_tokens, shape)
        kernels = self._kernels.attention, self._kernels.whole_step_of(shape.key.num_tokens)
        return forward_and_logits(
            weights, self._config, cache, batch, sampled, *kernels, TokenEmbeds(*embeds) if embeds else None
        )

    def _sample(self, logits: Array, slots: SamplerState, packed: Array, masks: Array) -> tuple[Array, SamplerState]:
        limits = self._vocab_limit, MAX_LOGPROBS
        ids, logprobs, slots = sample(logits, unpack_sampling(packed), masks, slots, *limits, self._kernels.sampling)
        return pack_sampled(ids, logprobs), slots


def _words(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _shardings(arrays: _Record) -> _Record:
    """Return the same record with each array's sharding in its place."""
    shardings: _Record = jax.tree.map(lambda array: array.sharding, arrays)
    return shardings


class CompilationCounter:
    """Counts programs that JAX compiles (or loads from its cache) on the thread that enters it.

    An engine's own thread should compile nothing once it serves: each compilation makes every request wait.
    seconds: that compiling has taken so far.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.count = 0
        self.seconds = seconds
        self._thread: int | None = None

    def __enter__(self) -> "CompilationCounter":
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and threading.get_ident() == self._thread:
            self.count += 1
            self.seconds += duration_secs


def use_compilation_cache(folder: str) -> None:
    """Keep every compiled program in `folder`, whatever its size, and load it from there. For the whole process."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # else a folder used before stays in use


def _log_progress(pending: Sequence[Future[jax.stages.Compiled]]) -> None:
    """Log every few seconds how many programs are compiled, until all are or one has failed."""
    while True:
        done, left = wait(pending, _LOG_PERIOD_S, return_when="FIRST_EXCEPTION")
        if not left or any(future.exception() for future in done):
            return
        logger.info("programs: %d of %d compiled", len(done), len(pending))
