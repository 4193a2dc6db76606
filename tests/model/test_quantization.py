"""Quantisation: how far a weight moves, which parameters are touched, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint.pack import pack_matrix, pack_weights
from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernel_library
from model.layers.forward import forward
from model.params.packed_matrix import PANEL, PackedMatrix, unpack
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, assemble_weights, leaf_paths, weight_specs

full_forward = jax.jit(forward, static_argnums=1)
unpacked = jax.jit(unpack)

# Around the sizes of a panel, a word and a group; few, since XLA compiles `unpack` for each.
SHAPES = st.tuples(st.sampled_from([1, 33, 64]), st.sampled_from([3, 64, 130]))
MAGNITUDES = st.sampled_from([1e-6, 0.02, 300.0])
TINY: dict[str, Any] = {
    "model_type": "mpt",
    "d_model": 48,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 70,
    "max_seq_len": 32,
    "no_bias": False,
    "attn_config": {"alibi": False},
}
TIED, UNTIED = MptConfig.from_dict(TINY), MptConfig.from_dict(TINY | {"tie_word_embeddings": False})


def random_matrix(shape: tuple[int, int], magnitude: float = 0.2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, magnitude, shape).astype(np.float32)


def random_weights(config: MptConfig, dtype: Any = jnp.float32) -> Weights:
    rng = np.random.default_rng(0)
    return assemble_weights(
        config, {s.path: jnp.asarray(rng.normal(0, 0.2, s.shape), dtype) for s in weight_specs(config)}
    )


def formats_in(weights: Weights) -> dict[str, str | None]:
    leaves = leaf_paths(weights, is_leaf=lambda node: isinstance(node, PackedMatrix))
    return {path: leaf.format if isinstance(leaf, PackedMatrix) else None for path, leaf in leaves.items()}


def group_scales(matrix: PackedMatrix) -> np.ndarray:
    """Return the scale of every weight of an int4 matrix, [N, K]."""
    N, K = matrix.shape
    relative = np.asarray(matrix.group_scale, np.float32).swapaxes(1, 2).reshape(-1, matrix.group_scale.shape[1])[:N]
    return np.repeat(relative * np.asarray(matrix.row_scale)[:, None], matrix.group, axis=1)[:, :K]


@given(SHAPES, MAGNITUDES)
@settings(max_examples=15)
def test_int8_moves_a_weight_by_half_a_step_at_most(shape: tuple[int, int], magnitude: float) -> None:
    weight = random_matrix(shape, magnitude)
    matrix = pack_matrix(weight, "int8", 64)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(matrix.row_scale, step[:, 0], rtol=1e-6)
    assert (np.abs(np.asarray(unpacked(matrix)) - weight) <= step * 0.50001).all()


@given(SHAPES, MAGNITUDES, st.sampled_from([4, 32, 64]))
@settings(max_examples=15)
def test_int4_moves_a_weight_by_half_a_step_unless_it_is_cut_off(
    shape: tuple[int, int], magnitude: float, group: int
) -> None:
    weight = random_matrix(shape, magnitude)
    matrix = pack_matrix(weight, "int4", group)
    step, after = group_scales(matrix), np.asarray(unpacked(matrix))
    inside = (weight / step > -8.5) & (weight / step < 7.5)
    assert (np.abs(after - weight)[inside] <= np.abs(step[inside]) * 0.501).all()
    assert (np.abs(after) <= np.abs(weight))[~inside].all()
    assert inside.mean() > 0.5


def test_int4_is_no_worse_than_the_whole_range_of_each_group() -> None:
    group, weight = 32, random_matrix((96, 256), seed=3)
    groups = weight.reshape(96, -1, group)
    scale = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2) / -8
    plain = np.clip(np.rint(groups / scale), -8, 7) * scale
    error = ((np.asarray(unpacked(pack_matrix(weight, "int4", group))) - weight) ** 2).reshape(groups.shape).sum(2)
    assert error.sum() < 0.95 * ((plain - groups) ** 2).sum()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_numbers_of_the_format_itself_are_kept(format: str) -> None:
    most = 127 if format == "int8" else 8
    codes = np.random.default_rng(0).integers(-most, most, (40, 64))
    codes[:, ::32] = -most
    weight = np.float32(0.25) * codes.astype(np.float32)
    weight[3] = 0
    np.testing.assert_allclose(unpacked(pack_matrix(weight, format, 32)), weight, rtol=1e-6)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(5 * PANEL + 3, 12), (1030, 520)])  # several parts, the last one not full
def test_a_row_does_not_depend_on_the_others(format: str, shape: tuple[int, int]) -> None:
    weight = random_matrix(shape)
    whole = np.asarray(unpacked(pack_matrix(weight, format, 64)))
    for row in (0, PANEL, shape[0] - 1):
        alone = unpacked(pack_matrix(weight[row : row + 1], format, 64))
        np.testing.assert_array_equal(np.asarray(alone)[0], whole[row])


@pytest.mark.skipif(kernel_library() is None, reason="compares with the native library, which was not built")
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(("shape", "group"), [((70, 130), 64), ((33, 40), 20), ((32, 3), 4), ((1030, 520), 128)])
def test_native_code_quantises_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, format: str, dtype: Any, shape: tuple[int, int], group: int
) -> None:
    weight = random_matrix(shape)
    weight *= np.random.default_rng(1).choice(np.float32([0, 1e-42, 1e-34, 1e-6, 1, 1, 1, 300]), shape)
    weight[2], weight[3, : shape[1] // 2], weight[4] = 0, 0, np.abs(weight[4])
    weight[5, 1:] *= np.float32(1e-7)  # groups whose relative scale is subnormal or zero
    with np.errstate(under="ignore"):
        weight = weight.astype(dtype)
    native = pack_matrix(weight, format, group)
    monkeypatch.setattr("model.checkpoint.pack.kernel_library", lambda: None)
    plain = pack_matrix(weight, format, group)
    np.testing.assert_array_equal(native.data, plain.data)
    np.testing.assert_array_equal(native.row_scale, plain.row_scale)
    if format == "int4":
        np.testing.assert_array_equal(native.group_scale.view(np.uint16), plain.group_scale.view(np.uint16))


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(format: str, value: float) -> None:
    weight = random_matrix((40, 16))
    weight[33, 5] = value
    with pytest.raises(ValueError, match="not finite"):
        pack_matrix(weight, format, 8)


@pytest.mark.parametrize("tiny_number", [0.0, 1e-42, 1e-37])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_numbers_next_to_zero_do_no_harm(format: str, tiny_number: float) -> None:
    after = np.asarray(unpacked(pack_matrix(np.full((3, 8), tiny_number, np.float32), format, 8)))
    assert np.abs(after).max() <= 2 * tiny_number


@pytest.mark.parametrize("config", [TIED, UNTIED])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_matrices_are_quantised_and_nothing_else_is(config: MptConfig, quantization: str) -> None:
    weights = random_weights(config)
    formats = formats_in(pack_weights(weights, config, WeightFormat(quantization, packed=True)))
    head = "wte" if config.tied_head else "lm_head"
    for path, format in formats.items():
        matrix = path.endswith(("wqkv/weight", "out_proj/weight", "up_proj/weight", "down_proj/weight"))
        assert format == ("int8" if path == head else quantization if matrix else None), path
    assert {"wpe", "norm_f/weight", "norm_f/bias", "blocks/0/attn/wqkv/bias"} <= formats.keys()
    assert ("wte" in formats and formats["wte"] is None) is not config.tied_head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_packing_alone_keeps_every_number(dtype: str) -> None:
    weights = random_weights(TIED, dtype)
    packed = pack_weights(weights, TIED, WeightFormat(packed=True))
    assert (formats_in(packed)["wte"] is None) is (dtype == "float16")  # which no kernel reads
    before = leaf_paths(weights)
    for path, leaf in leaf_paths(packed, is_leaf=lambda node: isinstance(node, PackedMatrix)).items():
        after = unpacked(leaf) if isinstance(leaf, PackedMatrix) else leaf
        np.testing.assert_array_equal(np.asarray(after, np.float32), np.asarray(before[path], np.float32), path)


def test_packed_weights_stay_as_they_are() -> None:
    packed = pack_weights(random_weights(TIED), TIED, WeightFormat("int4"))
    again = pack_weights(packed, TIED, WeightFormat("int8", packed=True))
    assert formats_in(again) == formats_in(packed)
    assert again.wte is packed.wte


@pytest.mark.parametrize(("quantization", "limit"), [("int8", 0.03), ("int4", 0.25)])
@pytest.mark.parametrize("config", [TIED, UNTIED])
def test_a_quantised_model_says_nearly_the_same(config: MptConfig, quantization: str, limit: float) -> None:
    weights = random_weights(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, config.vocab_size)
    expected = full_forward(weights, config, tokens)
    actual = full_forward(pack_weights(weights, config, WeightFormat(quantization, packed=True)), config, tokens)
    assert float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)) < limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "int3"}, "quantization must be one of none, int8, int4, got 'int3'"),
        ({"group": 0}, "group must be a multiple of 4, got 0"),
        ({"group": 30}, "group must be a multiple of 4, got 30"),
    ],
)
def test_wrong_formats_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightFormat(**arguments)
