"""Attention with linear biases (Press et al. 2022): the score of query i and key j is lowered by slope * (i - j)."""

import numpy as np


def alibi_slopes(n_heads: int, bias_max: float = 8.0) -> np.ndarray:
    """Return the slopes [n_heads] float32 of llm-foundry's `gen_slopes` (models/layers/attention.py).

    For a head count that is not a power of two, the slopes of the next power are taken, those at odd indices first.
    """
    rounded = 1 << (n_heads - 1).bit_length()
    exponents = np.arange(1, rounded + 1, dtype=np.float32) * np.float32(bias_max / rounded)
    slopes = (1.0 / np.exp2(exponents)).astype(np.float32)
    if rounded != n_heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:n_heads]
    return slopes
