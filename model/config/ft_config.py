"""The architecture of a FasterTransformer folder of llm-foundry's converter as the keys of a config.json."""

import configparser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config.lfs_pointer import lfs_pointer_problem
from model.config.strict_reader import ConfigError

FILE = "config.ini"
_MAX_BYTES = 2**16
_TYPES = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class FasterTransformerConfig:
    """What config.ini says. devices: over how many the matrices are cut. data: the object of a config.json."""

    devices: int
    data: dict[str, Any]


def is_fastertransformer(folder: Path) -> bool:
    """Return whether a folder is a FasterTransformer model."""
    return (folder / FILE).is_file() and (folder / "model.wte.bin").is_file()


def read_ft_config(folder: Path) -> FasterTransformerConfig:
    """Read config.ini. Raises ConfigError naming what is missing or wrong.

    The converter refuses clip_qkv and norms of queries and keys, and knows neither alibi_bias_max nor softmax_scale:
    they have their defaults. Where the model has no biases it writes zeros, so all are read.
    """
    file = folder / FILE
    pointer = lfs_pointer_problem(file)
    if pointer is not None:
        raise ConfigError(pointer)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        text = file.read_bytes()[:_MAX_BYTES].decode("utf-8")
        parser.read_string(text)
        section = dict(parser["gpt"])
    except (UnicodeDecodeError, configparser.Error, KeyError) as error:
        kind = "has no section [gpt]" if isinstance(error, KeyError) else f"is no INI file ({str(error)[:200]})"
        raise ConfigError(f"{file} {kind}; FasterTransformer's MPT has one") from None

    def integer(key: str) -> int:
        value = section.get(key, "")
        if not value.isdecimal() or not 0 < int(value) < 2**31:
            raise ConfigError(f"{file}: {key} is {value[:60]!r}; it must be an integer of at least 1")
        return int(value)

    heads, width = integer("head_num"), integer("size_per_head")
    kind = section.get("weight_data_type", "")
    if kind not in _TYPES:
        raise ConfigError(f"{file}: weight_data_type is {kind[:60]!r}; {' and '.join(_TYPES)} are read")
    alibi = section.get("use_attention_linear_bias", "False") == "True"
    try:
        eps = float(section.get("layernorm_eps", "1e-5"))
    except ValueError:
        raise ConfigError(f"{file}: layernorm_eps is {section['layernorm_eps'][:60]!r}; it must be a number") from None
    return FasterTransformerConfig(
        integer("tensor_para_size"),
        {
            "model_type": "mpt",
            "d_model": heads * width,
            "n_heads": heads,
            "n_layers": integer("num_layer"),
            "vocab_size": integer("vocab_size"),
            "max_seq_len": integer("max_pos_seq_len"),
            "norm_eps": eps,
            "no_bias": False,
            "learned_pos_emb": not alibi,
            "tie_word_embeddings": not (folder / "model.lm_head.weight.bin").is_file(),
            "torch_dtype": _TYPES[kind],
            "attn_config": {"alibi": alibi},
            "ffn_config": {"ffn_hidden_size": integer("inter_size")},
            **{
                key: _token(section.get(name))
                for key, name in (("bos_token_id", "start_id"), ("eos_token_id", "end_id"))
            },
        },
    )


def _token(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdecimal() else None
