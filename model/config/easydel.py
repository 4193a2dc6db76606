"""The keys that EasyDeL adds to a config.json of MPT."""

from collections.abc import Mapping
from typing import Any, Final

from model.config.strict_reader import ConfigError

# Where and how EasyDeL computes: devices, kernels, blocks, caches, training.
_IGNORED: Final = frozenset(
    {
        "axis_dims", "axis_names", "sharding_axis_dims", "sharding_axis_names", "sharding_dcn_axis_dims",
        "attn_mechanism", "decode_attn_mechanism", "blocksize_k", "blocksize_q", "blocksize_b", "partition_axis",
        "shard_attention_computation", "use_sharded_kv_caching", "use_sharding_constraint", "backend", "platform",
        "easy_method", "scan_ring_attention", "scan_attention_layers", "use_scan_mlp", "scan_mlp_chunk_size",
        "attention_axis_name", "sequence_axis_name", "gradient_checkpointing", "kv_cache_quantization_method",
        "kv_cache_quantization_blocksize", "kv_cache_sharding_sequence_axis_name", "quantize_kv_cache",
        "flash_attention_backward_pass_impl", "attn_dtype", "attn_softmax_dtype", "fcm_max_ratio", "fcm_min_ratio",
        "hardware_abstraction", "pallas_m_block_size", "pallas_k_block_size", "pallas_n_block_size",
        "mask_max_position_embeddings", "freq_max_position_embeddings", "from_pt", "resid_prob_drop", "emb_prob_drop",
        "query_partition_spec", "key_partition_spec", "value_partition_spec", "bias_partition_spec",
        "attention_partition_spec", "generation_partition_spec", "use_pjit_attention_force", "use_shard_map",
    }
)  # fmt: skip
_MARKS: Final = ("use_norm_bias", "use_lm_head", "easy_method", "use_bias")  # keys that only EasyDeL writes


def from_easydel(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config.json without the keys that EasyDeL adds; others are returned as they are. Raises ConfigError.

    `alibi` and `qk_ln` may stand beside the section of attention or in it, and are refused where the two differ.
    `use_lm_head` had opposite meanings in its releases: a head that is stored and differs from the embedding is refused
    while the weights are read, unless tie_word_embeddings is false.
    """
    if not any(mark in data for mark in _MARKS):
        return data
    out = {key: value for key, value in data.items() if key not in _IGNORED}
    out.pop("use_lm_head", None)
    if out.pop("bits", None) is not None:
        raise ConfigError(f"config key 'bits' is {str(data['bits'])[:60]}; EasyDeL's quantised parameters are not read")
    biases = {bool(out.pop(key)) for key in ("use_bias", "use_norm_bias") if key in out}
    if len(biases) > 1:
        raise ConfigError("config key 'use_norm_bias' differs from 'use_bias'; either all layers have biases, or none")
    if biases:
        out["no_bias"] = not biases.pop()
    activation = out.pop("act_fn", "gelu")
    if activation != "gelu":
        out.setdefault("ffn_config", {"ffn_act_fn": {"name": activation}})
    section = out.get("attn_config") or {}
    if isinstance(section, Mapping):
        outer = {key: out.pop(key) for key in ("alibi", "qk_ln") if key in out}
        kept = {key: value for key, value in section.items() if key not in _IGNORED | {"bits"}}
        for key in outer:
            if kept.get(key, outer[key]) != outer[key]:
                raise ConfigError(
                    f"config key '{key}' is {str(outer[key])[:60]}, and 'attn_config.{key}' is {str(kept[key])[:60]};"
                    " keep the one that the weights had in training"
                )
        out["attn_config"] = {"alibi": True, **outer, **kept}
    return out
