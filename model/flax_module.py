"""The model as Flax classes: `FlaxMptForCausalLM` over the same arrays that the pure functions read."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.layers.forward import forward, forward_embeddings
from model.ops.pytree import dataclass
from model.params.weights import Weights, init_weights


@dataclass
class CausalLMOutput:
    """The output of the model: logits [B, T, V] float32."""

    logits: Array


class MptModule(nn.Module):  # type: ignore[misc]  # flax has no type information
    """A linen module with one parameter, `weights`, whose value is the whole `Weights` record."""

    config: MptConfig
    param_dtype: DTypeLike = jnp.float32

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, inputs: Array) -> CausalLMOutput:
        """Return the logits of token ids [B, T] int32, or of embeddings [B, T, d]."""
        weights = self.param("weights", lambda key: init_weights(self.config, key, self.param_dtype))
        run = forward if inputs.ndim == 2 else forward_embeddings
        return CausalLMOutput(run(weights, self.config, inputs))


class FlaxMptForCausalLM:
    """An MPT to call with token ids and parameters: `model(input_ids, params=params).logits`.

    Args:
        config: what the model computes.
        dtype: type of the products' operands; parameters of another type are cast to it. None keeps theirs. Products
            accumulate in float32, and the residual stream, norms and softmax are float32 regardless.
        param_dtype: type of the parameters that `init_weights` or `_do_init` makes.
        precision: precision of float32 products on accelerators, as `jax.default_matmul_precision` names it; None is
            exact float32.
        seed: seed of the parameters that `_do_init` makes.
        _do_init: whether to make random parameters at once and keep them in `params`.
        input_shape: (B, T) of the trace that makes the parameters.
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
        """Return random parameters of `param_dtype`."""
        T = min(input_shape[1], self.config.max_seq_len)
        variables = jax.jit(self.module.init)(key, jnp.zeros((input_shape[0], T), jnp.int32))
        weights: Weights = variables["params"]["weights"]
        return weights

    def __call__(
        self, input_ids: Any = None, params: Weights | None = None, inputs_embeds: Any = None
    ) -> CausalLMOutput:
        """Return the logits [B, T, V] float32 of input_ids [B, T], integers, or of inputs_embeds [B, T, d].

        inputs_embeds: in place of the rows of `params.wte` that ids would select, such as those of an image.
        Raises ValueError unless exactly one is given and has its shape, and without parameters.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, and not both")
        inputs = self._ids(input_ids) if inputs_embeds is None else self._embeddings(inputs_embeds)
        params = self.params if params is None else params
        if params is None:
            raise ValueError("no parameters: pass params=..., or construct the model with _do_init=True")
        with jax.default_matmul_precision(self._precision):
            output: CausalLMOutput = self._apply(params, inputs)
        return output

    def _ids(self, input_ids: Any) -> Array:
        ids = jnp.asarray(input_ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"input_ids is {ids.dtype} of shape {ids.shape}; it must be integers of shape [batch, length]"
            )
        return ids.astype(jnp.int32)

    def _embeddings(self, inputs_embeds: Any) -> Array:
        embeds = jnp.asarray(inputs_embeds)
        width = self.config.d_model
        if embeds.ndim != 3 or embeds.shape[2] != width or not jnp.issubdtype(embeds.dtype, jnp.floating):
            raise ValueError(
                f"inputs_embeds is {embeds.dtype} of shape {embeds.shape}; it must be floating-point numbers of shape"
                f" [batch, length, {width}]"
            )
        return embeds

    def _forward(self, params: Weights, inputs: Array) -> CausalLMOutput:
        if self.dtype is not None:
            params = jax.tree.map(lambda leaf: leaf.astype(self.dtype), params)
        output: CausalLMOutput = self.module.apply({"params": {"weights": params}}, inputs)
        return output
