"""`MptConfig` as a config.json: for models that are in memory, and whose folder may be gone."""

from typing import Any

from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.ops.rope import RopeConfig


def to_config_json(config: MptConfig) -> dict[str, Any]:
    """Return the object of a config.json, in llm-foundry's keys, that reads as `config`.

    Raises ConfigError for a config that no file describes, such as one with fields changed by hand.
    """
    activation = {"name": config.activation.name, **dict(config.activation.arguments)}
    data: dict[str, Any] = {
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_layers": config.n_layers,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_seq_len,
        "norm_type": _norm_type(config.rms_norm),
        "norm_eps": config.norm_eps,
        "no_bias": not config.bias,
        "attention_bias": config.qkv_bias,
        "learned_pos_emb": config.learned_positions,
        "tie_word_embeddings": config.tied_head,
        "logit_scale": config.logit_scale,
        "final_logit_softcapping": config.final_logit_softcap,
        "torch_dtype": config.torch_dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "attn_config": _attention(config),
        "ffn_config": {
            "ffn_type": "mptglu" if config.ffn_gated else "mptmlp",
            "ffn_hidden_size": config.ffn_hidden_size,
            "ffn_act_fn": activation,
        },
    }
    if MptConfig.from_dict(data) != config:
        raise ConfigError("this MptConfig is not what any config.json says; make one with MptConfig.from_dict")
    return data


def _attention(config: MptConfig) -> dict[str, Any]:
    data: dict[str, Any] = {
        "attn_type": "grouped_query_attention",
        "kv_n_heads": config.kv_n_heads,
        "qk_ln": config.qk_norm == "ln",
        "qk_gn": config.qk_norm == "gn",
        "norm_type": _norm_type(config.qk_rms_norm),
        "norm_eps": config.qk_norm_eps,
        "fused_qkv": config.fused_qkv,
        "clip_qkv": config.clip_qkv,
        "softmax_scale": config.softmax_scale,
        "attn_logit_softcapping": config.attn_logit_softcap,
        "sliding_window_size": -1 if config.sliding_window is None else config.sliding_window,
        "alibi": config.alibi,
        "alibi_bias_max": config.alibi_bias_max,
        **({"rope": False} if config.rope is None else _rope(config.rope)),
    }
    if config.temperature is not None:
        floor_scale, attn_scale = config.temperature
        data["attn_temperature_tuning"] = {"floor_scale": floor_scale, "attn_scale": attn_scale}
    return data


def _rope(rope: RopeConfig) -> dict[str, Any]:
    """Return the keys of RoPE; without scaling both implementations compute the same."""
    scaling = {
        "type": "no_scaling" if rope.scaling == "none" else rope.scaling,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_length,
    }
    return {"rope": True, "rope_theta": rope.theta, "rope_impl": "hf", "rope_hf_config": scaling}


def _norm_type(rms: bool) -> str:
    return "rmsnorm" if rms else "layernorm"
