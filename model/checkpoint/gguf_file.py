"""Finds the tensors of a GGUF file, or of the parts of a split one, by llm-foundry's names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import Blocks, CheckpointError, StoredTensor
from model.gguf.header import GgufError, GgufHeader, GgufTensor, read_header
from model.gguf.types import TensorType

_PLAIN = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
        "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    }.items()
}  # fmt: skip
NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.norm_f",
    "output": "lm_head",
}
BLOCK_NAMES = {
    "attn_norm": "norm_1",
    "attn_qkv": "attn.Wqkv",
    "attn_q_norm": "attn.q_ln",
    "attn_k_norm": "attn.k_ln",
    "attn_output": "attn.out_proj",
    "ffn_norm": "norm_2",
    "ffn_up": "ffn.up_proj",
    "ffn_gate": "ffn.gate_proj",
    "ffn_down": "ffn.down_proj",
}
_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
_THEIRS_IN_BLOCKS = {ours: theirs for theirs, ours in BLOCK_NAMES.items()}
_BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
_OTHER = re.compile(r"(\w+)\.(weight|bias)")
_PART = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


def read_gguf(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file by llm-foundry's names; reads headers only.

    Quantised tensors are float32, of the numbers that gguf-py gives. Raises CheckpointError for a damaged file, a
    missing part of a split one, and a type that gguf-py does not dequantise.
    """
    tensors: dict[str, StoredTensor] = {}
    for part in _parts(path):
        for name, tensor in _header(part).tensors.items():
            ours = family_name(name)
            if ours in tensors:
                raise CheckpointError(f"{name!r} is in both {tensors[ours].path} and {part}; keep one of them")
            tensors[ours] = _stored(part, tensor)
    return tensors


def family_name(name: str) -> str:
    """Return llm-foundry's name of a tensor; unknown names are returned unchanged."""
    if (block := _BLOCK.fullmatch(name)) and block[2] in BLOCK_NAMES:
        return f"transformer.blocks.{int(block[1])}.{BLOCK_NAMES[block[2]]}.{block[3]}"
    if (other := _OTHER.fullmatch(name)) and other[1] in NAMES:
        return f"{NAMES[other[1]]}.{other[2]}"
    return name


def gguf_name(name: str) -> str:
    """Return the name in a GGUF file of a parameter by llm-foundry's name."""
    stem, _, suffix = name.rpartition(".")
    if stem in _THEIRS:
        return f"{_THEIRS[stem]}.{suffix}"
    number, _, part = stem.removeprefix("transformer.blocks.").partition(".")
    return f"blk.{number}.{_THEIRS_IN_BLOCKS[part]}.{suffix}"


def _header(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except GgufError as error:
        raise CheckpointError(str(error)) from None


def _parts(path: Path) -> list[Path]:
    count = _header(path).metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [path]
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(
            f"{path}: is a part of a split file of {count}; name the first part, which ends in"
            f" -00001-of-{count:05d}.gguf"
        )
    parts = [path.with_name(f"{match[1]}-{i:05d}-of-{match[2]}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} of its {count} parts are missing: {', '.join(missing[:10])}")
    return parts


def _stored(path: Path, tensor: GgufTensor) -> StoredTensor:
    dtype = _PLAIN.get(tensor.type.name)
    blocks = None
    if dtype is None:
        dtype = np.dtype(np.float32)
        blocks = Blocks(tensor.type.elements, tensor.type.nbytes, _decoder(path, tensor))
    return StoredTensor(path, tensor.name, tensor.offset, dtype, tensor.shape, blocks=blocks)


def _decoder(path: Path, tensor: GgufTensor) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    kind: TensorType = tensor.type
    if kind.name in ("Q8_1", "Q8_K", "Q1_0"):  # Q8_1 and Q8_K hold intermediate results, not weights
        raise CheckpointError(
            f"{path}: {tensor.name!r} has the type {kind.name}, which gguf-py does not dequantise; use another"
            " quantisation of this model"
        )

    def decode(data: NDArray[np.uint8]) -> NDArray[np.float32]:
        from gguf import GGMLQuantizationType, quants  # a second to import, and for quantised files only

        # One row of all blocks: gguf-py works through groups of rows.
        numbers: NDArray[Any] = quants.dequantize(data.reshape(1, -1), GGMLQuantizationType(kind.number))
        return numbers.reshape(-1)

    return decode
