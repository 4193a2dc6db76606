"""Writes a model in the layouts of EasyDeL and Flax."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import msgpack
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from tiny_model import TINY, checkpoint_arrays

# Of EasyDeL: where it computes, and how, beside the architecture.
EASYDEL = {
    **TINY, "use_bias": False, "use_norm_bias": False, "use_lm_head": False, "alibi": True, "qk_ln": False,
    "act_fn": "gelu", "easy_method": "train", "axis_dims": [1, -1, 1, 1], "axis_names": ["dp", "fsdp", "tp", "sp"],
    "attn_mechanism": "vanilla", "gradient_checkpointing": "", "bits": None, "from_pt": False, "emb_prob_drop": 0.0,
    "attn_config": {
        "alibi": True, "attn_type": "multihead_attention", "attn_impl": "torch", "attn_pdrop": 0, "bits": None,
        "qk_ln": False, "prefix_lm": False, "clip_qkv": None, "model_type": "", "transformers_version": "4.45.2",
        "easy_method": "train", "axis_dims": [1, -1, 1, 1], "return_dict": True, "torch_dtype": None,
    },
}  # fmt: skip
OLD_NAMES = {"blocks": "h", "Wqkv": "w_qkv", "out_proj": "wo", "up_proj": "up", "down_proj": "down"}


def flax_tree(arrays: Mapping[str, np.ndarray], old: bool = False) -> dict[str, Any]:
    """Return arrays by llm-foundry's names as EasyDeL's tree of parameters."""
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, array in arrays.items():
        *modules, leaf = name.split(".")
        if old:
            modules = [OLD_NAMES.get(module, module) for module in modules]
        kind = "embedding" if modules[-1] == "wte" else "scale" if modules[-1].startswith("norm") else "kernel"
        flat[(*modules, kind if leaf == "weight" else leaf)] = array.T.copy() if kind == "kernel" else array
    tree: dict[str, Any] = unflatten_dict(flat)
    return tree


def stream(tree: Mapping[str, Any]) -> bytes:
    """Return the pairs of path and bytes that EasyDeL and EasyLM write."""
    pairs = ((list(key), flax.serialization.to_bytes(value)) for key, value in flatten_dict(dict(tree)).items())
    return b"".join(msgpack.packb(pair) for pair in pairs)


def write_easydel(folder: Path, layout: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Write a model in one of EasyDeL's layouts; return its arrays by llm-foundry's names."""
    arrays = {name: array.astype(dtype) for name, array in checkpoint_arrays(TINY).items()}
    file = folder / "easydel-model.parameters"
    tree = flax_tree(arrays, old=layout == "stream")
    match layout:
        case "stream":
            file.write_bytes(stream({"params": tree}))
        case "state":
            state = {"params": {"params": tree}, "opt_state": {"mu": tree}, "step": np.int32(3)}
            file.write_bytes(stream(state))
        case "whole":
            (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
        case "safetensors":
            save_file(flatten_dict(tree, sep="."), file)
        case "model.safetensors":
            save_file(flatten_dict(tree, sep="."), folder / "model.safetensors")
        case "shards":
            flat = flatten_dict(tree, sep=".")
            names = {name: f"easydel-model-{i % 2}.safetensors" for i, name in enumerate(flat)}
            for file_name in set(names.values()):
                save_file({name: flat[name] for name in flat if names[name] == file_name}, folder / file_name)
            index = json.dumps({"weight_map": names})
            (folder / "easydel-model.parameters.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(EASYDEL))
    return arrays
