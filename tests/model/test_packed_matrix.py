"""PackedMatrix: packing loses nothing, natively and without the native library, whatever the shape."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint.pack import pack_codes, pack_floats, pack_matrix
from model.kernels.cpu.library import kernel_library
from model.params.packed_matrix import PANEL, PackedMatrix, packed_arrays, take_rows, unpack

FLOATS = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)]
FORMATS = ["float32", "bfloat16", "int8", "int4"]
unpacked = jax.jit(unpack)

# Around the sizes of a panel, a word and a group; few, since XLA compiles `unpack` for each.
SHAPES = st.tuples(st.sampled_from([1, 31, 33, 64]), st.sampled_from([1, 3, 8, 41]))


def random_matrix(shape: tuple[int, int], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(shape[0]).normal(0, 0.2, shape).astype(dtype)


def random_codes(shape: tuple[int, int], format: str) -> np.ndarray:
    low, high = (-127, 127) if format == "int8" else (-8, 7)
    return np.random.default_rng(shape[1]).integers(low, high, shape, np.int8, endpoint=True)


@given(SHAPES, st.sampled_from(FLOATS))
@settings(max_examples=15)
def test_floats_come_back_to_the_last_bit(shape: tuple[int, int], dtype: Any) -> None:
    weight = random_matrix(shape, dtype)
    packed = pack_matrix(weight, dtype.name, 32)
    np.testing.assert_array_equal(unpacked(packed), weight.astype(np.float32))
    assert packed.dtype == dtype


@given(SHAPES, st.sampled_from(["int8", "int4"]), st.sampled_from([4, 8, 64]))
@settings(max_examples=15)
def test_quantised_numbers_come_back_with_their_scales(shape: tuple[int, int], format: str, group: int) -> None:
    codes = random_codes(shape, format)
    kinds = packed_arrays(shape, format, group)
    rng = np.random.default_rng(0)
    row_scale = rng.normal(1, 0.2, shape[0]).astype(np.float32)
    per_group = rng.normal(1, 0.2, (kinds["data"][0][0] * PANEL, -(-shape[1] // group))).astype(np.float16)
    panels = per_group.reshape(-1, PANEL, per_group.shape[1]).swapaxes(1, 2) if format == "int4" else None
    packed = PackedMatrix(pack_codes(codes, format), row_scale, panels, shape, format, group)
    expected = codes * row_scale[:, None]
    if format == "int4":
        expected = codes * (
            row_scale[:, None] * np.repeat(per_group.astype(np.float32), group, 1)[: len(codes), : shape[1]]
        )
    np.testing.assert_allclose(unpacked(packed), expected, rtol=1e-6)


@given(SHAPES, st.sampled_from(FORMATS))
@settings(max_examples=15)
def test_rows_taken_are_rows_of_the_whole(shape: tuple[int, int], format: str) -> None:
    packed = pack_matrix(random_matrix(shape).astype(ml_dtypes.bfloat16), format, 8)
    ids = np.random.default_rng(1).integers(0, shape[0], (3, 2))
    np.testing.assert_array_equal(take_rows(packed, jnp.asarray(ids)), np.asarray(unpacked(packed))[ids])


@pytest.mark.skipif(kernel_library() is None, reason="compares with the native library, which was not built")
@pytest.mark.parametrize("shape", [(1, 1), (31, 7), (64, 64), (65, 66), (5000, 33)])
@pytest.mark.parametrize("format", FORMATS)
def test_the_layout_is_the_same_without_the_native_library(shape: tuple[int, int], format: str) -> None:
    quantised = format.startswith("int")
    matrix = random_codes(shape, format) if quantised else random_matrix(shape, format)

    def pack() -> np.ndarray:
        return pack_codes(matrix, format) if quantised else pack_floats(matrix)

    native = pack()
    with mock.patch("model.checkpoint.pack.kernel_library", return_value=None):
        np.testing.assert_array_equal(pack(), native)


def test_places_without_a_feature_or_an_input_hold_zero() -> None:
    floats = pack_floats(np.ones((33, 3), ml_dtypes.bfloat16))  # [2, 2, 32, 2]: one feature and one input too many
    assert floats.astype(np.float32).sum() == 33 * 3
    int8 = pack_codes(np.ones((33, 3), np.int8), "int8")
    assert (int8.astype(int) - 128).sum() == 33 * 3
    int4 = pack_codes(np.ones((33, 3), np.int8), "int4")
    assert ((int4 & 15).astype(int) - 8).sum() + ((int4 >> 4).astype(int) - 8).sum() == 33 * 3
