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
from model.params.kv_cache import kv_bytes_per_token
from model.params.sharding import cache_sharding
from model.params.weights import Weights
from model.sampling.batch import init_sampler_state
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.native_steps import NativeSteps, SampledLater
from mpt_serve.engine.programs import COPIES, SCORED, DeviceState, ProgramKey, Programs, Purpose
from mpt_serve.engine.step_inputs import Packed, PackedEmbeds, pack_embeds
from mpt_serve.engine.step_output import Sampled
from mpt_serve.engine.step_packer import StepPacker
from mpt_serve.engine.step_rows import StepRows
from mpt_serve.engine.step_shapes import StepKey, StepShape, choose_shape, step_shapes
from mpt_serve.engine.token_masks import Words, mask_words


class PreparedStep(NamedTuple):
    """A step ready for the device: the key of its program, and its packed arrays.

    keeps_states: whether requests want something of its hidden states.
    embeds: what stands in place of rows of the embedding table; None where nothing does.
    yields: whether the step may be abandoned.
    """

    key: StepKey
    forward: Packed
    sampling: Packed
    copies: Sequence[tuple[int, int]]
    keeps_states: bool = True
    embeds: PackedEmbeds | None = None
    yields: bool = False


class Runner:
    """Runs steps on the device, in the order of its calls. One thread calls it at a time, but for `abandon`.

    A step whose masks depend on ids that the one before samples is two programs, `forward` and `sample`: the host makes
    the masks while `forward` runs. On CPUs any other `step` is one program, because dispatching the second one takes as
    long there as a small model's step. Small steps of most models need no program at all (`native_steps`), unless
    somebody wants their hidden states. The cache, and the slot state with the last sampled token of every slot, stay on
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
        prompt_embeds: bool = False,
    ) -> None:
        devices = weights.norm_f.weight.devices()
        self._packer = StepPacker(max_num_seqs)
        self._width = config.d_model
        selected = select_kernels(weights, config, cache_dtype, kernels)
        self._num_blocks = selected.pool_blocks(cache_plan.num_blocks)
        self._keys = step_shapes(
            max_num_seqs, max_num_batched_tokens, max_samples, selected.ragged_decode, selected.row_tile
        )
        self._shapes = {
            key: StepShape(
                key=key,
                max_blocks=cache_plan.max_blocks_per_sequence,
                num_blocks=self._num_blocks,
                block_size=cache_plan.block_size,
                max_num_seqs=max_num_seqs,
            )
            for key in self._keys
        }
        self._last_norm = jax.device_get(weights.norm_f)
        pool_sharding, replicated = _placements(weights, config)
        cache = selected.init_cache(config, self._num_blocks, cache_plan.block_size, cache_dtype, pool_sharding)
        slots = init_sampler_state(max_num_seqs, config.vocab_size, replicated)
        self.cache_bytes = kv_bytes_per_token(config, cache_dtype) * cache_plan.num_tokens
        self._state = DeviceState(jax.tree.leaves(weights), cache, slots)
        self._native: NativeSteps | None = None
        if selected.open_session is not None:
            self._native = NativeSteps(selected.open_session, weights, config, self._state, vocab_limit)
        self._native_tokens = selected.session_tokens
        on_cpu = next(iter(devices)).platform == "cpu"
        fused = [key for key in self._keys if on_cpu and key.num_tokens > self._native_tokens]
        self._fused = frozenset(fused)
        self._takes_embeds = prompt_embeds
        self._programs = Programs(
            weights, config, self._shapes, selected, vocab_limit, fused, replicated, prompt_embeds
        )
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
        if self._native is not None:
            self._native.open()

    def prepare(self, step: StepRows) -> PreparedStep:
        """Return everything that the device needs to know about a step's requests, before they change."""
        key = choose_shape(self._keys, step)
        forward, sampling = self._packer.pack(step, self._shapes[key])
        keeps_states = any(row.request.wants_states for row in step.rows)
        embeds = pack_embeds(step, key.num_tokens, self._width) if self._takes_embeds else None
        return PreparedStep(key, forward, sampling, step.copies, keeps_states, embeds, step.background)

    def step(self, step: PreparedStep, masks: Words | None = None) -> tuple[Array | None, Sampled]:
        """Start a step, and return its hidden states as `forward` does, and its ids as `sample` does. Does not wait.

        The hidden states may be None where the step does not keep them.
        """
        plain = not step.keeps_states and step.embeds is None
        if self._native is not None and step.key.num_tokens <= self._native_tokens and plain:
            self._copy(step.copies)
            shape = self._shapes[step.key]
            return None, self._native.start(shape, step.forward, step.sampling, masks, yields=step.yields)
        if step.key not in self._fused or step.embeds is not None:
            hidden_states, logits = self.forward(step)
            return hidden_states, self.sample(step, logits, masks)
        self._copy(step.copies)
        state = self._state
        run = self._program("step", step.key)
        arrays = step.forward, step.sampling, self._masks(step, masks)
        hidden_states, packed, state.cache, state.slots = run(state.leaves, state.cache, state.slots, *arrays)
        packed.copy_to_host_async()
        return hidden_states, packed

    def completes(self, sampled: Sampled) -> bool:
        """Wait for a step in the background; return False where it was abandoned, and is as if it had not begun."""
        sampled.block_until_ready()
        return not (isinstance(sampled, SampledLater) and sampled.abandoned)

    def abandon(self) -> None:
        """Have the step in flight end soon, if it is in the background, as far as the device can. Any thread."""
        if self._native is not None:
            self._native.abandon()

    def forward(self, step: PreparedStep) -> tuple[Array, Array]:
        """Start a step's computation, and return hidden states [T, d] and logits [S, V] to sample. Does not wait."""
        self._copy(step.copies)
        state = self._state
        arrays = state.leaves, state.cache, state.slots.last_tokens, step.forward
        if step.embeds is None:
            hidden_states, logits, state.cache = self._program("forward", step.key)(*arrays)
        else:
            run = self._program("embeds", step.key)
            hidden_states, logits, state.cache = run(*arrays, *step.embeds)
        return hidden_states, logits

    def sample(self, step: PreparedStep, logits: Array, masks: Words | None = None) -> Array:
        """Start sampling, and return what `SampledIds.read` takes, on its way to the host. Does not wait.

        masks: [S, ceil(V / 32)] uint32; rows of samples that are not masked may hold anything.
        """
        state = self._state
        run = self._program("sample", step.key.num_samples)
        packed: Array
        packed, state.slots = run(logits, state.slots, step.sampling, self._masks(step, masks))
        packed.copy_to_host_async()
        return packed

    def set_slot(self, slot: int, counts: npt.NDArray[np.int32], bias: npt.NDArray[np.float32]) -> None:
        """Set the slot state for penalties (counts [V], see `SamplerState`) and bias [V]."""
        state = self._state
        state.slots = self._program("set_slot", None)(state.slots, np.int32(slot), counts, bias)

    def score(self, hidden_states: Array, begin: int, ids: Sequence[int], stride: int = 1) -> Array:
        """Start scoring up to `SCORED` ids after the hidden states from `begin` on; returns as `sample` does.

        stride: 0 for all ids after the state `begin`.
        """
        padded = np.zeros(SCORED, np.int32)
        padded[: len(ids)] = ids
        run = self._program("score", hidden_states.shape[0])
        packed: Array = run(self._state.leaves, hidden_states, np.int32(begin), np.int32(stride), padded)
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
            state.cache = self._program("copy", None)(state.cache, pairs)

    def _program(self, purpose: Purpose, key: ProgramKey) -> jax.stages.Compiled:
        """Return a program of XLA's, which may use the state from now on."""
        if self._native is not None:
            self._native.finish()
        return self._programs.get(purpose, key, self._state)

    def _masks(self, step: PreparedStep, masks: Words | None) -> Words | Array:
        return self._no_masks[step.key.num_samples] if masks is None else masks


def _placements(weights: Weights, config: MptConfig) -> tuple[Sharding, Sharding]:
    """Return the shardings of the cache's pools and of small arrays, so that they are with the weights."""
    placed = weights.norm_f.weight.sharding
    if isinstance(placed, NamedSharding):
        assert isinstance(placed.mesh, Mesh)  # not abstract: arrays lie on it
        return cache_sharding(config, placed.mesh), NamedSharding(placed.mesh, PartitionSpec())
    return placed, placed
