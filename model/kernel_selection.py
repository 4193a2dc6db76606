"""Which kernels the devices of a model have.

The setting `kernels` is 'auto' for the fastest that a platform has here, or 'xla' for what XLA makes of the readable
definitions (quantised products excepted).
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import CACHE_DTYPES
from model.kernels.cpu.attention import paged_attention as cpu_attention
from model.kernels.cpu.library import kernel_library, kernels_available
from model.kernels.cpu.sampling import choose_ids, log_probabilities
from model.kernels.cpu.session import StepSession, computes_sessions, open_session
from model.kernels.cpu.step import computes_whole_step, whole_step
from model.kernels.cpu.zeros import lazy_zeros
from model.layers.paged_forward import CacheAttention, WholeStep, write_then, xla_attention
from model.params.kv_cache import KvCache, LayerCache, init_kv_cache
from model.params.step_batch import StepBatch
from model.params.weight_format import WeightFormat
from model.params.weights import Weights
from model.sampling.batch import SamplingKernels

_WHOLE_STEP_TOKENS = 64
"""Larger steps take so long that the time between kernels is next to nothing."""

OpenSession = Callable[[Weights, MptConfig, KvCache, object], tuple[StepSession, KvCache]]
"""(weights, config, cache, what owns its memory) -> a session over the cache, which it donates, and the cache"""


@dataclass(frozen=True)
class SelectedKernels:
    """What was selected for the devices, the model and its cache, and what follows from it for their user."""

    attention: CacheAttention
    whole_step: WholeStep | None
    """Computes all layers of a small step in place of `attention` and the kernels of linear layers; None: there is no
    such kernel."""
    open_session: OpenSession | None
    """Opens a session that computes whole steps of up to `session_tokens` tokens, and samples, without XLA; None where
    there is no such kernel."""
    sampling: SamplingKernels | None
    """None where XLA compiles the definitions."""
    ragged_decode: bool
    """Whether attention takes rows of one token and longer ones at the same speed, so that one program serves both."""
    row_tile: int | None
    """Rows that the products handle together, so that a step of that many costs little more than a smaller one; None
    where no number of rows is special."""
    lazy_cache: bool
    """Whether the cache takes memory only as it is used."""

    @property
    def names(self) -> list[str]:
        """Return what was selected in words, which are the same in every process."""
        functions = self.attention, self.whole_step, self.sampling and self.sampling.choose_ids
        return [getattr(function, "__qualname__", "none") for function in functions]

    def whole_step_of(self, tokens: int) -> WholeStep | None:
        """Return the kernel for all layers of a step of that many tokens; None where several kernels compute it."""
        return self.whole_step if tokens <= _WHOLE_STEP_TOKENS else None

    @property
    def session_tokens(self) -> int:
        """Return the tokens of the largest step that a session computes; 0 where there is none."""
        return 0 if self.open_session is None else _WHOLE_STEP_TOKENS

    def pool_blocks(self, num_blocks: int) -> int:
        """Return how many blocks the pools of a cache of `num_blocks` should have: programs depend on that number.

        Memory that is not used costs nothing where the cache is lazy: there it is a power of two, so that another
        amount of free memory at the next start does not mean other programs.
        """
        return 1 << (num_blocks - 1).bit_length() if self.lazy_cache else num_blocks

    def init_cache(
        self, config: MptConfig, num_blocks: int, block_size: int, dtype: DTypeLike, sharding: Sharding | None
    ) -> KvCache:
        """Return a zeroed cache, in memory as the kernels read it best."""
        zeros = lazy_zeros if self.lazy_cache else jnp.zeros
        return init_kv_cache(config, num_blocks, block_size, dtype, sharding, zeros)


def select_kernels(
    weights: Weights, config: MptConfig, cache_dtype: DTypeLike, kernels: str = "auto"
) -> SelectedKernels:
    """Return the fastest kernels that the devices of the weights have for them and a cache of `cache_dtype`."""
    devices = weights.norm_f.weight.devices()
    dtype = jnp.dtype(cache_dtype)
    library = kernel_library() if _has_cpu_kernels(devices, kernels) else None
    if library is None:
        attention = xla_attention if kernels == "xla" else _accelerator_attention(devices, config, dtype)
        return SelectedKernels(attention, None, None, None, ragged_decode=False, row_tile=None, lazy_cache=False)
    native = dtype in CACHE_DTYPES
    return SelectedKernels(
        attention=cpu_attention if native else xla_attention,
        whole_step=whole_step if native and computes_whole_step(weights, config) else None,
        open_session=open_session if native and computes_sessions(weights, config) else None,
        sampling=sampling_kernels(devices, kernels),
        ragged_decode=native,
        row_tile=library.row_tile,
        lazy_cache=native,
    )


def sampling_kernels(devices: Set[jax.Device], kernels: str = "auto") -> SamplingKernels | None:
    """Return the kernels that sample, or None where XLA compiles the definitions."""
    return SamplingKernels(choose_ids, log_probabilities) if _has_cpu_kernels(devices, kernels) else None


def limit_kernel_threads(threads: int | None) -> None:
    """Let the CPU kernels use at most that many threads in this process; None for one on each core."""
    library = kernel_library()
    if library is not None:
        library.limit_threads(threads)


def weight_format(devices: Set[jax.Device], quantization: str = "none", kernels: str = "auto") -> WeightFormat:
    """Return how weights are to be kept for the kernels of the devices that will hold them.

    Separate from `select_kernels`, because weights are loaded before the cache and its dtype are known.
    """
    return WeightFormat(quantization, packed=_has_cpu_kernels(devices, kernels))


def _accelerator_attention(devices: Set[jax.Device], config: MptConfig, dtype: jnp.dtype) -> CacheAttention:
    """Return the fastest attention over the cache of a GPU or TPU; XLA's where no kernel serves.

    That is over several devices, which XLA partitions, for a dtype that no kernel reads, and on a TPU where heads are
    not whole rows of 128 lanes: XLA would copy the cache for the kernel at each step.
    """
    platform = _single_platform(devices)
    if platform == "gpu" and dtype != jnp.int8:
        from model.kernels.pallas import gpu_attention  # only a GPU's process loads Triton

        return write_then(_over_pools(gpu_attention.paged_attention))
    if platform == "tpu" and config.head_dim % 128 == 0 and dtype in (jnp.float32, jnp.bfloat16):
        from model.kernels.pallas import tpu_attention  # only a TPU's process loads Mosaic

        return write_then(_over_pools(tpu_attention.paged_attention))
    return xla_attention


@cache  # the same function each time, as `write_then` needs it
def _over_pools(attend: Callable[..., Array]) -> Callable[..., Array]:
    """Adapt a kernel that reads keys and values alone to a `LayerCache`."""

    def attention(q: Array, layer: LayerCache, batch: StepBatch, config: MptConfig, **options: Any) -> Array:
        return attend(q, layer.keys, layer.values, batch, config, **options)

    return attention


def _has_cpu_kernels(devices: Set[jax.Device], kernels: str) -> bool:
    return kernels == "auto" and _single_platform(devices) == "cpu" and kernels_available()


def _single_platform(devices: Set[jax.Device]) -> str | None:
    return next(iter(devices)).platform if len(devices) == 1 else None
