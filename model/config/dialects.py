"""The object of a config.json for a model, in llm-foundry's form or in transformers'."""

import json
import math
from pathlib import Path
from typing import Any

from model.config.adapter import read_adapter_config
from model.config.easydel import from_easydel
from model.config.ft_config import is_fastertransformer, read_ft_config
from model.config.mpt_config import MptConfig, from_mosaic_gpt, gguf_config_of
from model.config.strict_reader import ConfigError
from model.gguf.header import is_gguf


def family_config(path: Path) -> dict[str, Any]:
    """Return the object of a checkpoint's config.json in llm-foundry's form, from any form. Raises ConfigError."""
    MptConfig.from_file(path)  # everything that is wrong with it
    if is_gguf(path):
        return {"architectures": ["MPTForCausalLM"], **gguf_config_of(path)}
    adapter = read_adapter_config(path)
    file = (path if adapter is None else adapter.base) / "config.json"
    if not file.is_file() and is_fastertransformer(path):
        return {"architectures": ["MPTForCausalLM"], **read_ft_config(path).data}
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    data = dict(from_easydel(data))
    if data.get("model_type") == "mosaic_gpt":
        data = {"model_type": "mpt", **from_mosaic_gpt(data)}
    others = {key: value for key, value in data.items() if key != "auto_map"}  # code that is not converted
    return {**others, "architectures": ["MPTForCausalLM"]}


def transformers_config(config: MptConfig) -> dict[str, Any]:
    """Return a config.json that transformers' own MPT reads as this model. Raises ConfigError naming what it ignores.

    transformers (5.23) takes alibi_bias_max for 8, the feed-forward part for four times the width with GELU, and knows
    neither biases, learned positions, RoPE, norms of queries and keys, grouped queries nor scaled logits.
    """
    ends = list(config.eos_token_ids)
    usual_scale = config.softmax_scale == 1.0 / math.sqrt(config.head_dim)
    data = {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_layers": config.n_layers,
        "expansion_ratio": 4,
        "max_seq_len": config.max_seq_len,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm_eps,
        "no_bias": True,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": config.torch_dtype,
        "attn_config": {
            "attn_type": "multihead_attention",
            "alibi": True,
            "alibi_bias_max": 8,
            "clip_qkv": config.clip_qkv,
            "softmax_scale": None if usual_scale else config.softmax_scale,
        },
    }
    read = MptConfig.from_dict(data)
    ignored = [name for name in vars(config) if getattr(read, name) != getattr(config, name) and name != "fused_qkv"]
    if ignored:
        values = ", ".join(f"{name} ({str(getattr(config, name))[:40]})" for name in ignored[:5])
        raise ConfigError(
            f"transformers' MPT cannot represent this model: it would take other values for {values}. Convert to"
            " llm-foundry's form"
        )
    return data
