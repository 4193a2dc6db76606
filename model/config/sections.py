"""Reads the sections `attn_config` and `ffn_config` of a config as fields of `MptConfig`."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from model.config.known_keys import ATTENTION_KEYS, FFN_KEYS, MODEL_KEYS
from model.config.strict_reader import ConfigError, ConfigReader
from model.ops.activations import ACTIVATIONS, Activation
from model.ops.rope import RopeConfig

_LAYER_NORMS = frozenset({"layernorm", "low_precision_layernorm"})  # they differ only under torch's autocast
_RMS_NORMS = frozenset({"rmsnorm", "low_precision_rmsnorm", "triton_rmsnorm"})


_UNPUBLISHED = "No published MPT has it"
_RUN_ELSEWHERE = "run this one with llm-foundry, or train it without the key"


class AttentionFields(TypedDict):
    """The fields of `MptConfig` that `attn_config` decides."""

    kv_n_heads: int
    qk_norm: str | None
    qk_rms_norm: bool
    qk_norm_eps: float
    temperature: tuple[float, float] | None
    fused_qkv: bool
    clip_qkv: float | None
    softmax_scale: float
    attn_logit_softcap: float | None
    sliding_window: int | None
    alibi: bool
    alibi_bias_max: float
    rope: RopeConfig | None


class FfnFields(TypedDict):
    """The fields of `MptConfig` that `ffn_config` decides."""

    ffn_gated: bool
    ffn_hidden_size: int
    activation: Activation


def read_attention(
    r: ConfigReader, n_heads: int, d_model: int, max_seq_len: int, alibi_default: bool
) -> AttentionFields:
    """Read `attn_config`. Raises ConfigError."""
    kv_n_heads = _kv_n_heads(r, n_heads)
    r.refuse(
        "prefix_lm",
        (False,),
        "prefix language models, which attend to all of a prompt in both directions, are not supported",
        f"{_UNPUBLISHED}, and llm-foundry removed the key in 0.7; run this one with llm-foundry 0.6",
    )
    r.refuse("kv_dim", (d_model,), "keys from another width (cross attention) are not supported")
    r.refuse("reuse_kv_layer_idx", (), "keys and values reused from another layer are not supported", _UNPUBLISHED)
    r.refuse("nope", (False,), "layers without positions are not supported", _UNPUBLISHED)
    refuse_other_architectures(r)
    ln, gn = r.boolean("qk_ln", False), r.boolean("qk_gn", False)
    if ln and gn:
        raise r.error("qk_gn", True, "qk_ln is true as well, and only one of them may be")
    window = r.take("sliding_window_size")
    alibi = r.boolean("alibi", alibi_default)
    read: AttentionFields = {
        "kv_n_heads": kv_n_heads,
        "qk_norm": "ln" if ln else "gn" if gn else None,
        "qk_rms_norm": is_rms_norm(r),
        "qk_norm_eps": r.positive("norm_eps", 1e-5),
        "temperature": _read_temperature(r.section("attn_temperature_tuning")),
        "fused_qkv": r.boolean("fused_qkv", True),
        "clip_qkv": r.optional_positive("clip_qkv") if r.take("clip_qkv") != 0 else None,
        "softmax_scale": r.positive("softmax_scale", 1.0 / math.sqrt(d_model / n_heads)),
        "attn_logit_softcap": r.optional_positive("attn_logit_softcapping"),
        "sliding_window": None if window in (None, -1) else r.integer("sliding_window_size", minimum=0),
        "alibi": alibi,
        "alibi_bias_max": r.positive("alibi_bias_max", 8),
        "rope": _read_rope(r, max_seq_len),
    }
    r.ignore(ATTENTION_KEYS | MODEL_KEYS)  # transformers 4 wrote its general keys into this section too
    r.finish()
    return read


def _kv_n_heads(r: ConfigReader, n_heads: int) -> int:
    kinds = ("multihead_attention", "multiquery_attention", "grouped_query_attention")
    kind = r.choice("attn_type", kinds[0], kinds)
    kv_n_heads = r.optional_integer("kv_n_heads", minimum=1)
    implied = {"multihead_attention": n_heads, "multiquery_attention": 1}.get(kind, kv_n_heads)
    if implied is None:
        raise ConfigError(f"config key '{r.name('kv_n_heads')}' is missing; {kind} needs it")
    if kv_n_heads not in (None, implied):
        raise r.error(
            "kv_n_heads", kv_n_heads, f"{kind} has {implied}; a number of groups needs grouped_query_attention"
        )
    return implied


def _read_temperature(r: ConfigReader) -> tuple[float, float] | None:
    floor_scale, attn_scale = r.positive("floor_scale", 8192), r.number("attn_scale", 0)
    r.finish()
    return (floor_scale, attn_scale) if attn_scale else None


def _read_rope(r: ConfigReader, max_seq_len: int) -> RopeConfig | None:
    """Read the keys of RoPE; wrong ones are refused even when `rope` is false and they stay unused."""
    enabled = r.boolean("rope", False)
    theta = r.positive("rope_theta", 10_000)
    kind = r.choice("rope_impl", "dail", ("dail", "hf"))
    dail, hf = r.section("rope_dail_config"), r.section("rope_hf_config")
    if not enabled:
        return None
    if kind == "dail":
        if dail.take("type") == "xpos":
            dail.refuse("type", (), "xPos is not supported", f"{_UNPUBLISHED}; {_RUN_ELSEWHERE}")
        dail.choice("type", "original", ("original",))
        dail.ignore({"pos_idx_in_fp32", "xpos_scale_base"})  # positions are always exact here; the base belongs to xpos
        dail.finish()
        return RopeConfig(theta, train_length=max_seq_len)
    scaling = hf.choice("type", "no_scaling", ("no_scaling", "linear", "dynamic", "llama3"))
    rope = RopeConfig(
        theta,
        scaling="none" if scaling == "no_scaling" else scaling,
        factor=hf.positive("factor", 1),
        train_length=max_seq_len,
        low_freq_factor=hf.positive("low_freq_factor", 1),
        high_freq_factor=hf.positive("high_freq_factor", 4),
        original_length=hf.integer("original_max_position_embeddings", 8192),
    )
    hf.finish()
    return rope


def read_ffn(r: ConfigReader, expanded: float) -> FfnFields:
    """Read `ffn_config`; `expanded` is d_model * expansion_ratio. Raises ConfigError."""
    kind = r.choice("ffn_type", "mptmlp", ("mptmlp", "mptglu"))
    size = r.optional_integer("ffn_hidden_size", minimum=1)
    if size is None and (expanded < 1 or expanded != int(expanded)):
        raise ConfigError(
            f"config key 'expansion_ratio' gives {expanded} feed-forward features; it must give an integer"
        )
    spec = r.take("ffn_act_fn") or {"name": "gelu"}
    r.ignore(FFN_KEYS)
    r.finish()
    return {"ffn_gated": kind == "mptglu", "ffn_hidden_size": size or int(expanded), "activation": _activation(r, spec)}


def _activation(r: ConfigReader, spec: Any) -> Activation:
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str) or spec["name"] not in ACTIVATIONS:
        raise r.error("ffn_act_fn", spec, f"this package runs {{'name': ...}} with {', '.join(sorted(ACTIVATIONS))}")
    defaults = ACTIVATIONS[spec["name"]][1]
    arguments = {k: v for k, v in spec.items() if k not in ("name", "inplace")}
    for key, value in arguments.items():
        kinds = str if isinstance(defaults.get(key), str) else (int, float)
        if key not in defaults or not isinstance(value, kinds):
            raise r.error(f"ffn_act_fn.{key}", value, f"{spec['name']} takes {dict(defaults) or 'no argument'}")
    if arguments.get("approximate", "none") not in ("none", "tanh"):
        raise r.error("ffn_act_fn.approximate", arguments["approximate"], "it must be 'none' or 'tanh'")
    return Activation(spec["name"], tuple(sorted(arguments.items())))


def is_rms_norm(r: ConfigReader) -> bool:
    """Return whether a section's `norm_type` is RMSNorm. Raises ConfigError for an unknown one."""
    value = r.take("norm_type")
    if isinstance(value, str) and value.lower() in _RMS_NORMS:
        return True
    if value is None or (isinstance(value, str) and value.lower() in _LAYER_NORMS):
        return False
    raise r.error("norm_type", value, f"this package runs {', '.join(sorted(_LAYER_NORMS | _RMS_NORMS))}")


def refuse_unpublished(r: ConfigReader, head_dim: int) -> None:
    """Refuse what llm-foundry can configure, and no published MPT has. head_dim: d_model / n_heads."""
    r.refuse(
        "head_dim",
        (head_dim,),
        f"heads of another width than d_model / n_heads ({head_dim}) are not supported",
        f"{_UNPUBLISHED}, and llm-foundry has had the key only since 0.22; {_RUN_ELSEWHERE}",
    )
    r.refuse(
        "block_overrides",
        ({},),
        "blocks that differ from each other are not supported",
        f"{_UNPUBLISHED}; {_RUN_ELSEWHERE}",
    )


def refuse_other_architectures(r: ConfigReader) -> None:
    """Refuse general keys of transformers that have another value than in every MPT config."""
    r.refuse("is_encoder_decoder", (False,), "encoder-decoder models are not supported")
    r.refuse("add_cross_attention", (False,), "cross attention is not supported")
    r.refuse("pruned_heads", ({},), "pruned heads are not supported")


def refuse_quantized(r: ConfigReader) -> None:
    """Refuse a config of quantised weights, but for those that are dequantised while they are read: GPTQ's, AWQ's."""
    value = r.take("quantization_config")
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    if not value or (isinstance(method, str) and method in ("gptq", "awq")):
        return
    bits = value.get("bits") if isinstance(value, Mapping) else None
    kind = f"{bits}-bit {method}" if isinstance(bits, int) and isinstance(method, str) else method or "method not named"
    raise ConfigError(
        f"config key '{r.name('quantization_config')}' says that the weights are quantised ({str(kind)[:60]}), which is"
        " not read; load the checkpoint that they were made from, and set the server's quantization to int8 or int4"
    )


def read_foreign_names(r: ConfigReader, names: Mapping[str, str]) -> None:
    """Read keys by other names, mapped to ours; a config may have both. Raises ConfigError where they differ."""
    for foreign, own in names.items():
        value, ours = r.take(foreign), r.take(own)
        if value is None:
            continue
        if ours is not None and ours != value:
            raise r.error(foreign, value, f"{own} is {str(ours)[:80]}, and both mean the same; keep the right one")
        r.put(own, value)
