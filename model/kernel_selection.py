"""Which kernels the devices of a model have.

`kernels` is 'auto' for the fastest that a platform has here, or 'xla' for what XLA makes of the readable definitions
(but for quantised products).
"""

from collections.abc import Callable, Set
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.checkpoint.quantize import WeightFormat
from model.config.mpt_config import MptConfig
from model.kernels.cpu import calls
from model.layers.paged_forward import CacheAttention, StepBatch, write_then, xla_attention
from model.params.kv_cache import LayerCache
from model.sampling.batch import SamplingKernels


def weight_format(devices: Set[jax.Device], quantization: str = "none", kernels: str = "auto") -> WeightFormat:
    """How weights should lie for the kernels of the devices that will hold them."""
    return WeightFormat(quantization, packed=_has_cpu_kernels(devices, kernels))


def attention_for(
    devices: Set[jax.Device], config: MptConfig, cache_dtype: DTypeLike, kernels: str = "auto"
) -> CacheAttention:
    """The fastest attention over the cache that these devices have.

    Over several devices it is XLA's, which partitions it, and where no kernel reads the dtype. On a TPU too, where
    heads are not whole rows of 128 lanes: XLA would copy the cache for the kernel at each step.
    """
    platform, dtype = _single_platform(devices), jnp.dtype(cache_dtype)
    if _has_cpu_kernels(devices, kernels) and dtype in (jnp.float32, jnp.bfloat16, jnp.int8):
        return calls.paged_attention
    if kernels == "auto" and platform == "gpu" and dtype != jnp.int8:
        from model.kernels.pallas import gpu_attention  # Triton is not for other platforms to load

        return write_then(_over_pools(gpu_attention.paged_attention))
    if kernels == "auto" and platform == "tpu" and config.head_dim % 128 == 0 and dtype in (jnp.float32, jnp.bfloat16):
        from model.kernels.pallas import tpu_attention  # Mosaic is not for other platforms to load

        return write_then(_over_pools(tpu_attention.paged_attention))
    return xla_attention


def sampling_kernels_for(devices: Set[jax.Device], kernels: str = "auto") -> SamplingKernels | None:
    """Kernels that sample, or None where XLA compiles the definition."""
    if not _has_cpu_kernels(devices, kernels):
        return None
    return SamplingKernels(calls.choose_ids, calls.log_probabilities)


@cache  # the same function each time, as `write_then` wants it
def _over_pools(attend: Callable[..., Array]) -> Callable[..., Array]:
    """A kernel that reads keys and values alone."""

    def attention(q: Array, layer: LayerCache, batch: StepBatch, config: MptConfig, **keys: Any) -> Array:
        return attend(q, layer.keys, layer.values, batch, config, **keys)

    return attention


def _has_cpu_kernels(devices: Set[jax.Device], kernels: str) -> bool:
    return kernels == "auto" and _single_platform(devices) == "cpu" and calls.available()


def _single_platform(devices: Set[jax.Device]) -> str | None:
    return next(iter(devices)).platform if len(devices) == 1 else None
