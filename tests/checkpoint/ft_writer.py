"""Writes a model as llm-foundry's converter to FasterTransformer does."""

import configparser
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import TINY, checkpoint_arrays

BLOCK = {
    "norm_1": "input_layernorm", "attn.Wqkv": "attention.query_key_value", "attn.out_proj": "attention.dense",
    "norm_2": "post_attention_layernorm", "ffn.up_proj": "mlp.dense_h_to_4h", "ffn.down_proj": "mlp.dense_4h_to_h",
}  # fmt: skip
BIASED: dict[str, Any] = {**TINY, "no_bias": False}


def write_fastertransformer(
    folder: Path, devices: int = 1, kind: str = "fp32", **changes: str
) -> dict[str, np.ndarray]:
    """Write a model with biases; return its arrays by llm-foundry's names."""
    dtype = np.float32 if kind == "fp32" else np.float16
    arrays = {name: array.astype(dtype) for name, array in checkpoint_arrays(BIASED).items()}
    d = TINY["d_model"]
    for name, array in arrays.items():
        module, _, leaf = name.removeprefix("transformer.").rpartition(".")
        if module in ("wte", "norm_f"):
            stem = "model.wte" if module == "wte" else f"model.final_layernorm.{leaf}"
            array.tofile(folder / f"{stem}.bin")
            continue
        _, number, part = module.split(".", 2)
        stem = f"model.layers.{number}.{BLOCK[part]}.{leaf}"
        axis: int | None = {"attn.Wqkv": -1, "ffn.up_proj": -1}.get(part)
        if leaf == "weight" and part in ("attn.out_proj", "ffn.down_proj"):
            axis = 0
        stored = array.T if part != "attn.Wqkv" else array.T.reshape(*array.shape[1:], 3, d)
        if axis is None:
            stored.tofile(folder / f"{stem}.bin")
        else:
            for i, piece in enumerate(np.split(stored, devices, axis)):
                piece.tofile(folder / f"{stem}.{i}.bin")
    config = configparser.ConfigParser()
    config["gpt"] = {
        "model_name": "mpt", "head_num": "4", "size_per_head": "4", "inter_size": "64", "max_pos_seq_len": "32",
        "num_layer": "2", "vocab_size": "40", "start_id": "None", "end_id": "0", "weight_data_type": kind,
        "tensor_para_size": str(devices), "layernorm_eps": "1e-05", "has_positional_encoding": "False",
        "use_attention_linear_bias": "True", **changes,
    }  # fmt: skip
    with (folder / "config.ini").open("w") as file:
        config.write(file)
    return arrays
