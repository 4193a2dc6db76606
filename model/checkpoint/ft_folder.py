"""Finds the tensors of a FasterTransformer folder, as llm-foundry's converter writes MPT: a raw file for each.

Matrices are stored transposed, [in, out], and cut over as many devices as config.ini says: along their outputs, but for
`attention.dense` and `mlp.dense_4h_to_h`, along their inputs. Wqkv is [d, 3, d], cut along its last axis.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import CheckpointError, Computed, StoredTensor, read_whole
from model.config.ft_config import read_ft_config
from model.config.lfs_pointer import lfs_pointer_problem
from model.config.strict_reader import ConfigError

_BLOCK = {
    "norm_1": "input_layernorm",
    "attn.Wqkv": "attention.query_key_value",
    "attn.out_proj": "attention.dense",
    "norm_2": "post_attention_layernorm",
    "ffn.up_proj": "mlp.dense_h_to_4h",
    "ffn.down_proj": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class _Layout:
    """How a tensor is stored. shape: [in, (3,) out]. axis: what is cut. flat: [in, out], or [out] of a bias."""

    shape: tuple[int, ...]
    axis: int
    flat: tuple[int, ...]


def read_fastertransformer(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the folder that holds `file`, a config.ini, by llm-foundry's names; reads sizes only.

    Raises CheckpointError where a file is missing or has another size.
    """
    folder = file.parent
    try:
        found = read_ft_config(folder)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    data, dtype = found.data, np.dtype(found.data["torch_dtype"])
    d, ffn, devices = data["d_model"], data["ffn_config"]["ffn_hidden_size"], found.devices
    if d % devices or ffn % devices:
        raise CheckpointError(f"{file}: tensor_para_size is {devices}, which does not divide {d} and {ffn} features")

    def plain(stem: str, *shape: int) -> StoredTensor:
        return _raw(folder / f"{stem}.bin", dtype, shape)

    def cut(stem: str, layout: _Layout) -> StoredTensor:
        return _joined(folder, stem, dtype, layout, devices)

    tensors = {"transformer.wte.weight": plain("model.wte", data["vocab_size"], d)}
    if data["learned_pos_emb"]:
        tensors["transformer.wpe.weight"] = plain("model.wpe", data["max_seq_len"], d)
    if not data["tie_word_embeddings"]:
        tensors["lm_head.weight"] = plain("model.lm_head.weight", data["vocab_size"], d)
    weights = {
        "attn.Wqkv": _Layout((d, 3, d), 2, (d, 3 * d)),
        "attn.out_proj": _Layout((d, d), 0, (d, d)),
        "ffn.up_proj": _Layout((d, ffn), 1, (d, ffn)),
        "ffn.down_proj": _Layout((ffn, d), 0, (ffn, d)),
    }
    biases = {"attn.Wqkv": _Layout((3, d), 1, (3 * d,)), "ffn.up_proj": _Layout((ffn,), 0, (ffn,))}
    for i in range(data["n_layers"]):
        for ours, theirs in _BLOCK.items():
            stem, name = f"model.layers.{i}.{theirs}", f"transformer.blocks.{i}.{ours}"
            layout = weights.get(ours)
            weight = plain(f"{stem}.weight", d) if layout is None else cut(f"{stem}.weight", layout)
            bias = biases.get(ours)
            tensors[f"{name}.weight"] = weight
            tensors[f"{name}.bias"] = plain(f"{stem}.bias", d) if bias is None else cut(f"{stem}.bias", bias)
    for kind in ("weight", "bias"):
        tensors[f"transformer.norm_f.{kind}"] = plain(f"model.final_layernorm.{kind}", d)
    return tensors


def _raw(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> StoredTensor:
    expected = math.prod(shape) * dtype.itemsize
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: {path.name} is missing; convert the original checkpoint again")
    size = path.stat().st_size
    if size != expected:
        pointer = lfs_pointer_problem(path)
        if pointer is not None:
            raise CheckpointError(pointer)
        raise CheckpointError(
            f"{path}: has {size} bytes; a {dtype} tensor {list(shape)} has {expected}. It is truncated, or config.ini"
            " is of another model"
        )
    return StoredTensor(path, path.stem, 0, dtype, shape)


def _joined(folder: Path, stem: str, dtype: np.dtype[Any], layout: _Layout, devices: int) -> StoredTensor:
    shape = tuple(n // devices if i == layout.axis else n for i, n in enumerate(layout.shape))
    parts = tuple(_raw(folder / f"{stem}.{device}.bin", dtype, shape) for device in range(devices))

    def numbers() -> NDArray[np.float32]:
        whole = np.concatenate([read_whole(part) for part in parts], axis=layout.axis).reshape(layout.flat)
        return np.ascontiguousarray(whole.T, np.float32)

    return StoredTensor(parts[0].path, stem, 0, dtype, layout.flat[::-1], computed=Computed(parts, numbers))
