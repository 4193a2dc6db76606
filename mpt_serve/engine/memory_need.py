"""What a Generator replica needs of a machine's memory, computed from config and headers, and what would need less."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from model.config.mpt_config import MptConfig
from model.params.kv_cache import kv_bytes_per_token
from model.params.packed_matrix import packed_arrays
from model.params.weight_format import QUANTIZATIONS, WeightFormat
from model.params.weights import WeightSpec, weight_specs
from mpt_serve.configuration.settings import Settings
from mpt_serve.engine.memory import HOST_SHARE

__all__ = ["MemoryNeed", "StoredDtypes", "memory_need"]

StoredDtypes = Mapping[str, np.dtype[Any]]
"""Dtypes of parameters in a file, by `WeightSpec.path`."""

_GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a replica on a CPU.

    weights: of all parameters. per_token: of keys and values. context: tokens of the longest request. fixed: whether
    settings ask for that context; otherwise the engine shortens it to what memory holds. smaller: bytes of the weights
    by the settings of `quantization` that need less, those with the fewest changes to the numbers first.
    """

    weights: int = 0
    per_token: int = 0
    context: int = 0
    fixed: bool = False
    smaller: Mapping[str, int] = field(default_factory=dict)

    @property
    def cache(self) -> int:
        """Return the bytes of the keys and values of one request of the longest length."""
        return self.per_token * self.context

    @property
    def least(self) -> int:
        """Return the bytes without which the replica cannot start."""
        return self.weights + (self.cache if self.fixed else 0)

    def text(self) -> str:
        """Return it as a sentence."""
        return (
            f"a Generator replica needs about {self.weights / _GIB:.2f} GiB for weights, and for the KV cache of"
            f" one request of {self.context} tokens {self.cache / _GIB:.2f} GiB"
        )

    def problem(self, memory: int) -> str | None:
        """Return why a machine with that many bytes cannot hold the replica, and what it could hold; None if it can."""
        if self.least <= memory:
            return None
        cache = f" and the KV cache of a request of {self.context} tokens" if self.fixed else ""
        has = f"this machine has {memory / _GIB:.1f} GiB"
        return f"a Generator replica needs at least {self.least / _GIB:.1f} GiB for weights{cache}, and {has}: " + (
            "; ".join(self._ways(memory)) or "no setting makes it fit; use another machine, or a smaller model"
        )

    def _ways(self, memory: int) -> Iterable[str]:
        cache = self.least - self.weights
        for quantization, weights in self.smaller.items():
            if weights + cache <= memory:
                yield f"'quantization: {quantization}' needs {(weights + cache) / _GIB:.1f} GiB"
        tokens = self._tokens(memory)
        if self.fixed and tokens:
            yield f"'max_model_len: {tokens}' fits"

    def notes(self, memory: int, available: int) -> list[str]:
        """Return what to know about a machine with that many bytes, of which some are available now."""
        notes = []
        tokens = self._tokens(memory)
        if not self.fixed and tokens < self.context:
            notes.append(
                f"this machine's {memory / _GIB:.1f} GiB do not hold the weights and a request of {self.context}"
                f" tokens: the context will be shortened to {tokens} tokens or fewer"
            )
        if self.least > available:
            notes.append(
                f"only {available / _GIB:.1f} GiB of this machine's {memory / _GIB:.1f} GiB are available now: end"
                f" other processes first, or the replica, which needs {self.least / _GIB:.1f} GiB, may be killed"
            )
        return notes

    def _tokens(self, memory: int) -> int:
        """Return the length of the longest request that the engine's share of the memory beside the weights holds."""
        return max(0, int((memory - self.weights) * HOST_SHARE) // max(self.per_token, 1))


def memory_need(config: MptConfig, settings: Settings, context: int, stored: StoredDtypes | None) -> MemoryNeed:
    """Return the need of a model. context: tokens of the longest request. stored: None where the file is elsewhere."""
    engine = settings.engine_config
    dtypes = {spec.path: _dtype(spec, config, settings, stored) for spec in weight_specs(config)}
    cache_dtype = dtypes["norm_f/weight"] if engine.cache_dtype == "auto" else engine.cache_dtype
    weights = {name: _weight_bytes(config, WeightFormat(name, packed=True), dtypes) for name in QUANTIZATIONS}
    own = weights[settings.quantization]
    return MemoryNeed(
        weights=own,
        per_token=kv_bytes_per_token(config, cache_dtype),
        context=context,
        fixed=engine.max_model_len is not None,
        smaller={name: size for name, size in weights.items() if size < own},
    )


def _dtype(spec: WeightSpec, config: MptConfig, settings: Settings, stored: StoredDtypes | None) -> np.dtype[Any]:
    """Return the dtype in which a parameter is loaded on a CPU, before it is quantised."""
    if settings.dtype != "auto":
        return jnp.dtype(settings.dtype)
    if stored is not None:
        return WeightFormat(packed=True).kept_dtype(stored[spec.path])
    known = config.torch_dtype in ("bfloat16", "float32")
    return jnp.dtype(config.torch_dtype if known else "float32")


def _weight_bytes(config: MptConfig, format: WeightFormat, dtypes: Mapping[str, np.dtype[Any]]) -> int:
    total = 0
    for spec in weight_specs(config):
        dtype = dtypes[spec.path]
        packed = format.of(spec.path, dtype, config.tied_head)
        arrays = [(spec.shape, dtype)] if packed is None else packed_arrays(spec.shape, packed, format.group).values()
        total += sum(math.prod(shape) * kind.itemsize for shape, kind in arrays)
    return total
