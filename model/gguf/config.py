"""The architecture of a GGUF file as the keys of a config.json."""

from collections.abc import Mapping
from typing import Any

from model.gguf.header import GgufError, GgufHeader, GgufTensor

_READ = frozenset(
    {
        "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.layer_norm_epsilon", "attention.clamp_kqv", "attention.max_alibi_bias",
        "attention.key_length", "attention.value_length", "vocab_size",
    }
)  # fmt: skip
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """Return the object of a config.json for the model in a file.

    What llama.cpp writes leaves some to the tensors: biases, the head, norms of queries and keys, the width of the
    feed-forward part. Quantised tensors are float32 once they are read. Raises GgufError for another architecture.
    """
    data = header.metadata
    kind = data.get("general.architecture")
    if kind != "mpt":
        raise GgufError(f"{header.path}: general.architecture is {str(kind)[:60]!r}; this package runs 'mpt'")
    unknown = sorted(key for key in data if key.startswith("mpt.") and key.removeprefix("mpt.") not in _READ)
    if unknown:
        raise GgufError(f"{header.path}: no MPT model is known to have {', '.join(unknown)[:300]}")
    d_model, heads = _size(header, "embedding_length"), _size(header, "attention.head_count")
    tensors = header.tensors
    embedding, query = _tensor(header, "token_embd.weight"), tensors.get("blk.0.attn_q_norm.weight")
    clip, alibi = data.get("mpt.attention.clamp_kqv"), data.get("mpt.attention.max_alibi_bias") or 0
    kv_heads = data.get("mpt.attention.head_count_kv", heads)
    attention = {
        "attn_type": "multihead_attention" if kv_heads == heads else "grouped_query_attention",
        "kv_n_heads": kv_heads,
        "clip_qkv": clip or None,
        "alibi": alibi > 0,
        **({"alibi_bias_max": alibi} if alibi > 0 else {}),
        "qk_ln": query is not None and query.shape != (d_model // heads,),
        "qk_gn": query is not None and query.shape == (d_model // heads,),
    }
    widths = {data[key] for key in ("mpt.attention.key_length", "mpt.attention.value_length") if key in data}
    return {
        "model_type": "mpt",
        "d_model": d_model,
        "n_heads": heads,
        "n_layers": _size(header, "block_count"),
        "max_seq_len": _size(header, "context_length"),
        "vocab_size": embedding.shape[0],
        "no_bias": "output_norm.bias" not in tensors,
        "attention_bias": "blk.0.attn_qkv.bias" in tensors,
        "norm_eps": data.get("mpt.attention.layer_norm_epsilon"),
        "learned_pos_emb": "position_embd.weight" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "head_dim": next((width for width in sorted(widths) if width != d_model // heads), None),
        "torch_dtype": _FLOATS.get(_tensor(header, "blk.0.ffn_up.weight").type.name, "float32"),
        "attn_config": attention,
        "ffn_config": {
            "ffn_hidden_size": _tensor(header, "blk.0.ffn_up.weight").shape[0],
            "ffn_type": "mptglu" if "blk.0.ffn_gate.weight" in tensors else "mptmlp",
        },
        **_token_ids(data),
    }


def _size(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"mpt.{key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GgufError(f"{header.path}: mpt.{key} is {str(value)[:60]}; it must be an integer of at least 1")
    return value


def _tensor(header: GgufHeader, name: str) -> GgufTensor:
    tensor = header.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        split = "; it may be in another part of a split file, which must begin with the first" if tensor is None else ""
        raise GgufError(f"{header.path}: there is no matrix {name!r}, which every MPT has{split}")
    return tensor


def _token_ids(data: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: data.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}
