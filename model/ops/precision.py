"""The precision of matrix products: exact where JAX's default would round float32 operands."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def product_precision(operands: DTypeLike) -> jax.lax.Precision | None:
    """Return the precision that multiplies float32 operands as float32.

    JAX's own default would round them on accelerators: to TF32 on a GPU, to bfloat16 on a TPU. None, the default,
    for other operands, and where `jax.default_matmul_precision` is set.
    """
    configured = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    exact = jnp.dtype(operands) == jnp.float32 and configured is None
    return jax.lax.Precision.HIGHEST if exact else None
