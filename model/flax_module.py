"""The Flax face of the model: `FlaxMptForCausalLM` over the same leaves that the pure functions read."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.layers.forward import forward
from model.params.weights import Weights, init_weights

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass


@dataclass
class CausalLMOutput:
    """logits [B, T, V] float32."""

    logits: Array


class MptModule(nn.Module):  # type: ignore[misc]  # flax has no type information
    """A linen module with one parameter, `weights`, whose value is the whole `Weights` record."""

    config: MptConfig
    param_dtype: DTypeLike = jnp.float32

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, input_ids: Array) -> CausalLMOutput:
        """input_ids [B, T] int32."""
        weights = self.param("weights", lambda key: init_weights(self.config, key, self.param_dtype))
        return CausalLMOutput(forward(weights, self.config, input_ids))


class FlaxMptForCausalLM:
    """An MPT that is called with token ids and parameters: `model(input_ids, params=params).logits`.

    Args:
        config: what the model computes.
        dtype: type of the products' operands; parameters of another type are cast to it. None keeps theirs. Products
            accumulate in float32, and the residual stream, norms and softmax are float32 whatever this says.
        param_dtype: type of parameters made here, by `init_weights` or `_do_init`.
        precision: precision of float32 products on accelerators, as `jax.default_matmul_precision` names it; None is
            exact float32.
        seed: of the parameters made with `_do_init`.
        _do_init: True makes random parameters at once and keeps them in `params`.
        input_shape: (B, T) of the trace that makes parameters.
    """

    def __init__(
        self,
        config: MptConfig,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        seed: int = 0,
        _do_init: bool = False,
        input_shape: tuple[int, int] = (1, 1024),
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.module = MptModule(config, param_dtype)
        self._precision = str(precision).removeprefix("Precision.").lower() if precision is not None else None
        self._apply = jax.jit(self._forward)
        self.params = self.init_weights(jax.random.key(seed), input_shape) if _do_init else None

    def init_weights(self, key: Array, input_shape: tuple[int, int] = (1, 1024)) -> Weights:
        """Random parameters of `param_dtype`."""
        T = min(input_shape[1], self.config.max_seq_len)
        variables = jax.jit(self.module.init)(key, jnp.zeros((input_shape[0], T), jnp.int32))
        weights: Weights = variables["params"]["weights"]
        return weights

    def __call__(self, input_ids: Any, params: Weights | None = None) -> CausalLMOutput:
        """input_ids [B, T] integers -> logits [B, T, V] float32.

        Raises ValueError for ids that are no integers of two dimensions, and without parameters.
        """
        ids = jnp.asarray(input_ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"input_ids is {ids.dtype} of shape {ids.shape}; integers of shape [batch, length] are meant"
            )
        params = self.params if params is None else params
        if params is None:
            raise ValueError("no parameters: pass params=..., or construct the model with _do_init=True")
        with jax.default_matmul_precision(self._precision):
            output: CausalLMOutput = self._apply(params, ids.astype(jnp.int32))
        return output

    def _forward(self, params: Weights, input_ids: Array) -> CausalLMOutput:
        if self.dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)
        output: CausalLMOutput = self.module.apply({"params": {"weights": params}}, input_ids)
        return output
