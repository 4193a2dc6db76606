"""`MptConfig`: what one MPT computes, read from any config.json of the family.

Three dialects are read: llm-foundry's `mpt` (all releases up to 0.22), transformers' `mpt` (4 and 5) and the
`mosaic_gpt` of 2023. Every key that changes the mathematics is honoured or refused by name; the others are listed in
`known_keys`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config.adapter import read_adapter_config
from model.config.easydel import from_easydel
from model.config.ft_config import is_fastertransformer, read_ft_config
from model.config.known_keys import MODEL_KEYS
from model.config.lfs_pointer import lfs_pointer_problem
from model.config.partition_rules import PartitionRules, get_partition_rules
from model.config.sections import (
    is_rms_norm,
    read_attention,
    read_ffn,
    read_foreign_names,
    refuse_other_architectures,
    refuse_quantized,
    refuse_unpublished,
)
from model.config.strict_reader import ConfigError, ConfigReader
from model.gguf.config import gguf_config
from model.gguf.header import GgufError, is_gguf, read_header
from model.ops.activations import GELU, Activation
from model.ops.rope import RopeConfig

# transformers reads its own names of these keys as well, and tools that rewrite a config leave both in it.
_NAMES_IN_TRANSFORMERS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}


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
    qk_rms_norm: bool = False  # q and k have a LayerNorm of eps 1e-5 whatever the blocks' norms are:
    qk_norm_eps: float = 1e-5  # llm-foundry's block does not pass its norm_type and norm_eps to its attention
    temperature: tuple[float, float] | None = None  # (floor_scale, attn_scale) of attention temperature tuning
    fused_qkv: bool = True  # how the checkpoint stores Wqkv; the computation is the same
    clip_qkv: float | None = None
    softmax_scale: float = 0.0  # 0 stands for 1 / sqrt(head_dim)
    attn_logit_softcap: float | None = None
    sliding_window: int | None = None  # keys before its own that a query sees
    alibi: bool = True
    alibi_bias_max: float = 8.0
    learned_positions: bool = False
    rope: RopeConfig | None = None
    tied_head: bool = True
    logit_scale: float = 1.0
    final_logit_softcap: float | None = None
    torch_dtype: str | None = None  # what the checkpoint declares, e.g. "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        fill = object.__setattr__  # the 0 and None that stand for a derived value
        fill(self, "kv_n_heads", self.kv_n_heads or self.n_heads)
        fill(self, "ffn_hidden_size", self.ffn_hidden_size or 4 * self.d_model)
        fill(self, "qkv_bias", self.bias if self.qkv_bias is None else self.qkv_bias)
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        if self.n_heads % self.kv_n_heads:
            raise ConfigError(f"kv_n_heads ({self.kv_n_heads}) must divide n_heads ({self.n_heads})")
        if self.rope is not None and self.head_dim % 2:
            raise ConfigError(f"attn_config.rope needs an even head size, but d_model / n_heads is {self.head_dim}")
        fill(self, "softmax_scale", self.softmax_scale or 1.0 / math.sqrt(self.head_dim))

    @property
    def head_dim(self) -> int:
        """The width of a head."""
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
        """Read `path`: a config.json, the folder that holds it, that of an adapter or FasterTransformer, a GGUF file.

        Raises ConfigError.
        """
        path = Path(path)
        if is_gguf(path):
            return cls.from_dict(gguf_config_of(path))
        adapter = read_adapter_config(path)
        path = path if adapter is None else adapter.base
        if not (path / "config.json").is_file() and is_fastertransformer(path):
            return cls.from_dict(read_ft_config(path).data)
        path = path / "config.json" if path.is_dir() else path
        try:
            pointer = lfs_pointer_problem(path)
            if pointer is not None:
                raise ConfigError(pointer)
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no {path.name} in folder '{path.parent.name}'; a checkpoint folder has one") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
            raise ConfigError(f"{path.name} is not JSON: {e}") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MptConfig":
        """Read the object of a config.json. Raises ConfigError naming the key, its value and the fix."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"a config must be a JSON object; this one is of type {type(data).__name__}")
        model_type = data.get("model_type", "mpt")
        if model_type == "mosaic_gpt":
            data = from_mosaic_gpt(data)
        elif model_type != "mpt":
            raise ConfigError(f"config key 'model_type' is {model_type!r}; this package runs 'mpt' and 'mosaic_gpt'")
        return _read_model(ConfigReader(from_easydel(data)))

    def get_partition_rules(self, fsdp: bool = True) -> PartitionRules:
        """Return rules (regular expression on a parameter's path, PartitionSpec) for axes `fsdp` and `tensor`."""
        return get_partition_rules(fsdp)


def gguf_config_of(path: Path) -> dict[str, Any]:
    """Return the object of a config.json for the model in a GGUF file. Raises ConfigError."""
    try:
        pointer = lfs_pointer_problem(path)
        if pointer is not None:
            raise ConfigError(pointer)
        return gguf_config(read_header(path))
    except GgufError as error:
        raise ConfigError(str(error)) from None


def from_mosaic_gpt(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat keys of the 2023 `mosaic_gpt` in the sections of `mpt`."""
    out = {k: v for k, v in data.items() if k != "model_type"}
    attention: dict[str, Any] = {}
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
    refuse_quantized(r)
    read_foreign_names(r, _NAMES_IN_TRANSFORMERS)
    by_transformers = r.take("layer_norm_epsilon") is not None or r.take("initializer_range") is not None
    d_model, n_heads = r.integer("d_model"), r.integer("n_heads")
    max_seq_len = r.integer("max_seq_len", 2048)
    # transformers leaves out what equals its own defaults, which are not llm-foundry's.
    bias = not r.boolean("no_bias", by_transformers)
    learned = r.boolean("learned_pos_emb", True)
    refuse_unpublished(r, d_model // n_heads)
    refuse_other_architectures(r)
    attention = read_attention(r.section("attn_config"), n_heads, d_model, max_seq_len, by_transformers)
    config = MptConfig(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=r.integer("n_layers"),
        vocab_size=r.integer("vocab_size"),
        max_seq_len=max_seq_len,
        rms_norm=is_rms_norm(r),
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
        **read_ffn(r.section("ffn_config"), d_model * r.positive("expansion_ratio", 4)),
    )
    r.ignore(MODEL_KEYS)
    r.finish()
    return config


def _norm_eps(r: ConfigReader) -> float:
    """Return the epsilon, which llm-foundry calls norm_eps and transformers layer_norm_epsilon."""
    ours, theirs = r.optional_positive("norm_eps"), r.optional_positive("layer_norm_epsilon")
    if ours is not None and theirs is not None and ours != theirs:
        raise r.error(
            "layer_norm_epsilon", theirs, f"norm_eps is {ours}; keep the one that the weights had in training"
        )
    return ours or theirs or 1e-5


def _logit_scale(r: ConfigReader, d_model: int) -> float:
    if r.take("logit_scale") == "inv_sqrt_d_model":
        return 1.0 / math.sqrt(d_model)
    if isinstance(r.take("logit_scale"), str):
        raise r.error("logit_scale", r.take("logit_scale"), "it must be a number or 'inv_sqrt_d_model'")
    return r.number("logit_scale", 1.0)


def _dtype_name(r: ConfigReader) -> str | None:
    value = r.take("torch_dtype") or r.take("dtype")  # transformers 5 renamed it
    r.take("dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else None


def _token_ids(r: ConfigReader, key: str) -> tuple[int, ...]:
    value = r.take(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise r.error(key, value, "it must be a token id or a list of token ids")
    return tuple(values)
