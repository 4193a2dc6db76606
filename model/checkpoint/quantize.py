"""How a matrix becomes int8 or int4.

int8: one scale per output feature. int4: one scale per `group` inputs of a feature; of several candidate scales, the
one with the least squared error. `kernels/cpu/src/quantize.cc` computes the same bits, faster: therefore sums over a
group are added up in one fixed order.
"""

import numpy as np
from numpy.typing import NDArray

_SHRINKINGS = (1.0, 0.94, 0.88, 0.82, 0.76)  # of a group's range, tried for int4
_LANES = 16  # parts of a sum
_LEAST = 1e-30  # rows and groups below it become zero: their scales' inverses would overflow


def quantise_int8(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a matrix [n, K], which is overwritten -> numbers [n, K], scale [n]."""
    top = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    scale = np.where(top > _LEAST, top / np.float32(127), np.float32(1))
    weight *= (1 / scale)[:, None]
    return np.rint(weight, out=weight).astype(np.int8), scale


def quantise_int4(
    weight: NDArray[np.float32], group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float16]]:
    """Quantise a matrix [n, K] -> numbers [n, K], scale [n], scale of each group relative to it [n, G].

    A group's number of the largest magnitude becomes -8, the one value without a positive counterpart, so scales may be
    negative. Where the error is smaller, the scale shrinks and the largest numbers are clipped. The chosen scale then
    moves to the best one for its integers.
    """
    n, K = weight.shape
    if K % group:
        weight = np.pad(weight, ((0, 0), (0, -K % group)))
    weight = weight.reshape(n, -1, group)
    high, low = weight.max(axis=2), weight.min(axis=2)
    full = np.where(high > -low, high, low) / np.float32(-8) + np.float32(0)  # [n, G], never -0
    top = np.abs(full).max(axis=1)
    row_scale = np.where(top > _LEAST, top, np.float32(1))

    best, least = np.zeros(full.shape, np.float16), np.full(full.shape, np.inf, np.float32)
    numbers = np.empty_like(weight)
    for shrinking in _SHRINKINGS:
        relative = (np.float32(shrinking) * full / row_scale[:, None]).astype(np.float16)
        scale = _to_int4(weight, relative, row_scale, numbers)
        numbers *= scale[..., None]
        numbers -= weight
        error = _sum(numbers * numbers)
        best, least = np.where(error < least, relative, best), np.minimum(error, least)
    _to_int4(weight, best, row_scale, numbers)
    fitted = _sum(weight * numbers) / np.maximum(_sum(numbers * numbers), 1)
    best = (fitted / row_scale[:, None]).astype(np.float16)
    _to_int4(weight, best, row_scale, numbers)
    return numbers.reshape(n, -1)[:, :K].astype(np.int8), row_scale, best


def _sum(products: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums of [n, G, group] over the group: number i goes to part i % 16, halves of the parts are added."""
    n, G, group = products.shape
    lanes = np.zeros((n, G, _LANES), np.float32)
    for start in range(0, group, _LANES):
        run = products[..., start : start + _LANES]
        lanes[..., : run.shape[2]] += run
    width = _LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width:]
    return lanes[..., 0]


def _to_int4(
    weight: NDArray[np.float32], relative: NDArray[np.float16], row_scale: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Write the integers of weight [n, G, group] into `out`; return the scales [n, G] that they were computed with."""
    scale = relative.astype(np.float32) * row_scale[:, None]
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > _LEAST)
    np.multiply(weight, inverse[..., None], out=out)
    np.rint(out, out=out)
    np.clip(out, -8, 7, out=out)
    return scale
