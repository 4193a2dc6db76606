"""Runs steps on the device: dispatches the compiled programs over the KV cache and the slot state."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.kernel_selection import select_kernels
from model.ops.norm import normalise_on_host
from model.params.kv_cache import init_kv_cache
from model.params.sharding import cache_sharding
from model.params.weights import Weights
from model.sampling.batch import init_sampler_state
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.programs import COPIES, SCORED, DeviceState, Programs
from mpt_serve.engine.step_inputs import Packed, pack_forward, pack_sampling
from mpt_serve.engine.step_rows import StepRows
from mpt_serve.engine.step_shapes import StepKey, StepShape, choose_shape, step_shapes
from mpt_serve.engine.token_masks import Words, mask_words


class PreparedStep(NamedTuple):
    """A step ready for the device: the key of its program, and its packed arrays."""

    key: StepKey
    forward: Packed
    sampling: Packed
    copies: Sequence[tuple[int, int]]


class Runner:
    """Runs steps on the device, in the order of its calls. Not thread-safe: one thread calls it at a time.

    A step whose masks depend on ids that the one before samples is two programs, `forward` and `sample`: the host makes
    the masks while `forward` runs. On CPUs any other `step` is one program, because dispatching the second one takes as
    long there as a small model's step. The cache, and the slot state with the last sampled token of every slot, stay on
    the device and are donated from program to program, so that a step takes its tokens from the one before without the
    host in between.
    """

    def __init__(
        self,
        weights: Weights,
        config: MptConfig,
        cache_plan: CachePlan,
        cache_dtype: DTypeLike,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_samples: int,
        vocab_limit: int,
        kernels: str = "auto",
    ) -> None:
        devices = weights.norm_f.weight.devices()
        self._fused = next(iter(devices)).platform == "cpu"
        self._max_num_seqs = max_num_seqs
        self._num_blocks = cache_plan.num_blocks
        selected = select_kernels(weights, config, cache_dtype, kernels)
        self._keys = step_shapes(
            max_num_seqs, max_num_batched_tokens, max_samples, selected.ragged_decode, selected.row_tile
        )
        self._shapes = {
            key: StepShape(
                key=key,
                max_blocks=cache_plan.max_blocks_per_sequence,
                num_blocks=cache_plan.num_blocks,
                block_size=cache_plan.block_size,
                max_num_seqs=max_num_seqs,
            )
            for key in self._keys
        }
        self._last_norm = jax.device_get(weights.norm_f)
        pool_sharding, replicated = _placements(weights, config)
        cache = init_kv_cache(config, cache_plan.num_blocks, cache_plan.block_size, cache_dtype, pool_sharding)
        selected.prepare_cache(cache)
        slots = init_sampler_state(max_num_seqs, config.vocab_size, replicated)
        self.cache_bytes = sum(pool.nbytes for pool in jax.tree.leaves(cache))
        self._state = DeviceState(jax.tree.leaves(weights), cache, slots)
        self._programs = Programs(weights, config, self._shapes, selected, vocab_limit, self._fused, replicated)
        self._no_masks = {
            samples: jnp.zeros((samples, mask_words(config.vocab_size)), jnp.uint32)
            for samples in {key.num_samples for key in self._keys}
        }

    @property
    def step_sizes(self) -> list[int]:
        """Return the numbers of tokens that steps are padded to."""
        return sorted({key.num_tokens for key in self._keys})

    @property
    def decode_sizes(self) -> list[int]:
        """Return the numbers of tokens of the programs that sample after every token."""
        return sorted({key.num_tokens for key in self._keys if key.num_samples == key.num_tokens})

    def compile_all(self) -> None:
        """Compile every program."""
        self._programs.compile_all(self._state)

    def prepare(self, step: StepRows) -> PreparedStep:
        """Return everything that the device needs to know about a step's requests, before they change."""
        key = choose_shape(self._keys, step)
        sampling = pack_sampling(step, key.num_samples, self._max_num_seqs)
        return PreparedStep(key, pack_forward(step, self._shapes[key]), sampling, step.copies)

    def step(self, step: PreparedStep, masks: Words | None = None) -> tuple[Array, Array]:
        """Start a step, and return its hidden states as `forward` does, and its ids as `sample` does. Does not wait."""
        if not self._fused:
            hidden_states, logits = self.forward(step)
            return hidden_states, self.sample(step, logits, masks)
        self._copy(step.copies)
        state = self._state
        run = self._programs.get("step", step.key, state)
        arrays = step.forward, step.sampling, self._masks(step, masks)
        hidden_states, packed, state.cache, state.slots = run(state.leaves, state.cache, state.slots, *arrays)
        packed.copy_to_host_async()
        return hidden_states, packed

    def forward(self, step: PreparedStep) -> tuple[Array, Array]:
        """Start a step's computation, and return hidden states [T, d] and logits [S, V] to sample. Does not wait."""
        self._copy(step.copies)
        state = self._state
        run = self._programs.get("forward", step.key, state)
        hidden_states, logits, state.cache = run(state.leaves, state.cache, state.slots.last_tokens, step.forward)
        return hidden_states, logits

    def sample(self, step: PreparedStep, logits: Array, masks: Words | None = None) -> Array:
        """Start sampling, and return what `SampledIds.read` takes, on its way to the host. Does not wait.

        masks: [S, ceil(V / 32)] uint32; rows of samples that are not masked may hold anything.
        """
        state = self._state
        run = self._programs.get("sample", step.key.num_samples, state)
        packed: Array
        packed, state.slots = run(logits, state.slots, step.sampling, self._masks(step, masks))
        packed.copy_to_host_async()
        return packed

    def set_slot(self, slot: int, counts: npt.NDArray[np.int32], bias: npt.NDArray[np.float32]) -> None:
        """Set the slot state for penalties (counts [V], see `SamplerState`) and bias [V]."""
        state = self._state
        state.slots = self._programs.get("set_slot", None, state)(state.slots, np.int32(slot), counts, bias)

    def score(self, hidden_states: Array, begin: int, ids: Sequence[int]) -> Array:
        """Start scoring up to `SCORED` ids after the hidden states from `begin` on; returns as `sample` does."""
        padded = np.zeros(SCORED, np.int32)
        padded[: len(ids)] = ids
        run = self._programs.get("score", hidden_states.shape[0], self._state)
        packed: Array = run(self._state.leaves, hidden_states, np.int32(begin), padded)
        packed.copy_to_host_async()
        return packed

    def final_states(self, hidden_states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the model's last norm of hidden states [n, d] on the host; the output head computes it by itself."""
        return normalise_on_host(hidden_states, self._last_norm)

    def _copy(self, all_copies: Sequence[tuple[int, int]]) -> None:
        state = self._state
        for i in range(0, len(all_copies), COPIES):
            copies = all_copies[i : i + COPIES]
            pairs = np.full((2, COPIES), self._num_blocks, np.int32)
            pairs[:, : len(copies)] = np.array(copies).T
            pairs[0, len(copies) :] = 0
            state.cache = self._programs.get("copy", None, state)(state.cache, pairs)

    def _masks(self, step: PreparedStep, masks: Words | None) -> Words | Array:
        return self._no_masks[step.key.num_samples] if masks is None else masks


def _placements(weights: Weights, config: MptConfig) -> tuple[Sharding, Sharding]:
    """Return the shardings of the cache's pools and of small arrays, so that they are with the weights."""
    placed = weights.norm_f.weight.sharding
    if isinstance(placed, NamedSharding):
        assert isinstance(placed.mesh, Mesh)  # not abstract: arrays lie on it
        return cache_sharding(config, placed.mesh), NamedSharding(placed.mesh, PartitionSpec())
    return placed, placed
