"""Compares a checkpoint's tensors with the model's table of parameters, before any number is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.folder import listed
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor, same_numbers
from model.checkpoint.weight_names import is_buffer, is_quantised, separate_qkv_names
from model.config.mpt_config import MptConfig
from model.params.weights import WeightSpec, weight_specs


@dataclass(frozen=True)
class Source:
    """A parameter and the stored tensors that it consists of, row after row."""

    spec: WeightSpec
    parts: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(part.nbytes for part in self.parts)


def match_tensors(folder: Path, tensors: Mapping[str, StoredTensor], config: MptConfig) -> list[Source]:
    """Pair every parameter with its stored tensors. Raises CheckpointError listing every difference."""
    left = dict(tensors)
    sources, missing, misshaped = [], [], []
    for spec in weight_specs(config):
        parts = []
        for name, shape in _stored_shapes(spec, left, config).items():
            part = left.pop(name, None)
            if part is None:
                missing.append(name)
            elif part.shape != shape:
                misshaped.append(f"{part.name} {list(part.shape)}, by the config {list(shape)}")
            else:
                parts.append(part)
        sources.append(Source(spec, tuple(parts)))
    _drop_tied_head(left, tensors, config)
    unexpected = [tensor.name for name, tensor in left.items() if not is_buffer(name)]
    not_float = [f"{p.name} ({p.dtype})" for source in sources for p in source.parts if not p.is_float]
    problems = {"missing": missing, "unknown": unexpected, "of another shape": misshaped, "not floats": not_float}
    lines = [f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names]
    if not lines:
        return sources
    quantised = any(map(is_quantised, unexpected))
    advice = (
        "a quantised checkpoint (AWQ, GPTQ or similar); load the original one"
        if quantised
        else "is it this checkpoint's config.json?"
    )
    raise CheckpointError(f"{folder}: the tensors do not fit the config ({advice})\n  " + "\n  ".join(lines))


def _stored_shapes(
    spec: WeightSpec, tensors: Mapping[str, StoredTensor], config: MptConfig
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes under which a parameter is stored: Wqkv fused, or as its three parts."""
    separate = separate_qkv_names(spec.name)
    if separate is None or spec.name in tensors:
        return {spec.name: spec.shape}
    if config.fused_qkv and not any(name in tensors for name in separate):
        return {spec.name: spec.shape}  # missing, under the name that the config implies
    kv_size = config.kv_n_heads * config.head_dim
    rows = (spec.shape[0] - 2 * kv_size, kv_size, kv_size)
    return {name: (n, *spec.shape[1:]) for name, n in zip(separate, rows, strict=True)}


def _drop_tied_head(left: dict[str, StoredTensor], tensors: Mapping[str, StoredTensor], config: MptConfig) -> None:
    """Drop a tied head that was saved beside the embedding. Raises CheckpointError where the two differ."""
    if not config.tied_head or "lm_head.weight" not in left or "transformer.wte.weight" not in tensors:
        return
    head = left.pop("lm_head.weight")
    embedding = tensors["transformer.wte.weight"]
    if not same_numbers(head, embedding):
        raise CheckpointError(
            f"{head.path}: 'lm_head.weight' {list(head.shape)} differs from {embedding.name!r} "
            f"{list(embedding.shape)}, but the config ties them; set tie_word_embeddings to false to use the head"
        )
