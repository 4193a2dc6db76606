"""Which kernels the devices of a model have."""

from collections.abc import Callable, Set

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.kernels.cpu import calls
from model.quantization import WeightFormat
from model.step import CacheAttention, xla_attention


def weight_format(devices: Set[jax.Device], quantization: str = "none") -> WeightFormat:
    """How weights should lie for the kernels of the devices that will hold them."""
    return WeightFormat(quantization, packed=_has_cpu_kernels(devices))


def attention_for(devices: Set[jax.Device], cache_dtype: DTypeLike) -> CacheAttention:
    """The fastest attention over the cache that these devices have."""
    if _has_cpu_kernels(devices) and jnp.dtype(cache_dtype) in (jnp.float32, jnp.bfloat16):
        return calls.paged_attention
    return xla_attention


def choose_ids_for(devices: Set[jax.Device]) -> Callable[..., Array] | None:
    """A kernel that samples (`kernels.cpu.calls.choose_ids`), or None."""
    return calls.choose_ids if _has_cpu_kernels(devices) else None


def _has_cpu_kernels(devices: Set[jax.Device]) -> bool:
    return {device.platform for device in devices} == {"cpu"} and len(devices) == 1 and calls.available()
