"""Writes a checkpoint as a GGUF file, as llama.cpp's converter writes MPT's."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from model.checkpoint.convert import Checkpoint, check_same_numbers
from model.checkpoint.gguf_file import gguf_name
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.match import Source
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_ALIGNMENT = 32  # of each tensor's first byte


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    kind: str,
    add_tokenizer: Callable[[Any], None] | None = None,
    progress: bool | None = None,
) -> None:
    """Write a GGUF file, one tensor in memory at a time; what an interrupted call left at `path` is continued.

    That call must have had the same source (`partial_output`): only headers are compared.

    kind: of `GGUF_TYPES`, for matrices; vectors are float32. A matrix whose rows are no whole blocks is float16.
    add_tokenizer: adds what the file says of the tokenizer to the writer of gguf-py.

    Raises ConfigError where the file, as it is read here and by llama.cpp, would be of another model, and
    CheckpointError where its numbers are not those of the source.
    """
    from gguf import GGMLQuantizationType  # a second to import

    types = [GGMLQuantizationType[_type_of(source, kind)] for source in checkpoint.sources]
    header = _header(checkpoint, path, types, add_tokenizer)
    sizes = [_padded(_stored(s.spec.shape, t)[1]) for s, t in zip(checkpoint.sources, types, strict=True)]
    done, end = _complete_tensors(path, header, sizes)
    with path.open("r+b" if done is not None else "wb") as file:
        if done is None:
            file.write(header)
        file.truncate(end)
        file.seek(end)
        with LoadProgress(sum(sizes), progress, "Writing weights") as bar:
            bar.update(sum(sizes[:done]) if done else 0)
            for source, tensor_type, size in list(zip(checkpoint.sources, types, sizes, strict=True))[done or 0 :]:
                data = np.ascontiguousarray(_numbers(checkpoint, source, tensor_type)).reshape(-1).view(np.uint8)
                file.write(data.data)
                file.write(bytes(size - data.size))
                bar.update(size)
    check_same_numbers(checkpoint, Checkpoint.open(path), progress)


def _header(
    checkpoint: Checkpoint, path: Path, types: Sequence[Any], add_tokenizer: Callable[[Any], None] | None
) -> bytes:
    """Return what stands before the tensors. Raises ConfigError naming what it cannot say about the model."""
    from gguf import GGUFWriter

    sizes = [_stored(source.spec.shape, kind) for source, kind in zip(checkpoint.sources, types, strict=True)]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "header.gguf"
        writer = GGUFWriter(file, "mpt")
        _add_architecture(writer, checkpoint.config)
        if add_tokenizer is not None:
            add_tokenizer(writer)
        for source, tensor_type, (shape, nbytes) in zip(checkpoint.sources, types, sizes, strict=True):
            dtype = np.dtype(np.float32 if tensor_type.name == "F32" else np.uint8)
            writer.add_tensor_info(gguf_name(source.spec.name), shape, dtype, nbytes, raw_dtype=tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = file.read_bytes()
        header += bytes(_padded(len(header)) - len(header))
        # Zeros that take no disk: a header without tensors is no GGUF file.
        os.truncate(file, len(header) + sum(_padded(nbytes) for _, nbytes in sizes))
        _check_same_model(file, path, checkpoint.config)
    return header


def _complete_tensors(path: Path, header: bytes, sizes: Sequence[int]) -> tuple[int | None, int]:
    """Return how many tensors an interrupted call has written, None without such a file, and where they end."""
    end = len(header)
    if not path.is_file():
        return None, end
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            return None, end
    length = path.stat().st_size
    for count, size in enumerate(sizes):
        if end + size > length:
            return count, end
        end += size
    return len(sizes), end


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _check_same_model(file: Path, path: Path, config: MptConfig) -> None:
    """Raise ConfigError naming what a GGUF file cannot say about the model."""
    read = MptConfig.from_file(file)
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
