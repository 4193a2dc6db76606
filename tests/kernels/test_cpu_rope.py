"""RoPE by the native kernels against its definition, on every instruction set of this machine."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.kernels.cpu.rope import rope
from model.ops.rope import RopeConfig, rope_frequencies


def rotated(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return `ops.rope.apply_rope` in float64, of angles in float32."""
    angles = (positions[..., None].astype(np.float32) * frequencies).astype(np.float64)[..., None, :]
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.mark.parametrize(("shape", "farthest"), [((70, 3, 20), 400), ((2, 33, 4, 128), 1_000_000), ((1, 1, 2), 9)])
def test_heads_are_rotated_by_their_positions(library, shape, farthest):
    source = np.random.default_rng(0)
    x = source.standard_normal(shape).astype(np.float32)
    positions = source.integers(0, farthest, shape[-3])
    positions[0] = farthest
    frequencies = rope_frequencies(RopeConfig(), shape[-1], 1)
    y = np.asarray(rope(jnp.asarray(x), jnp.asarray(positions), frequencies))
    np.testing.assert_allclose(y, rotated(x, positions, frequencies), atol=2e-6)
    alone = rope(jnp.asarray(x[..., -1:, :1, :]), jnp.asarray(positions[-1:]), frequencies)
    np.testing.assert_array_equal(np.asarray(alone), y[..., -1:, :1, :])  # whatever is beside it
