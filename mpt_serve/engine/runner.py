"""The device side of the engine: weights, cache, and one compiled program per step shape."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from model.config import MptConfig
from model.kernels.choice import attention_for, choose_ids_for
from model.kernels.cpu.calls import paged_attention as cpu_attention
from model.kernels.cpu.huge_pages import use_huge_pages
from model.kv_cache import KvCache, init_kv_cache
from model.sharding import cache_sharding
from model.step import forward_step, lm_logits, row_ends
from model.weights import Weights
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.sampler import sample
from mpt_serve.engine.scheduler import StepRows
from mpt_serve.engine.step_plan import StepShape, choose_shape, pack, step_shapes, unpack

logger = logging.getLogger(__name__)

Prepared = tuple[tuple[int, int], npt.NDArray[np.int32]]
"""A step ready for the device: the key of its shape, and its packed array."""


class Runner:
    """Runs steps on the device, in the order of `dispatch`. Not thread-safe: one thread calls it at a time.

    The cache and the last sampled token of every slot live on the device and are donated from step to step, so that
    step k + 1 takes its tokens from step k without the host in between.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        cache_plan: CachePlan,
        cache_dtype: Any,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        vocab_limit: int,
        kernels: str = "auto",
    ) -> None:
        # Flattened once: a call with plain leaves is dispatched several times faster than one with nested records.
        self._leaves, self._treedef = jax.tree.flatten(weights)
        self._config = config
        self._vocab_limit = vocab_limit
        devices = weights.norm_f.weight.devices()
        self._attention = attention_for(devices, config, cache_dtype, kernels)
        self._choose_ids = choose_ids_for(devices, kernels)
        pool_sharding, self._replicated = _state_shardings(weights, config)
        self._cache = init_kv_cache(config, cache_plan.num_blocks, cache_plan.block_size, cache_dtype, pool_sharding)
        if self._attention is cpu_attention:
            jax.tree.map(use_huge_pages, self._cache)
        self._last_tokens = jnp.zeros(max_num_seqs, jnp.int32, device=self._replicated)
        self._shapes = {
            (tokens, rows): StepShape(
                num_tokens=tokens,
                num_rows=rows,
                max_blocks=cache_plan.max_blocks_per_sequence,
                num_blocks=cache_plan.num_blocks,
                block_size=cache_plan.block_size,
                max_num_seqs=max_num_seqs,
            )
            for tokens, rows in step_shapes(max_num_seqs, max_num_batched_tokens)
        }
        self._programs: dict[tuple[int, int], jax.stages.Compiled] = {}

    def compile_all(self) -> None:
        """Compile the program of every step shape. Tracing holds the interpreter; compiling runs in parallel."""
        started = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="compile") as executor:
            pending = {key: executor.submit(self._lower(shape).compile) for key, shape in self._shapes.items()}
            self._programs = {key: future.result() for key, future in pending.items()}
        logger.info("compiled %d step programs in %.1f s", len(self._programs), time.monotonic() - started)

    def prepare(self, step: StepRows) -> Prepared:
        """Everything that `dispatch` needs to know about a step's requests, before they change."""
        key = choose_shape(tuple(self._shapes), step)
        return key, pack(step, self._shapes[key])

    def dispatch(self, key: tuple[int, int], packed: npt.NDArray[np.int32]) -> Array:
        """Start a step; returns at once with the ids [R] int32 that it will have sampled, on their way to the host."""
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._lower(self._shapes[key]).compile()
        ids: Array
        ids, self._last_tokens, self._cache = program(self._leaves, self._cache, self._last_tokens, packed)
        ids.copy_to_host_async()
        return ids

    def _lower(self, shape: StepShape) -> jax.stages.Lowered:
        def step(
            leaves: list[Array], cache: KvCache, last_tokens: Array, packed: Array
        ) -> tuple[Array, Array, KvCache]:
            weights = jax.tree.unflatten(self._treedef, leaves)
            batch, sampling, state_slot = unpack(packed, last_tokens, shape)
            hidden, cache = forward_step(weights, self._config, cache, batch, self._attention)
            logits = lm_logits(weights, self._config, hidden[row_ends(batch)])
            ids = sample(logits, sampling, self._vocab_limit, self._choose_ids)
            return ids, last_tokens.at[state_slot].set(ids, mode="drop"), cache

        # Fixed output shardings: the next step's program expects the state where this one's expected it.
        cache_shardings = jax.tree.map(lambda pool: pool.sharding, self._cache)
        jitted = jax.jit(
            step, donate_argnums=(1, 2), out_shardings=(self._replicated, self._replicated, cache_shardings)
        )
        packed = jax.ShapeDtypeStruct((shape.size,), jnp.int32)
        return jitted.lower(self._leaves, self._cache, self._last_tokens, packed)


def _state_shardings(weights: Weights, config: MptConfig) -> tuple[Sharding, Sharding]:
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
