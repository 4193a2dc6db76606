"""Rotary position embedding as llm-foundry defines it: `dail` (original) and `hf` with its scalings.

Sources: Su et al. 2021 (RoFormer); llm-foundry 0.22 `models/mpt/modeling_mpt.py:gen_rotary_embedding`; the scalings
`linear`, `dynamic` and `llama3` are those of transformers' `modeling_rope_utils.py`.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True)
class RopeConfig:
    """The rotary embedding of a model; `scaling` is none, linear, dynamic or llama3.

    `dynamic` stretches sequences longer than `train_length` (the config's `max_seq_len`); the last three fields belong
    to `llama3`.
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    train_length: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


def rope_frequencies(rope: RopeConfig, head_dim: int, length: int) -> np.ndarray:
    """Return the angular frequencies [head_dim / 2] float32 for a sequence of `length` tokens.

    Only `dynamic` depends on `length`, and only beyond `train_length`.
    """
    theta = rope.theta
    if rope.scaling == "dynamic" and length > rope.train_length:
        stretch = rope.factor * length / rope.train_length - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    if rope.scaling == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.scaling == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def cached_frequencies(rope: RopeConfig | None, head_dim: int) -> np.ndarray | None:
    """Return the frequencies for sequences in a cache, which are no longer than `train_length`; None without RoPE."""
    return None if rope is None else rope_frequencies(rope, head_dim, rope.train_length)


def _llama3(frequencies: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Divide the frequencies of long wavelengths by `factor`, keep those of short ones, interpolate between."""
    wavelengths = 2 * math.pi / frequencies
    longest = rope.original_length / rope.low_freq_factor
    shortest = rope.original_length / rope.high_freq_factor
    blend = (rope.original_length / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = np.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    is_between = (wavelengths <= longest) & (wavelengths >= shortest)
    return np.where(is_between, between, scaled).astype(np.float32)


def apply_rope(x: Array, positions: Array, frequencies: np.ndarray) -> Array:
    """Rotate x [..., T, H, hd] by positions [..., T], pairing (x_i, x_{i + hd/2}); computed in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [..., T, hd/2]
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]  # [..., T, 1, hd/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jax.lax.convert_element_type(rotated, x.dtype)
