"""Feed-forward activations, by the names that llm-foundry resolves (`torch.nn.functional`, and `quick_gelu`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Activation:
    """An activation and its keyword arguments, e.g. `Activation("leaky_relu", (("negative_slope", 0.2),))`."""

    name: str = "gelu"
    arguments: tuple[tuple[str, float | str], ...] = ()

    def __call__(self, x: Array) -> Array:
        """Return the activation of each element of x [...] float32."""
        return ACTIVATIONS[self.name][0](x, **{**ACTIVATIONS[self.name][1], **dict(self.arguments)})


def _gelu(x: Array, approximate: str) -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _softplus(x: Array, beta: float, threshold: float) -> Array:
    return jnp.where(x * beta > threshold, x, jnp.logaddexp(x * beta, 0.0) / beta)


GELU: Final = Activation()  # the exact one, through the error function

# Name -> function and default arguments, as in torch.nn.functional.
ACTIVATIONS: Final[Mapping[str, tuple[Callable[..., Array], Mapping[str, float | str]]]] = {
    "gelu": (_gelu, {"approximate": "none"}),
    "quick_gelu": (lambda x: x * jax.nn.sigmoid(1.702 * x), {}),
    "relu": (jax.nn.relu, {}),
    "relu6": (jax.nn.relu6, {}),
    "silu": (jax.nn.silu, {}),
    "mish": (jax.nn.mish, {}),
    "tanh": (jnp.tanh, {}),
    "sigmoid": (jax.nn.sigmoid, {}),
    "hardswish": (lambda x: x * jax.nn.relu6(x + 3.0) / 6.0, {}),
    "hardsigmoid": (lambda x: jax.nn.relu6(x + 3.0) / 6.0, {}),
    "softsign": (jax.nn.soft_sign, {}),
    "logsigmoid": (jax.nn.log_sigmoid, {}),
    "tanhshrink": (lambda x: x - jnp.tanh(x), {}),
    "selu": (jax.nn.selu, {}),
    "elu": (jax.nn.elu, {"alpha": 1.0}),
    "celu": (jax.nn.celu, {"alpha": 1.0}),
    "leaky_relu": (jax.nn.leaky_relu, {"negative_slope": 0.01}),
    "softplus": (_softplus, {"beta": 1.0, "threshold": 20.0}),
    "hardtanh": (lambda x, min_val, max_val: jnp.clip(x, min_val, max_val), {"min_val": -1.0, "max_val": 1.0}),
}
