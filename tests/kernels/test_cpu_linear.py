"""The native linear layer against its definition, on every instruction set that this machine has."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from model.checkpoint.pack import pack_matrix
from model.kernels.cpu import linear as cpu
from model.kernels.cpu.library import kernel_library
from model.ops.activations import Activation
from model.ops.norm import Norm, normalise
from model.params.packed_matrix import round_inputs, unpack

FORMATS = ("float32", "bfloat16", "int8", "int4")
ACTIVATIONS = (
    None,
    Activation("gelu"),
    Activation("gelu", (("approximate", "tanh"),)),
    Activation("silu"),
    Activation("relu"),
    Activation("quick_gelu"),
    Activation("mish"),  # one that no kernel has
)
# Around the panels of 32 features, the panels of 12 or 8 rows, the groups of inputs, and the vectors.
rows = st.sampled_from([1, 2, 3, 8, 9, 11, 13, 30])
inputs = st.sampled_from([1, 7, 64, 150, 259])
features = st.sampled_from([1, 31, 70])


def few(test):
    """30 examples, the same for every instruction set and format, so that each shape compiles once.

    `derandomize` would not do: its examples depend on the parameters of the test.
    """
    return seed(0)(settings(max_examples=30, database=None)(test))


def fast(function, *static):
    return jax.jit(function, static_argnames=static)


linear = fast(cpu.linear, "activation")
norm_of = fast(cpu.norm)
normalised = fast(normalise)
rounded = fast(round_inputs)
unpacked = fast(unpack)
activated = fast(lambda x, activation: activation(x), "activation")


def make_matrix(source, N, K, format, group=8):
    weight = source.normal(0, 0.1, (N, K)).astype(np.float32)
    return pack_matrix(weight.astype(ml_dtypes.bfloat16) if format == "bfloat16" else weight, format, group)


def array(source, *shape, dtype=jnp.float32):
    return jnp.asarray(source.normal(0, 1, shape), dtype)


def close(actual, expected, K):
    """Compare sums of K products of numbers about 1 and 0.1, added in another order."""
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6 * np.sqrt(K) + 1e-6)


@few
@given(M=rows, K=inputs, N=features, format=st.sampled_from(FORMATS), seed=st.integers(0, 99))
def test_products_are_those_of_the_definition(library, M, K, N, format, seed):
    source = np.random.default_rng(seed)
    matrix, x = make_matrix(source, N, K, format), array(source, M, K)
    expected = np.asarray(rounded(x, matrix), np.float64) @ np.asarray(unpacked(matrix), np.float64).T
    close(linear(x, matrix), expected, K)


@few
@given(
    norm=st.sampled_from(["none", "layer", "layer without bias", "rms"]),
    bias=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    combine=st.sampled_from(["none", "times", "plus"]),
    format=st.sampled_from(FORMATS),
    vectors=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    seed=st.integers(0, 99),
)
def test_what_surrounds_the_product(library, norm, bias, activation, combine, format, vectors, seed):
    source = np.random.default_rng(seed)
    M, K, N = 5, 51, 70
    matrix, x = make_matrix(source, N, K, format), array(source, M, K)
    weight, offset = 1 + 0.1 * array(source, K, dtype=vectors), array(source, K, dtype=vectors)
    rule = None if norm == "none" else Norm(weight, offset if norm == "layer" else None, rms=norm == "rms")
    b = array(source, N, dtype=vectors) if bias else None
    other = array(source, M, N)
    y = linear(
        x, matrix, b, rule, activation, other if combine == "times" else None, other if combine == "plus" else None
    )
    prepared = x if rule is None else norm_of(x, rule)  # the same norm, so that rounding hides no difference
    expected = np.asarray(rounded(prepared, matrix)) @ np.asarray(unpacked(matrix)).T
    expected = expected if b is None else expected + np.asarray(b, np.float32)
    expected = expected if activation is None else activated(expected, activation)
    expected = {"none": expected, "times": expected * other, "plus": expected + other}[combine]
    close(y, expected, 10 * K)


@pytest.mark.parametrize("format", FORMATS)
@few
@given(M=rows, K=inputs, N=features, seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_batch(library, format, M, K, N, seed):
    source = np.random.default_rng(seed)
    matrix, x, norm = make_matrix(source, N, K, format), array(source, M, K), Norm(jnp.ones(K), jnp.zeros(K))
    together = linear(x, matrix, norm=norm, activation=Activation("gelu"))
    row = int(source.integers(M))
    alone = linear(x[row : row + 1], matrix, norm=norm, activation=Activation("gelu"))
    np.testing.assert_array_equal(together[row], alone[0])


@pytest.mark.parametrize("format", FORMATS)
def test_large_products_and_many_threads(library, format):
    """More rows than are prepared at once, long sums, more panels than threads."""
    source = np.random.default_rng(0)
    matrix, x = make_matrix(source, 200, 1000, format, group=64), array(source, 1100, 1000)
    expected = round_inputs(x, matrix) @ unpack(matrix).T
    quantised = format.startswith("int")  # an input on the border between two integers may become either
    np.testing.assert_allclose(cpu.linear(x, matrix), expected, rtol=1e-4, atol=1e-2 if quantised else 1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_long_sums_go_on_from_block_to_block_of_weights(library, format):
    """Several panels of rows and sums longer than a block: the bits of a row alone, which has its sums in one piece."""
    source = np.random.default_rng(0)
    matrix, x = make_matrix(source, 40, 4500, format, group=64), array(source, 13, 4500)
    y = cpu.linear(x, matrix)
    np.testing.assert_allclose(y, round_inputs(x, matrix) @ unpack(matrix).T, rtol=1e-3, atol=2e-2)
    for row in (0, 12):
        np.testing.assert_array_equal(y[row], cpu.linear(x[row : row + 1], matrix)[0])


@few
@given(M=rows, K=inputs, rms=st.booleans(), bias=st.booleans(), seed=st.integers(0, 99))
def test_norms_are_those_of_the_definition(library, M, K, rms, bias, seed):
    source = np.random.default_rng(seed)
    x, norm = 3 * array(source, M, K) + 1, Norm(array(source, K), array(source, K) if bias else None, rms)
    np.testing.assert_allclose(norm_of(x, norm), normalised(x, norm), rtol=1e-4, atol=2e-5)


def test_a_residual_is_added_in_place_where_it_is_donated(library):
    source = np.random.default_rng(0)
    matrix = make_matrix(source, 64, 64, "float32")
    x, residual = array(source, 4, 64), array(source, 4, 64)
    expected = residual + x @ unpack(matrix).T
    close(jax.jit(lambda x, r: cpu.linear(x, matrix, plus=r), donate_argnums=1)(x, residual), expected, 64)


def test_inputs_of_zeros_and_of_extremes(library):
    matrix = make_matrix(np.random.default_rng(0), 40, 300, "int8")
    x = jnp.zeros((3, 300)).at[1, 7].set(1e30).at[2].set(1e-30)
    y = cpu.linear(x, matrix)
    expected = round_inputs(x, matrix) @ unpack(matrix).T
    assert not np.asarray(y[0]).any()
    np.testing.assert_allclose(y[1:], expected[1:], rtol=1e-5)


def test_a_wrong_shape_is_refused_by_name(library):
    matrix = make_matrix(np.random.default_rng(0), 64, 64, "float32")
    with pytest.raises(jax.errors.JaxRuntimeError, match="bias has 63 elements, not 64"):
        cpu.linear(jnp.ones((2, 64)), matrix, jnp.ones(63)).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="the weight has 4096 elements, not 2048"):
        cpu.linear(jnp.ones((2, 32)), matrix.replace(shape=(64, 32))).block_until_ready()


def test_the_number_of_threads_changes_no_bit(library):
    kernels = kernel_library()
    source = np.random.default_rng(0)
    matrix, x = make_matrix(source, 300, 700, "bfloat16"), array(source, 90, 700)
    everywhere = cpu.linear(x, matrix)
    try:
        for threads in (1, 2, 3):
            kernels.limit_threads(threads)
            np.testing.assert_array_equal(cpu.linear(x, matrix), everywhere)
    finally:
        kernels.limit_threads(None)
