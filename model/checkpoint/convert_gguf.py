"""Writes a checkpoint as a GGUF file, as llama.cpp's converter writes MPT's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.convert import Checkpoint
from model.checkpoint.gguf_file import gguf_name
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.match import Source
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    kind: str,
    add_tokenizer: Callable[[Any], None] | None = None,
    progress: bool | None = None,
) -> None:
    """Write a GGUF file atomically; one tensor is in memory at a time.

    kind: of `GGUF_TYPES`, for matrices; vectors are float32. A matrix whose rows are no whole blocks is float16.
    add_tokenizer: adds what the file says of the tokenizer to the writer of gguf-py.

    Raises ConfigError where the file, as it is read here and by llama.cpp, would be of another model.
    """
    from gguf import GGMLQuantizationType, GGUFWriter  # a second to import

    with atomic_write(path) as temporary:
        writer = GGUFWriter(temporary, "mpt")
        _add_architecture(writer, checkpoint.config)
        if add_tokenizer is not None:
            add_tokenizer(writer)
        types = [GGMLQuantizationType[_type_of(source, kind)] for source in checkpoint.sources]
        for source, tensor_type in zip(checkpoint.sources, types, strict=True):
            shape, nbytes = _stored(source.spec.shape, tensor_type)
            dtype = np.dtype(np.float32 if tensor_type.name == "F32" else np.uint8)
            writer.add_tensor_info(gguf_name(source.spec.name), shape, dtype, nbytes, raw_dtype=tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with LoadProgress(sum(source.nbytes for source in checkpoint.sources), progress) as bar:
            for source, tensor_type in zip(checkpoint.sources, types, strict=True):
                writer.write_tensor_data(_numbers(checkpoint, source, tensor_type))
                bar.update(source.nbytes)
        writer.close()
        _check_same_model(temporary, path, checkpoint.config)


def _check_same_model(temporary: Path, path: Path, config: MptConfig) -> None:
    """Raise ConfigError naming what a GGUF file cannot say about the model."""
    named = temporary.with_suffix(".gguf")
    temporary.rename(named)
    try:
        read = MptConfig.from_file(named)
    finally:
        named.rename(temporary)
    free = {"torch_dtype", "bos_token_id", "eos_token_ids", "pad_token_id", "fused_qkv"}
    lost = [name for name in vars(config) if name not in free and getattr(read, name) != getattr(config, name)]
    if lost:
        values = ", ".join(f"{name} ({str(getattr(config, name))[:40]})" for name in lost[:5])
        raise ConfigError(f"{path}: a GGUF file cannot represent this model, for it has no place for {values}")


def _add_architecture(writer: Any, config: MptConfig) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_hidden_size)
    writer.add_head_count(config.n_heads)
    if config.kv_n_heads != config.n_heads:
        writer.add_head_count_kv(config.kv_n_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    if config.clip_qkv is not None:
        writer.add_clamp_kqv(config.clip_qkv)
    writer.add_max_alibi_bias(config.alibi_bias_max if config.alibi else 0.0)


def _type_of(source: Source, kind: str) -> str:
    if len(source.spec.shape) == 1:
        return "F32"
    return "F16" if kind.startswith("q") and source.spec.shape[-1] % 32 else kind.upper()


def _stored(shape: tuple[int, ...], tensor_type: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape as gguf-py wants it, in bytes for types of blocks, and the number of bytes."""
    from gguf import GGML_QUANT_SIZES

    elements, nbytes = GGML_QUANT_SIZES[tensor_type]
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    width = shape[-1] // elements * nbytes
    return (shape if elements == 1 and nbytes == 4 else (*shape[:-1], width)), rows * width


def _numbers(checkpoint: Checkpoint, source: Source, tensor_type: Any) -> NDArray[Any]:
    from gguf import quants

    if tensor_type.name in ("F16", "BF16"):
        dtype = np.dtype(np.float16 if tensor_type.name == "F16" else ml_dtypes.bfloat16)
        return checkpoint.read(source, dtype).view(np.uint8)
    numbers = checkpoint.read(source, np.dtype(np.float32))
    return numbers if tensor_type.name == "F32" else quants.quantize(numbers, tensor_type)
