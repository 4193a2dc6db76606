"""Writes GGUF files as llama.cpp's converter does for MPT, with the gguf package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model.checkpoint.gguf_file import gguf_name
from model.params.weights import weight_specs

QUANTISED = [kind for kind in GGMLQuantizationType if kind in gguf.quants._type_traits]


def write_gguf(
    path: Path,
    config: Any,
    tensors: Mapping[str, NDArray[Any]],
    tokenizer: Tokenizer | None = None,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    **metadata: Any,
) -> Path:
    """Write tensors by llm-foundry's names; matrices in `kind` where their rows have whole blocks."""
    writer = GGUFWriter(path, "mpt")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(4 * config.d_model)
    writer.add_head_count(config.n_heads)
    if config.kv_n_heads != config.n_heads:
        writer.add_head_count_kv(config.kv_n_heads)
    writer.add_layer_norm_eps(1e-5)
    if config.clip_qkv:
        writer.add_clamp_kqv(config.clip_qkv)
    writer.add_max_alibi_bias(config.alibi_bias_max if config.alibi else 0.0)
    if tokenizer is not None:
        add_vocabulary(writer, tokenizer, config.vocab_size)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for spec in weight_specs(config):
        if spec.name not in tensors:
            continue
        array = np.asarray(tensors[spec.name], np.float32)
        if array.ndim == 2:
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(gguf_name(spec.name), array, raw_dtype=kind if array.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Write a byte-level vocabulary, with unused tokens up to the size of the model's embedding."""
    vocab = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(size):
        token = vocab.get(i, f"[PAD{i}]")
        kind = gguf.TokenType.NORMAL if i in vocab else gguf.TokenType.UNUSED
        if i in added:
            kind = gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED
        tokens.append(token)
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("mpt")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or ["a b"])
    end = tokenizer.token_to_id("<|endoftext|>")
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_unk_token_id(end)
