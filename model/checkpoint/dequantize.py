"""GPTQ and AWQ checkpoints: matrices of packed integers, dequantised while they are read.

Both store a matrix transposed, [K, N], with scales and zeros [groups, N], and several integers in each int32:

| | integers of an int32 | number |
|---|---|---|
| GPTQ | consecutive inputs; zeros: outputs | scale * (q - (zero + 1)), v2: scale * (q - zero) |
| AWQ | eight outputs, in the order 0 2 4 6 1 3 5 7 | scale * (q - zero) |
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.host_threads import in_threads
from model.checkpoint.stored_tensor import CheckpointError, Computed, StoredInt4, StoredTensor, read_whole

_FILES = (("config.json", "quantization_config"), ("quantize_config.json", None), ("quant_config.json", None))
_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where each output's integer is
_ZERO = 8  # the zero point of symmetric quantisation to 4 bits
_ROWS = 256  # outputs that one thread unpacks at a time; a multiple of the integers of a word
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class _Method:
    """How the integers are packed. offset: what is added to a zero."""

    name: str
    bits: int
    offset: int


def dequantized(folder: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return tensors in which each quantised matrix is one, under its usual name; others are returned as they are.

    Raises CheckpointError for a method, a number of bits or a shape that is not read.
    """
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not stems:
        return dict(tensors)
    method = _method(folder, stems[0])
    left = dict(tensors)
    for stem in stems:
        parts = {part: left.pop(f"{stem}.{part}") for part in _PARTS if f"{stem}.{part}" in left}
        left[f"{stem}.weight"] = _matrix(stem, parts, method)
    for name in [name for name in left if name.endswith(".act.scales")]:  # AWQ divides what the activation returns
        target = name.replace(".act.scales", ".down_proj.weight")
        if target in left:
            left[target] = _divided(left[target], left.pop(name))
    return left


def _method(folder: Path, stem: str) -> _Method:
    for file, key in _FILES:
        if (folder / file).is_file():
            data = json.loads((folder / file).read_text(encoding="utf-8"))
            found = data.get(key) if key is not None else data
            if isinstance(found, dict):
                return _read_method(folder / file, found)
    names = ", ".join(file for file, _ in _FILES)
    raise CheckpointError(
        f"{folder}: {stem[:200]}.qweight is quantised, and none of {names} says how; download them too"
    )


def _read_method(file: Path, data: Mapping[str, Any]) -> _Method:
    awq = "w_bit" in data or data.get("quant_method") == "awq"
    bits = data.get("w_bit" if "w_bit" in data else "bits")
    version = str(data.get("version", "gemm")).lower()
    layout = data.get("checkpoint_format", "gptq")
    kinds = (4,) if awq else (2, 4, 8)
    if (
        not isinstance(bits, int)
        or bits not in kinds
        or (awq and version != "gemm")
        or (not awq and layout not in ("gptq", "gptq_v2"))
    ):
        detail = version if awq else layout
        raise CheckpointError(
            f"{file}: weights of {str(bits)[:20]} bits in the layout {str(detail)[:40]!r} are not read; AWQ's gemm of 4"
            " bits is, and GPTQ's of 2, 4 and 8"
        )
    return _Method("awq" if awq else "gptq", bits, 0 if awq or layout == "gptq_v2" else 1)


def _matrix(stem: str, parts: Mapping[str, StoredTensor], method: _Method) -> StoredTensor:
    weight = parts["qweight"]
    missing = [part for part in ("qzeros", "scales") if part not in parts]
    if missing or any(parts[name].dtype != np.int32 for name in parts if name != "scales"):
        what = f"no {missing[0]}" if missing else "integers that are no int32"
        raise CheckpointError(f"{weight.path}: {stem[:200]!r} has {what}; the file is damaged or of another format")
    per_word = 32 // method.bits
    K, N = weight.shape if len(weight.shape) == 2 else (0, 0)
    K, N = (K * per_word, N) if method.name == "gptq" else (K, N * per_word)
    groups = parts["scales"].shape[0] if parts["scales"].shape else 0
    expected = {"scales": (groups, N), "qzeros": (groups, N // per_word), "g_idx": (K,)}
    wrong = [part for part, shape in expected.items() if part in parts and parts[part].shape != shape]
    if wrong or not groups or (K % groups and "g_idx" not in parts):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
        raise CheckpointError(f"{weight.path}: the parts of {stem[:200]!r} do not fit each other: {shapes}")

    def compute() -> NDArray[np.float32]:
        return _numbers({name: read_whole(tensor) for name, tensor in parts.items()}, method, K, N)

    def int4() -> StoredInt4 | str:
        return _int4({name: read_whole(tensor) for name, tensor in parts.items()}, method, K, N)

    name = f"{weight.name.removesuffix('.qweight')}.weight"
    return StoredTensor(
        weight.path,
        name,
        0,
        parts["scales"].dtype,
        (N, K),
        computed=Computed(tuple(parts.values()), compute, int4=int4),
    )


def _numbers(arrays: Mapping[str, NDArray[Any]], method: _Method, K: int, N: int) -> NDArray[np.float32]:
    """Return the matrix [N, K]."""
    scales = arrays["scales"].astype(np.float32).T
    zeros = _zeros(arrays, method, N).astype(np.float32).T
    group = arrays.get("g_idx", np.arange(K) // (K // scales.shape[1]))
    codes, numbers = _codes(arrays, method, K, N), np.empty((N, K), np.float32)

    def compute(rows: slice) -> None:
        np.subtract(codes[rows], zeros[rows][:, group], out=numbers[rows])
        numbers[rows] *= scales[rows][:, group]

    in_threads(compute, _runs(N, _ROWS // 8))
    return numbers


def _int4(arrays: Mapping[str, NDArray[Any]], method: _Method, K: int, N: int) -> StoredInt4 | str:
    """Return the integers and scales of the matrix, or why int4 weights cannot have them."""
    scales = arrays["scales"]
    run = K // len(scales)
    if method.bits != 4:
        return f"they have {method.bits} bits"
    if scales.dtype != np.float16:
        return f"their scales are {scales.dtype}, not float16"
    if "g_idx" in arrays and (K % len(scales) or not np.array_equal(arrays["g_idx"], np.arange(K) // run)):
        return "their groups are no runs of inputs (act-order)"
    if not np.all(_zeros(arrays, method, N) == _ZERO):
        return f"their zero points are not all {_ZERO} (asymmetric)"
    codes = _codes(arrays, method, K, N)
    codes -= np.uint8(_ZERO)  # wraps around, to the bits of negative numbers
    return StoredInt4(codes.view(np.int8), np.ascontiguousarray(scales.T), run)


def _zeros(arrays: Mapping[str, NDArray[Any]], method: _Method, N: int) -> NDArray[np.int32]:
    """Return the zero points [groups, N]."""
    return _unpack(arrays["qzeros"], method).astype(np.int32) + method.offset


def _codes(arrays: Mapping[str, NDArray[Any]], method: _Method, K: int, N: int) -> NDArray[np.uint8]:
    """Return the integers [N, K]."""
    words, codes = arrays["qweight"], np.empty((N, K), np.uint8)
    gptq = method.name == "gptq"

    def unpack(rows: slice) -> None:
        if gptq:
            codes[rows] = _unpack(words[:, rows].T, method)
        else:
            per_word = 32 // method.bits
            codes[rows] = _unpack(words[:, rows.start // per_word : rows.stop // per_word], method).T

    in_threads(unpack, _runs(N, _ROWS))
    return codes


def _runs(count: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


def _unpack(words: NDArray[np.int32], method: _Method) -> NDArray[np.uint8]:
    """Return the integers of words [n, w] -> [n, w * integers of a word]."""
    packed = np.ascontiguousarray(words, "<i4").view(np.uint8)
    per_byte = 8 // method.bits
    unpacked = np.empty((*packed.shape, per_byte), np.uint8)
    for place in range(per_byte):
        np.right_shift(packed, place * method.bits, out=unpacked[..., place])
    unpacked &= 2**method.bits - 1
    if method.name == "awq":
        unpacked = unpacked.reshape(-1, len(_AWQ_ORDER))[:, _AWQ_ORDER]
    return unpacked.reshape(len(words), -1)


def _divided(matrix: StoredTensor, scales: StoredTensor) -> StoredTensor:
    """Return the matrix with its inputs divided by scales: the activation's, moved into what reads it."""
    if scales.shape != matrix.shape[1:]:
        raise CheckpointError(f"{scales.path}: {scales.name!r} {list(scales.shape)} fits no inputs of {matrix.name!r}")

    def compute() -> NDArray[np.float32]:
        numbers = matrix.computed.numbers() if matrix.computed else read_whole(matrix).astype(np.float32)
        divided: NDArray[np.float32] = np.divide(numbers, read_whole(scales).astype(np.float32), dtype=np.float32)
        return divided

    parts = (*(matrix.computed.parts if matrix.computed else (matrix,)), scales)

    def int4() -> StoredInt4 | str:
        return "their inputs are divided by the activation's scales (AWQ)"

    kept = int4 if matrix.computed else None
    return replace(matrix, computed=Computed(parts, compute, int4=kept), strides=None, blocks=None)
