"""GPTQ and AWQ checkpoints, packed here integer by integer: their matrices are the numbers that were packed."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import TINY, checkpoint_arrays

from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError, read_whole
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PackedMatrix, unpack
from model.params.weight_format import WeightFormat
from model.params.weights import leaf_paths
from model.pretrained import mpt_from_pretrained

CONFIG = {**TINY, "d_model": 64}
UP = "transformer.blocks.0.ffn.up_proj"
DOWN = "transformer.blocks.0.ffn.down_proj"
RNG = np.random.default_rng(3)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in an int32, from its lowest bits


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers [..., n * 32 / bits] into int32 [..., n], the first in the lowest bits."""
    per_word = 32 // bits
    grouped = values.reshape(*values.shape[:-1], -1, per_word)
    words = np.zeros(grouped.shape[:-1], np.uint64)
    for i in range(per_word):
        words |= grouped[..., i].astype(np.uint64) << np.uint64(i * bits)
    return words.astype(np.uint32).view(np.int32)


def quantised(shape: tuple[int, int], bits: int, groups: int, index: np.ndarray | None = None) -> tuple[Any, ...]:
    """Return random codes [K, N], zeros and scales [groups, N], and the matrix [N, K] that they mean."""
    N, K = shape
    codes, zeros = RNG.integers(0, 2**bits, (K, N)), RNG.integers(1, 2**bits, (groups, N))
    scales = RNG.normal(0, 0.1, (groups, N)).astype(np.float16)
    group = np.arange(K) // (K // groups) if index is None else index
    matrix = (scales[group].astype(np.float32) * (codes - zeros[group])).T
    return codes, zeros, scales, matrix.astype(np.float32)


def write(folder: Path, tensors: dict[str, np.ndarray], quantization: Any, file: str = "config.json") -> Path:
    arrays = {name: array.astype(np.float16) for name, array in checkpoint_arrays(CONFIG).items()}
    for name in tensors:
        stem = name.rpartition(".")[0]
        arrays.pop(f"{stem}.weight", None)
    save_file({**arrays, **{n: np.ascontiguousarray(t) for n, t in tensors.items()}}, folder / "model.safetensors")
    config = {**CONFIG, "quantization_config": quantization} if file == "config.json" else CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    if file != "config.json":
        (folder / file).write_text(json.dumps(quantization))
    return folder


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq(tmp_path: Path, bits: int, layout: str, ordered: bool) -> None:
    index = None if ordered else RNG.permutation(np.arange(64) // 16).astype(np.int32)
    codes, zeros, scales, matrix = quantised((256, 64), bits, 4, index)
    tensors = {
        f"{UP}.qweight": pack(codes.T, bits).T,
        f"{UP}.qzeros": pack(zeros - (1 if layout == "gptq" else 0), bits),
        f"{UP}.scales": scales,
    }
    if index is not None:
        tensors[f"{UP}.g_idx"] = index
    found = {"quant_method": "gptq", "bits": bits, "group_size": 16, "checkpoint_format": layout}
    weights = load_weights(write(tmp_path, tensors, found), MptConfig.from_file(tmp_path), dtype="float32")
    assert np.array_equal(leaf_paths(weights)["blocks/0/ffn/up_proj/weight"], matrix)
    read = read_whole(find_tensors(tmp_path)[f"{UP}.weight"])
    assert read.dtype == np.float16
    assert np.array_equal(read, matrix.astype(np.float16))


@pytest.mark.parametrize("file", ["config.json", "quant_config.json"])
def test_awq(tmp_path: Path, file: str) -> None:
    up, down = quantised((256, 64), 4, 4), quantised((64, 256), 4, 2)
    tensors: dict[str, np.ndarray] = {}
    for name, (codes, zeros, scales, _) in {UP: up, DOWN: down}.items():
        for part, values in {"qweight": codes, "qzeros": zeros}.items():
            tensors[f"{name}.{part}"] = pack(
                values.reshape(len(values), -1, 8)[..., AWQ_ORDER].reshape(values.shape), 4
            )
        tensors[f"{name}.scales"] = scales
    divisors = RNG.uniform(0.5, 2, 256).astype(np.float16)
    tensors["transformer.blocks.0.ffn.act.scales"] = divisors
    found = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    if file != "config.json":
        found = {"w_bit": 4, "q_group_size": 16, "version": "GEMM", "zero_point": True}
    leaves = leaf_paths(
        load_weights(write(tmp_path, tensors, found, file), MptConfig.from_file(tmp_path), dtype="float32")
    )
    assert np.array_equal(leaves["blocks/0/ffn/up_proj/weight"], up[3])
    assert np.array_equal(leaves["blocks/0/ffn/down_proj/weight"], down[3] / divisors.astype(np.float32))
    load_weights(tmp_path, MptConfig.from_file(tmp_path), format=WeightFormat("int4", group=16))


def int4_of(folder: Path, path: str = "blocks/0/ffn/up_proj/weight", **options: Any) -> np.ndarray:
    weights, _ = mpt_from_pretrained(folder, format=WeightFormat("int4", **options))
    leaves = leaf_paths(weights, is_leaf=lambda node: isinstance(node, PackedMatrix))
    return np.asarray(unpack(leaves[path]))


@pytest.mark.parametrize("method", ["gptq", "gptq_v2", "awq"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_symmetric_integers_stay(tmp_path: Path, method: str, groups: int, caplog: pytest.LogCaptureFixture) -> None:
    codes, _, scales, _ = quantised((256, 64), 4, groups)
    zeros = np.full((groups, 256), 8)
    matrix = (scales.astype(np.float32)[np.arange(64) // (64 // groups)] * (codes - 8)).T
    tensors = {f"{UP}.scales": scales}
    if method == "awq":
        for part, values in {"qweight": codes, "qzeros": zeros}.items():
            ordered = values.reshape(len(values), -1, 8)[..., AWQ_ORDER].reshape(values.shape)
            tensors[f"{UP}.{part}"] = pack(ordered, 4)
        found = {"quant_method": "awq", "bits": 4, "version": "gemm"}
    else:
        tensors[f"{UP}.qweight"] = pack(codes.T, 4).T
        tensors[f"{UP}.qzeros"] = pack(zeros - (1 if method == "gptq" else 0), 4)
        tensors[f"{UP}.g_idx"] = (np.arange(64) // (64 // groups)).astype(np.int32)
        found = {"quant_method": "gptq", "bits": 4, "checkpoint_format": method}
    folder = write(tmp_path, tensors, found)
    with caplog.at_level("INFO"):
        assert np.array_equal(int4_of(folder, group=16), matrix)
    assert "1 matrices of the checkpoint's 4-bit integers are kept as int4" in caplog.text


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({}, {"group": 32}, "their groups of 16 inputs are no multiple of int4's 32"),
        ({f"{UP}.qzeros": np.zeros((4, 32), np.int32)}, {}, r"their zero points are not all 8 \(asymmetric\)"),
        ({f"{UP}.scales": np.ones((4, 256), np.float32)}, {}, "their scales are float32, not float16"),
        ({f"{UP}.g_idx": np.arange(64, dtype=np.int32) % 4}, {}, r"their groups are no runs of inputs \(act-order\)"),
        ({}, {"quantization": "none"}, "quantization is 'none'"),
        ({}, {"quantization": "int8"}, "quantization is 'int8'"),
    ],
)
def test_why_integers_do_not_stay_is_logged(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    symmetric = {**GOOD, f"{UP}.qzeros": np.full((4, 32), 0x77777777, np.int32)}
    folder = write(tmp_path, {**symmetric, **change}, GPTQ)
    with caplog.at_level("INFO"):
        mpt_from_pretrained(folder, format=WeightFormat(**{"quantization": "int4", "group": 16, **options}))
    assert re.search(f"1 matrices of the checkpoint's integers are dequantised: {reason}", caplog.text)
    assert "are kept" not in caplog.text


def test_integers_that_stay_are_cached(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, {**GOOD, f"{UP}.qzeros": np.full((4, 32), 0x77777777, np.int32)}, GPTQ)
    options: dict[str, Any] = {"format": WeightFormat("int4", group=16), "cache_dir": tmp_path / "cache"}
    first, _ = mpt_from_pretrained(folder, **options)
    with caplog.at_level("INFO"):
        again, _ = mpt_from_pretrained(folder, **options)
    assert "damaged" not in caplog.text
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
GOOD = {
    f"{UP}.qweight": np.zeros((8, 256), np.int32),
    f"{UP}.qzeros": np.zeros((4, 32), np.int32),
    f"{UP}.scales": np.ones((4, 256), np.float16),
}


@pytest.mark.parametrize(
    ("change", "quantization", "message"),
    [
        ({}, None, r"qweight is quantised, and none of config\.json"),
        ({}, {**GPTQ, "bits": 3}, "weights of 3 bits in the layout 'gptq' are not read"),
        ({}, {**GPTQ, "checkpoint_format": "marlin"}, "in the layout 'marlin'"),
        ({}, {"quant_method": "awq", "bits": 4, "version": "gemv"}, "in the layout 'gemv'"),
        ({f"{UP}.scales": None}, GPTQ, "has no scales"),
        ({f"{UP}.qzeros": np.zeros((4, 32), np.int16)}, GPTQ, "integers that are no int32"),
        ({f"{UP}.qzeros": np.zeros((4, 31), np.int32)}, GPTQ, r"do not fit each other: qweight \[8, 256\]"),
        ({f"{UP}.qweight": np.zeros(8, np.int32)}, GPTQ, "do not fit each other"),
        (
            {f"{UP}.scales": np.ones((3, 256), np.float16), f"{UP}.qzeros": np.zeros((3, 32), np.int32)},
            GPTQ,
            "do not fit each other",
        ),
        ({"transformer.blocks.0.ffn.act.scales": np.ones(5, np.float16)}, GPTQ, "fits no inputs of"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, change: dict[str, Any], quantization: Any, message: str) -> None:
    tensors = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        find_tensors(write(tmp_path, tensors, quantization))


def test_they_may_be_quantised_again_and_cached(tmp_path: Path) -> None:
    folder, cache = write(tmp_path, GOOD, GPTQ), tmp_path / "cache"
    first, _ = mpt_from_pretrained(folder, format=WeightFormat("int8"), cache_dir=cache)
    again, _ = mpt_from_pretrained(folder, format=WeightFormat("int8"), cache_dir=cache)
    data = [np.asarray(w.blocks[0].ffn.up_proj.weight.data) for w in (first, again)]  # type: ignore[union-attr]
    assert np.array_equal(*data)
