"""Runs steps on the device: compiled programs, the cache and the sampler's state."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from model.config.mpt_config import MptConfig
from model.kernel_selection import select_kernels
from model.layers.paged_forward import forward_step, lm_logits
from model.params.kv_cache import KvCache, copy_blocks, init_kv_cache
from model.params.sharding import cache_sharding
from model.params.weights import Weights
from model.sampling.batch import SamplerState, init_sampler_state
from model.sampling.logprobs import prompt_logprobs
from model.sampling.sampler import sample, set_slot_state
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.sampling_params import MAX_LOGPROBS
from mpt_serve.engine.scheduler import StepRows
from mpt_serve.engine.step_inputs import (
    Packed,
    StepKey,
    StepShape,
    choose_shape,
    pack_forward,
    pack_sampling,
    step_shapes,
    unpack_forward,
    unpack_sampling,
)
from mpt_serve.engine.step_output import pack_sampled
from mpt_serve.engine.token_masks import Words, mask_words

logger = logging.getLogger(__name__)

_COPIES = 8  # cache blocks that one call copies
SCORED = 32  # prompt tokens that one call scores: bounds their logits to [32, V]


class PreparedStep(NamedTuple):
    """A step ready for the device: the key of its program, and its packed arrays."""

    key: StepKey
    forward: Packed
    sampling: Packed
    copies: Sequence[tuple[int, int]]


class Runner:
    """Runs steps on the device, in the order of its calls. Not thread-safe: one thread calls it at a time.

    A step whose masks depend on ids that the one before samples is two programs, `forward` and `sample`: masks are made
    while `forward` runs. On CPUs any other `step` is one program, because the way from one to the next costs as much
    there as a small model's step. The cache, and the sampler's state with the last sampled token of every slot, live
    on the device and are donated from program to program, so that a step takes its tokens from the one before without
    the host in between.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        cache_plan: CachePlan,
        cache_dtype: Any,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_samples: int,
        vocab_limit: int,
        kernels: str = "auto",
    ) -> None:
        # Flattened once: a call with plain leaves is dispatched several times faster than one with nested records.
        self._leaves, self._treedef = jax.tree.flatten(weights)
        self._config = config
        self._fuses = next(iter(weights.norm_f.weight.devices())).platform == "cpu"
        self._vocab_limit = vocab_limit
        self._max_num_seqs = max_num_seqs
        devices = weights.norm_f.weight.devices()
        self._kernels = select_kernels(devices, config, cache_dtype, kernels)
        pool_sharding, self._replicated = _placements(weights, config)
        self._num_blocks = cache_plan.num_blocks
        self._cache = init_kv_cache(config, cache_plan.num_blocks, cache_plan.block_size, cache_dtype, pool_sharding)
        self._kernels.prepare_cache(self._cache)
        self._state = init_sampler_state(max_num_seqs, config.vocab_size, self._replicated)
        self._shapes = {
            key: StepShape(
                key=key,
                max_blocks=cache_plan.max_blocks_per_sequence,
                num_blocks=cache_plan.num_blocks,
                block_size=cache_plan.block_size,
                max_num_seqs=max_num_seqs,
            )
            for key in step_shapes(
                max_num_seqs, max_num_batched_tokens, max_samples, self._kernels.ragged_decode, self._kernels.row_tile
            )
        }
        self._no_masks = {
            key.num_samples: jnp.zeros((key.num_samples, mask_words(config.vocab_size)), jnp.uint32)
            for key in self._shapes
        }
        self._programs: dict[tuple[str, Any], jax.stages.Compiled] = {}

    @property
    def decode_sizes(self) -> list[int]:
        """Tokens of the programs that sample after every token."""
        return sorted({key.num_tokens for key in self._shapes if key.num_samples == key.num_tokens})

    def compile_all(self) -> None:
        """Compile every program. Tracing holds the interpreter; compiling runs in parallel."""
        started = time.monotonic()
        keys: list[tuple[str, Any]] = [("copy", None), ("state", None)]
        keys += [("forward", key) for key in self._shapes]
        keys += [("step", key) for key in self._shapes if self._fuses]
        keys += [("sample", samples) for samples in self._no_masks]
        keys += [("score", tokens) for tokens in {key.num_tokens for key in self._shapes}]
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compile") as executor:
            pending = {key: executor.submit(self._lower(*key).compile) for key in keys}
            self._programs = {key: future.result() for key, future in pending.items()}
        logger.info("compiled %d programs in %.1f s", len(self._programs), time.monotonic() - started)

    def prepare(self, step: StepRows) -> PreparedStep:
        """Everything that the device needs to know about a step's requests, before they change."""
        key = choose_shape(tuple(self._shapes), step)
        sampling = pack_sampling(step, key.num_samples, self._max_num_seqs)
        return PreparedStep(key, pack_forward(step, self._shapes[key]), sampling, step.copies)

    def step(self, step: PreparedStep, masks: Words | None = None) -> tuple[Array, Array]:
        """Start a step; returns at once with its states as `forward` does, and its ids as `sample` does."""
        if not self._fuses:
            states, logits = self.forward(step)
            return states, self.sample(step, logits, masks)
        self._copy(step.copies)
        run = self._program("step", step.key)
        arrays = step.forward, step.sampling, self._words_of(step, masks)
        states, packed, self._cache, self._state = run(self._leaves, self._cache, self._state, *arrays)
        packed.copy_to_host_async()
        return states, packed

    def forward(self, step: PreparedStep) -> tuple[Array, Array]:
        """Start a step's computation; returns at once with states [T, d] of its tokens and logits [S, V] to sample."""
        self._copy(step.copies)
        run = self._program("forward", step.key)
        states, logits, self._cache = run(self._leaves, self._cache, self._state.last_tokens, step.forward)
        return states, logits

    def _copy(self, all_copies: Sequence[tuple[int, int]]) -> None:
        for i in range(0, len(all_copies), _COPIES):
            copies = all_copies[i : i + _COPIES]
            pairs = np.full((2, _COPIES), self._num_blocks, np.int32)
            pairs[:, : len(copies)] = np.array(copies).T
            pairs[0, len(copies) :] = 0
            self._cache = self._program("copy", None)(self._cache, pairs)

    def set_state(self, slot: int, counts: npt.NDArray[np.int32], bias: npt.NDArray[np.float32]) -> None:
        """Set what a slot's samples are penalised (counts [V], see `SamplerState`) and biased (bias [V]) by."""
        self._state = self._program("state", None)(self._state, np.int32(slot), counts, bias)

    def sample(self, step: PreparedStep, logits: Array, masks: Words | None = None) -> Array:
        """Start sampling; returns at once with what `Sampled.read` takes, on its way to the host.

        masks: [S, ceil(V / 32)] uint32, rows of samples that are not masked may hold anything.
        """
        run = self._program("sample", step.key.num_samples)
        packed: Array
        packed, self._state = run(logits, self._state, step.sampling, self._words_of(step, masks))
        packed.copy_to_host_async()
        return packed

    def _words_of(self, step: PreparedStep, masks: Words | None) -> Words | Array:
        return self._no_masks[step.key.num_samples] if masks is None else masks

    def score(self, states: Array, begin: int, ids: Sequence[int]) -> Array:
        """Log probabilities of up to `SCORED` ids after the states from `begin` on, as `sample` returns them."""
        padded = np.zeros(SCORED, np.int32)
        padded[: len(ids)] = ids
        run = self._program("score", states.shape[0])
        packed: Array = run(self._leaves, states, np.int32(begin), padded)
        packed.copy_to_host_async()
        return packed

    def _program(self, kind: str, key: Any) -> jax.stages.Compiled:
        program = self._programs.get((kind, key))
        if program is None:
            program = self._programs[kind, key] = self._lower(kind, key).compile()
        return program

    def _lower(self, kind: str, key: Any) -> jax.stages.Lowered:
        lower: dict[str, Callable[[], jax.stages.Lowered]] = {
            "forward": lambda: self._lower_forward(self._shapes[key]),
            "step": lambda: self._lower_step(self._shapes[key]),
            "sample": lambda: self._lower_sample(key),
            "score": lambda: self._lower_score(key),
            "copy": self._lower_copy,
            "state": self._lower_state,
        }
        return lower[kind]()

    def _forward(
        self, shape: StepShape, leaves: list[Array], cache: KvCache, last_tokens: Array, packed: Array
    ) -> tuple[Array, Array, KvCache]:
        weights = jax.tree.unflatten(self._treedef, leaves)
        batch, sampled = unpack_forward(packed, last_tokens, shape)
        states, cache = forward_step(weights, self._config, cache, batch, self._kernels.attention)
        return states, lm_logits(weights, self._config, states[sampled]), cache

    def _sample(self, logits: Array, state: SamplerState, packed: Array, masks: Array) -> tuple[Array, SamplerState]:
        batch = unpack_sampling(packed)
        ids, logprobs, state = sample(
            logits, batch, masks, state, self._vocab_limit, MAX_LOGPROBS, self._kernels.sampling
        )
        return pack_sampled(ids, logprobs), state

    # Output shardings are fixed: the next program expects cache and state where this one's expected them.

    def _lower_forward(self, shape: StepShape) -> jax.stages.Lowered:
        shardings = (self._replicated, self._replicated, self._cache_shardings)
        jitted = jax.jit(partial(self._forward, shape), donate_argnums=1, out_shardings=shardings)
        return jitted.lower(self._leaves, self._cache, self._state.last_tokens, _words(shape.size))

    def _lower_sample(self, samples: int) -> jax.stages.Lowered:
        jitted = jax.jit(self._sample, donate_argnums=1, out_shardings=(self._replicated, self._state_shardings))
        return jitted.lower(self._logits(samples), self._state, self._sampling(samples), self._no_masks[samples])

    def _lower_step(self, shape: StepShape) -> jax.stages.Lowered:
        def step(
            leaves: list[Array], cache: KvCache, state: SamplerState, forward: Array, sampling: Array, masks: Array
        ) -> tuple[Array, Array, KvCache, SamplerState]:
            states, logits, cache = self._forward(shape, leaves, cache, state.last_tokens, forward)
            packed, state = self._sample(logits, state, sampling, masks)
            return states, packed, cache, state

        samples = shape.key.num_samples
        shardings = (self._replicated, self._replicated, self._cache_shardings, self._state_shardings)
        jitted = jax.jit(step, donate_argnums=(1, 2), out_shardings=shardings)
        arrays = _words(shape.size), self._sampling(samples), self._no_masks[samples]
        return jitted.lower(self._leaves, self._cache, self._state, *arrays)

    def _lower_score(self, tokens: int) -> jax.stages.Lowered:
        def run(leaves: list[Array], states: Array, begin: Array, ids: Array) -> Array:
            weights = jax.tree.unflatten(self._treedef, leaves)
            places = jnp.minimum(begin + jnp.arange(SCORED), states.shape[0] - 1)
            logits = lm_logits(weights, self._config, states[places])
            limits = self._vocab_limit, MAX_LOGPROBS
            return pack_sampled(ids, prompt_logprobs(logits, ids, *limits, self._kernels.sampling))

        states = jax.ShapeDtypeStruct((tokens, self._config.d_model), jnp.float32, sharding=self._replicated)
        jitted = jax.jit(run, out_shardings=self._replicated)
        return jitted.lower(self._leaves, states, _words(), _words(SCORED))

    def _lower_copy(self) -> jax.stages.Lowered:
        def run(cache: KvCache, pairs: Array) -> KvCache:
            return copy_blocks(cache, pairs[0], pairs[1])

        jitted = jax.jit(run, donate_argnums=0, out_shardings=self._cache_shardings)
        return jitted.lower(self._cache, _words(2, _COPIES))

    def _lower_state(self) -> jax.stages.Lowered:
        vocabulary = (self._config.vocab_size,)
        jitted = jax.jit(set_slot_state, donate_argnums=0, out_shardings=self._state_shardings)
        bias = jax.ShapeDtypeStruct(vocabulary, jnp.float32)
        return jitted.lower(self._state, _words(), _words(*vocabulary), bias)

    def _sampling(self, samples: int) -> Packed:
        return pack_sampling(StepRows([], 0), samples, self._max_num_seqs)

    def _logits(self, samples: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((samples, self._config.vocab_size), jnp.float32, sharding=self._replicated)

    @property
    def _cache_shardings(self) -> Any:
        return jax.tree.map(lambda pool: pool.sharding, self._cache)

    @property
    def _state_shardings(self) -> Any:
        return jax.tree.map(lambda array: array.sharding, self._state)


def _words(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placements(weights: Weights, config: MptConfig) -> tuple[Sharding, Sharding]:
    """Where the cache's pools and the small arrays go, so that they are with the weights."""
    placed = weights.norm_f.weight.sharding
    if isinstance(placed, NamedSharding):
        assert isinstance(placed.mesh, Mesh)  # not abstract: arrays lie on it
        return cache_sharding(config, placed.mesh), NamedSharding(placed.mesh, PartitionSpec())
    return placed, placed


class CompilationCounter:
    """Counts programs that JAX compiles (or loads from its cache) on the thread that enters it.

    An engine's own thread should compile nothing once it serves: each compilation makes every request wait.
    """

    def __init__(self) -> None:
        self.count = 0
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


def use_compilation_cache(folder: str) -> None:
    """Keep every compiled program in `folder`, whatever its size, and load it from there. For the whole process."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # else a folder used before stays in use
