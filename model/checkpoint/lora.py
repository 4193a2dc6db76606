"""PEFT LoRA adapters, merged into the base model's tensors while these are read."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, LowRank, StoredTensor
from model.checkpoint.torch_file import read_torch
from model.checkpoint.weight_names import canonical_name
from model.config.adapter import AdapterConfig

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = re.compile(r"(base_model\.model\.)+")
_MATRIX = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?")
_SAVED = re.compile(r"(.+?)(\.modules_to_save|\.original_module|\.base_layer)?(\.default)?\.(weight|bias)")


def merge_adapter(folder: Path, config: AdapterConfig, base: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the base model's tensors as the adapter in `folder` changes them; nothing is read but headers.

    Raises CheckpointError where the adapter has no weights, names a module that the base lacks, or does not fit it.
    """
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: an adapter without weights: one of {', '.join(ADAPTER_FILES)} is needed")
    stored = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    merged = dict(base)
    factors: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        plain = _PREFIX.sub("", name, count=1)
        if match := _MATRIX.fullmatch(plain):
            factors.setdefault((match[1], match[2] is not None), {})[match[3]] = tensor
        elif (saved := _SAVED.fullmatch(plain)) and canonical_name(f"{saved[1]}.{saved[4]}") in merged:
            merged[canonical_name(f"{saved[1]}.{saved[4]}")] = tensor  # trained as a whole
        else:
            raise CheckpointError(f"{file}: {name[:200]!r} belongs to no parameter of the base model {config.base}")
    for (module, embedding), pair in factors.items():
        target = canonical_name(f"{module}.weight")
        if target not in merged:
            raise CheckpointError(f"{file}: adapts {module[:200]!r}, which the base model {config.base} does not have")
        merged[target] = replace(merged[target], delta=_delta(file, module, embedding, pair, merged[target], config))
    return merged


def _delta(
    file: Path,
    module: str,
    embedding: bool,
    pair: Mapping[str, StoredTensor],
    base: StoredTensor,
    config: AdapterConfig,
) -> LowRank:
    if pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{file}: {module[:200]!r} has only one of lora_A and lora_B")
    left, right = pair["B"], pair["A"]  # [N, r] and [r, K]
    if embedding:  # their product is the transpose of what is added
        left, right = _transposed(right), _transposed(left)
    if len(left.shape) != 2 or len(right.shape) != 2 or (left.shape[0], right.shape[1]) != base.shape:
        raise CheckpointError(
            f"{file}: lora_B and lora_A of {module[:200]!r} are {list(pair['B'].shape)} and {list(pair['A'].shape)},"
            f" which does not fit {list(base.shape)} of the base model"
        )
    if left.shape[1] != right.shape[0]:
        raise CheckpointError(f"{file}: lora_A and lora_B of {module[:200]!r} have different ranks")
    return LowRank(left, right, config.scale(module))


def _transposed(tensor: StoredTensor) -> StoredTensor:
    if len(tensor.shape) != 2 or tensor.strides is not None:
        return tensor
    rows, columns = tensor.shape
    return replace(tensor, shape=(columns, rows), strides=(1, columns))
