"""`MptConfig`: what one MPT computes, read from any config.json of the family.

Understood are llm-foundry's `mpt` (all releases up to 0.22), transformers' `mpt` (4 and 5) and the `mosaic_gpt` of
2023. Every key that changes the mathematics is honoured or refused by name; the rest is listed in `config_keys.py`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config.known_keys import ATTENTION_KEYS, FFN_KEYS, MODEL_KEYS
from model.config.strict_reader import ConfigError, ConfigReader
from model.ops.activations import ACTIVATIONS, GELU, Activation
from model.ops.rope import RopeConfig

if TYPE_CHECKING:
    from jax.sharding import PartitionSpec

__all__ = ["ConfigError", "MptConfig"]

_LAYER_NORMS = frozenset({"layernorm", "low_precision_layernorm"})  # they differ only under torch's autocast
_RMS_NORMS = frozenset({"rmsnorm", "low_precision_rmsnorm", "triton_rmsnorm"})


@dataclass(frozen=True)
class MptConfig:
    """The computation of one MPT, normalised: hashable, so that it can be a static argument of a jitted function."""

    d_model: int
    n_heads: int
    n_layers: int
    vocab_size: int
    max_seq_len: int = 2048
    kv_n_heads: int = 0  # 0 stands for n_heads
    ffn_hidden_size: int = 0  # 0 stands for 4 * d_model
    ffn_gated: bool = False  # mptglu: down(act(gate(x)) * up(x)); otherwise mptmlp: down(act(up(x)))
    activation: Activation = GELU
    rms_norm: bool = False
    norm_eps: float = 1e-5
    bias: bool = False  # on every linear layer and LayerNorm (llm-foundry's `not no_bias`)
    qkv_bias: bool | None = None  # None stands for `bias`
    qk_norm: str | None = None  # "ln" over all heads of q (and of k) together, "gn" per head with one shared weight
    qk_rms_norm: bool = False  # q and k are normed by LayerNorm of eps 1e-5 whatever the blocks' norms are:
    qk_norm_eps: float = 1e-5  # llm-foundry's block does not pass its norm_type and norm_eps to its attention
    temperature: tuple[float, float] | None = None  # (floor_scale, attn_scale) of attention temperature tuning
    fused_qkv: bool = True  # how the checkpoint stores it; the computation is the same
    clip_qkv: float | None = None
    softmax_scale: float = 0.0  # 0 stands for 1 / sqrt(head_dim)
    attn_logit_softcap: float | None = None
    sliding_window: int | None = None  # a query sees that many keys before its own
    alibi: bool = True
    alibi_bias_max: float = 8.0
    learned_positions: bool = False
    rope: RopeConfig | None = None
    tied_head: bool = True
    logit_scale: float = 1.0
    final_logit_softcap: float | None = None
    torch_dtype: str | None = None  # what the checkpoint says of itself, e.g. "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        fill = object.__setattr__  # the 0 and None that stand for a derived value
        fill(self, "kv_n_heads", self.kv_n_heads or self.n_heads)
        fill(self, "ffn_hidden_size", self.ffn_hidden_size or 4 * self.d_model)
        fill(self, "qkv_bias", self.bias if self.qkv_bias is None else self.qkv_bias)
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"config key 'd_model' is {self.d_model}; a multiple of n_heads ({self.n_heads}) is meant"
            )
        if self.n_heads % self.kv_n_heads:
            raise ConfigError(
                f"config key 'kv_n_heads' is {self.kv_n_heads}; a divisor of n_heads ({self.n_heads}) is meant"
            )
        if self.rope is not None and self.head_dim % 2:
            raise ConfigError(
                f"config key 'attn_config.rope' needs an even head size; d_model/n_heads is {self.head_dim}"
            )
        fill(self, "softmax_scale", self.softmax_scale or 1.0 / math.sqrt(self.head_dim))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def length_limit(self) -> int | None:
        """The longest sequence that the positions define, in tokens; None where they extrapolate by formula.

        A learned table ends. `dynamic` RoPE changes every cached key once a sequence outgrows `max_seq_len`, so a
        paged cache can serve it exactly up to there.
        """
        stretches = self.rope is not None and self.rope.scaling == "dynamic"
        return self.max_seq_len if self.learned_positions or stretches else None

    @classmethod
    def from_file(cls, path: str | Path) -> "MptConfig":
        """Reads `path`, a config.json or the folder that holds it. Raises ConfigError."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no {path.name} in folder '{path.parent.name}'; a checkpoint folder has one") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
            raise ConfigError(f"{path.name} is not JSON: {e}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MptConfig":
        """Reads the object of a config.json. Raises ConfigError naming the key, its value and the way out."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"a config is a JSON object; this one is of type {type(data).__name__}")
        model_type = data.get("model_type", "mpt")
        if model_type == "mosaic_gpt":
            data = _from_mosaic_gpt(data)
        elif model_type != "mpt":
            raise ConfigError(f"config key 'model_type' is {model_type!r}; this package runs 'mpt' and 'mosaic_gpt'")
        return _read_model(ConfigReader(data))

    def get_partition_rules(self, fsdp: bool = True) -> "tuple[tuple[str, PartitionSpec], ...]":
        """Rules (regular expression on a parameter's path, PartitionSpec) for a mesh of axes `fsdp` and `tensor`."""
        from model.params.sharding import get_partition_rules

        return get_partition_rules(fsdp)


def _from_mosaic_gpt(data: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the flat keys of the 2023 `mosaic_gpt` to their places in `mpt`."""
    out = {k: v for k, v in data.items() if k != "model_type"}
    attention = {}
    renamed = {"attn_qk_ln": "qk_ln", "attn_clip_qkv": "clip_qkv"}
    same = ("attn_type", "attn_impl", "attn_pdrop", "softmax_scale", "prefix_lm", "attn_uses_sequence_id")
    for old in (*renamed, *same, "alibi", "alibi_bias_max"):
        if old in out:
            attention[renamed.get(old, old)] = out.pop(old)
    attention.setdefault("alibi", False)
    out["attn_config"] = attention
    if "mlp_ratio" in out:
        out["expansion_ratio"] = out.pop("mlp_ratio")
    low_precision = out.pop("low_precision_layernorm", None)
    if low_precision is not None:
        out["norm_type"] = "low_precision_layernorm" if low_precision else "layernorm"
    return out


def _read_model(r: ConfigReader) -> MptConfig:
    r.take("model_type")
    by_transformers = r.take("layer_norm_epsilon") is not None or r.take("initializer_range") is not None
    d_model, n_heads = r.integer("d_model"), r.integer("n_heads")
    max_seq_len = r.integer("max_seq_len", 2048)
    # transformers leaves out what equals its own defaults, which are not llm-foundry's.
    bias = not r.boolean("no_bias", by_transformers)
    learned = r.boolean("learned_pos_emb", True)
    r.refuse("head_dim", (d_model // n_heads,), "heads of another width than d_model / n_heads are not built")
    r.refuse("block_overrides", ({},), "blocks that differ from each other are not built")
    _refuse_other_architectures(r)
    attention = _read_attention(r.section("attn_config"), n_heads, d_model, max_seq_len, by_transformers)
    config = MptConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=r.integer("n_layers"),
        vocab_size=r.integer("vocab_size"),
        max_seq_len=max_seq_len,
        rms_norm=_is_rms_norm(r),
        norm_eps=_norm_eps(r),
        bias=bias,
        qkv_bias=r.boolean("attention_bias", bias),
        # Published configs say learned_pos_emb: true beside alibi; llm-foundry turns it off there.
        learned_positions=learned and not attention["alibi"] and attention["rope"] is None,
        tied_head=r.boolean("tie_word_embeddings", True),
        logit_scale=_logit_scale(r, d_model),
        final_logit_softcap=r.optional_positive("final_logit_softcapping"),
        torch_dtype=_dtype_name(r),
        bos_token_id=r.optional_integer("bos_token_id"),
        eos_token_ids=_token_ids(r, "eos_token_id"),
        pad_token_id=r.optional_integer("pad_token_id"),
        **attention,
        **_read_ffn(r.section("ffn_config"), d_model * r.positive("expansion_ratio", 4)),
    )
    r.ignore(MODEL_KEYS)
    r.finish()
    return config


def _refuse_other_architectures(r: ConfigReader) -> None:
    """General keys of transformers that are inert only as they stand in every MPT config."""
    r.refuse("is_encoder_decoder", (False,), "encoder-decoder models are not built")
    r.refuse("add_cross_attention", (False,), "cross attention is not built")
    r.refuse("pruned_heads", ({},), "pruned heads are not built")


def _read_attention(
    r: ConfigReader, n_heads: int, d_model: int, max_seq_len: int, alibi_default: bool
) -> dict[str, Any]:
    kinds = ("multihead_attention", "multiquery_attention", "grouped_query_attention")
    kind = r.choice("attn_type", kinds[0], kinds)
    kv_n_heads = r.optional_integer("kv_n_heads", minimum=1)
    implied = {"multihead_attention": n_heads, "multiquery_attention": 1}.get(kind)
    if implied is None and kv_n_heads is None:
        raise ConfigError(f"config key '{r.name('kv_n_heads')}' is missing; {kind} needs it")
    if implied is not None and kv_n_heads not in (None, implied):
        raise r.error(
            "kv_n_heads", kv_n_heads, f"{kind} has {implied}; a number of groups needs grouped_query_attention"
        )
    r.refuse("prefix_lm", (False,), "prefix language models are not built")
    r.refuse("kv_dim", (d_model,), "keys from another width (cross attention) are not built")
    r.refuse("reuse_kv_layer_idx", (), "keys and values reused from another layer are not built")
    r.refuse("nope", (False,), "layers without positions are not built")
    _refuse_other_architectures(r)
    ln, gn = r.boolean("qk_ln", False), r.boolean("qk_gn", False)
    if ln and gn:
        raise r.error("qk_gn", True, "qk_ln is true as well; one of the two is meant")
    window = r.take("sliding_window_size")
    alibi = r.boolean("alibi", alibi_default)
    read = {
        "kv_n_heads": kv_n_heads or implied,
        "qk_norm": "ln" if ln else "gn" if gn else None,
        "qk_rms_norm": _is_rms_norm(r),
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


def _read_temperature(r: ConfigReader) -> tuple[float, float] | None:
    floor_scale, attn_scale = r.positive("floor_scale", 8192), r.number("attn_scale", 0)
    r.finish()
    return (floor_scale, attn_scale) if attn_scale else None


def _read_rope(r: ConfigReader, max_seq_len: int) -> RopeConfig | None:
    """RoPE's keys are read, and refused where wrong, even when `rope` is false and they stay unused."""
    enabled = r.boolean("rope", False)
    theta = r.positive("rope_theta", 10_000)
    kind = r.choice("rope_impl", "dail", ("dail", "hf"))
    dail, hf = r.section("rope_dail_config"), r.section("rope_hf_config")
    if not enabled:
        return None
    if kind == "dail":
        dail.choice("type", "original", ("original",))
        dail.ignore({"pos_idx_in_fp32", "xpos_scale_base"})  # positions are exact here; the base belongs to xpos
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


def _read_ffn(r: ConfigReader, expanded: float) -> dict[str, Any]:
    kind = r.choice("ffn_type", "mptmlp", ("mptmlp", "mptglu"))
    size = r.optional_integer("ffn_hidden_size", minimum=1)
    if size is None and (expanded < 1 or expanded != int(expanded)):
        raise ConfigError(
            f"config key 'expansion_ratio' gives {expanded} feed-forward features; a whole number is meant"
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
        raise r.error("ffn_act_fn.approximate", arguments["approximate"], "'none' or 'tanh' is meant")
    return Activation(spec["name"], tuple(sorted(arguments.items())))


def _is_rms_norm(r: ConfigReader) -> bool:
    value = r.take("norm_type")
    if isinstance(value, str) and value.lower() in _RMS_NORMS:
        return True
    if value is None or (isinstance(value, str) and value.lower() in _LAYER_NORMS):
        return False
    raise r.error("norm_type", value, f"this package runs {', '.join(sorted(_LAYER_NORMS | _RMS_NORMS))}")


def _norm_eps(r: ConfigReader) -> float:
    """llm-foundry calls it norm_eps, transformers layer_norm_epsilon."""
    ours, theirs = r.optional_positive("norm_eps"), r.optional_positive("layer_norm_epsilon")
    if ours is not None and theirs is not None and ours != theirs:
        raise r.error("layer_norm_epsilon", theirs, f"norm_eps is {ours}; keep the one the weights were trained with")
    return ours or theirs or 1e-5


def _logit_scale(r: ConfigReader, d_model: int) -> float:
    if r.take("logit_scale") == "inv_sqrt_d_model":
        return 1.0 / math.sqrt(d_model)
    if isinstance(r.take("logit_scale"), str):
        raise r.error("logit_scale", r.take("logit_scale"), "a number or 'inv_sqrt_d_model' is meant")
    return r.number("logit_scale", 1.0)


def _dtype_name(r: ConfigReader) -> str | None:
    value = r.take("torch_dtype") or r.take("dtype")  # transformers 5 renamed it
    r.take("dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else None


def _token_ids(r: ConfigReader, key: str) -> tuple[int, ...]:
    value = r.take(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise r.error(key, value, "a token id or a list of them is meant")
    return tuple(values)
