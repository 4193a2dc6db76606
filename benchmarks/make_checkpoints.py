"""Write MPT checkpoints of random weights, for measurements of speed: every engine of the comparison reads them.

    python benchmarks/make_checkpoints.py FOLDER [SIZE ...] [--tokenizer FOLDER]

| size | shape |
|---|---|
| M | 253 million parameters: 16 layers of 1,024 |
| L | 1.3 billion: 24 layers of 2,048 |
| 7b | mpt-7b: 32 layers of 4,096, 2,048 tokens of context, 13.3 GB |
| storywriter | mpt-7b-storywriter: as 7b with clip_qkv 6, alibi_bias_max 16 and 65,536 tokens |
| krutrim | Krutrim-1: 32 layers of 4,608, 48 heads on 8 of keys and values, 70,400 ids, 4,096 tokens, 13 GB |
| 30b-gptq | mpt-30b as GPTQ of 4 bits: 48 layers of 7,168, 8,192 tokens, 16 GB |

Without SIZE it writes M and L. All but the last are bfloat16 safetensors in the Hugging Face layout, normal with
standard deviation 0.02, norms 1; the last has random integers in groups of 128 with one scale. Tensors are written one
by one, so that memory does not limit the size. Speed does not depend on the values of the weights, and decoding ignores
end-of-sequence ids.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config.mpt_config import MptConfig
from model.params.weights import WeightSpec, weight_specs

_SHARD_BYTES = 10 * 10**9  # as mpt-7b was published: one shard of 10 GB, and the rest
_CHUNK = 2**23  # numbers that a thread makes at a time
_GROUP = 128
_SCALE = 0.02 / 4.6  # integers from 0 to 15 that are equally frequent deviate by 4.6


@dataclass(frozen=True)
class Size:
    """A shape. attn: what differs in attn_config. gptq: matrices are 4-bit integers."""

    d_model: int
    n_layers: int
    n_heads: int
    max_seq_len: int = 2048
    vocab_size: int = 50432
    attn: tuple[tuple[str, Any], ...] = ()
    gptq: bool = False


SIZES = {
    "M": Size(1024, 16, 16),
    "L": Size(2048, 24, 16),
    "7b": Size(4096, 32, 32),
    "storywriter": Size(4096, 32, 32, 65536, attn=(("alibi_bias_max", 16), ("clip_qkv", 6))),
    "krutrim": Size(4608, 32, 48, 4096, 70400, (("attn_type", "grouped_query_attention"), ("kv_n_heads", 8))),
    "30b-gptq": Size(7168, 48, 64, 8192, gptq=True),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its name, safetensors' name of its dtype, shape, size, and what makes its bytes in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: Callable[[], Iterator[NDArray[Any]]]


def config_of(size: str) -> dict[str, Any]:
    shape = SIZES[size]
    config: dict[str, Any] = {
        "architectures": ["MPTForCausalLM"],  # the name that llama.cpp's converter knows
        "model_type": "mpt",
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "expansion_ratio": 4,
        "max_seq_len": shape.max_seq_len,
        "vocab_size": shape.vocab_size,
        "no_bias": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_pdrop": 0,  # an integer: transformers 5 refuses 0.0
            "attn_type": "multihead_attention",
            "clip_qkv": None,
            "qk_ln": False,
            "softmax_scale": None,
            **dict(shape.attn),
        },
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "use_cache": True,
        "tie_word_embeddings": True,
        "torch_dtype": "float16" if shape.gptq else "bfloat16",
    }
    if shape.gptq:
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "sym": True}
        config["quantization_config"]["desc_act"] = False
    return config


def make(size: str, folder: Path, tokenizer: Path | None) -> None:
    config = config_of(size)
    specs = weight_specs(MptConfig.from_dict({k: v for k, v in config.items() if k != "quantization_config"}))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [tensor for number, spec in enumerate(specs) for tensor in _tensors(spec, number, SIZES[size].gptq)]
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        for file in tokenizer.glob("tokenizer*"):  # not the weights of a whole checkpoint
            shutil.copy(file, folder)
    parameters = sum(math.prod(spec.shape) for spec in specs)
    print(f"{folder}: {parameters / 1e6:.1f} million parameters, {sum(t.nbytes for t in tensors) / 1e9:.1f} GB")


def _tensors(spec: WeightSpec, seed: int, gptq: bool) -> Iterator[Tensor]:
    if spec.initial != "normal":
        value = np.full(spec.shape, 1 if spec.initial == "ones" else 0, np.float16 if gptq else ml_dtypes.bfloat16)
        yield Tensor(spec.name, "F16" if gptq else "BF16", spec.shape, value.nbytes, lambda: iter([value]))
    elif not gptq or not spec.path.endswith(("_proj/weight", "wqkv/weight")):
        dtype = np.dtype(np.float16 if gptq else ml_dtypes.bfloat16)
        parts = lambda: _normal(math.prod(spec.shape), seed, dtype)  # noqa: E731
        yield Tensor(spec.name, "F16" if gptq else "BF16", spec.shape, 2 * math.prod(spec.shape), parts)
    else:
        N, K = spec.shape
        stem = spec.name.removesuffix(".weight")
        words = lambda: _integers(K // 8 * N, seed)  # noqa: E731
        yield Tensor(f"{stem}.qweight", "I32", (K // 8, N), K // 2 * N, words)
        zeros = np.full((K // _GROUP, N // 8), 0x77777777, np.int32)  # eight zero points of 8, each stored less 1
        yield Tensor(f"{stem}.qzeros", "I32", zeros.shape, zeros.nbytes, lambda: iter([zeros]))
        scales = np.full((K // _GROUP, N), _SCALE, np.float16)
        yield Tensor(f"{stem}.scales", "F16", scales.shape, scales.nbytes, lambda: iter([scales]))


def _normal(count: int, seed: int, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    def part(start: int) -> NDArray[Any]:
        numbers = np.random.default_rng((seed, start)).standard_normal(min(_CHUNK, count - start), np.float32)
        numbers *= np.float32(0.02)
        return numbers.astype(dtype)

    yield from _in_order(part, range(0, count, _CHUNK))


def _integers(count: int, seed: int) -> Iterator[NDArray[np.int32]]:
    def part(start: int) -> NDArray[np.int32]:
        size = min(_CHUNK, count - start)
        return np.frombuffer(np.random.default_rng((seed, start)).bytes(4 * size), np.int32)

    yield from _in_order(part, range(0, count, _CHUNK))


def _in_order(part: Callable[[int], NDArray[Any]], starts: range) -> Iterator[NDArray[Any]]:
    """Yield the parts in order, made by as many threads as there are cores, few of them ahead of their use."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as executor:
        for first in range(0, len(starts), 2 * cores):
            yield from executor.map(part, starts[first : first + 2 * cores])


def _write(path: Path, tensors: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            for part in tensor.parts():
                file.write(part.reshape(-1).view(np.uint8).data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sizes", nargs="*", default=["M", "L"], metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--tokenizer", type=Path, help="files to copy beside the weights; llama.cpp's converter asks")
    options = parser.parse_args()
    for size in options.sizes:
        if size not in SIZES:
            parser.error(f"no size {size!r}; there are {', '.join(SIZES)}")
        make(size, options.folder / size, options.tokenizer)


if __name__ == "__main__":
    main()
