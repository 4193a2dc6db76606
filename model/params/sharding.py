"""Devices as a mesh of axes `fsdp` and `tensor`, and the placement of every parameter on it.

`tensor` splits the work of a layer as Megatron-LM does: the first product of each pair by its outputs (heads, hidden
units), the second by its inputs, so that one sum per pair crosses devices. `fsdp` splits the other dimension of the
same weights to save memory; XLA gathers them when they are used.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from model.config.mpt_config import MptConfig
from model.config.partition_rules import PartitionRules, get_partition_rules
from model.params.weights import Weights, assemble_weights, path_name, weight_specs

Tree = TypeVar("Tree")


def make_mesh(tensor: int | None = None, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh [fsdp, tensor] over `devices` (default: all); `tensor` None takes all that `fsdp` leaves.

    Raises ValueError where the sizes do not use every device exactly once.
    """
    devices = jax.devices() if devices is None else devices
    if tensor is None:
        tensor = max(1, len(devices) // max(1, fsdp))
    if fsdp < 1 or tensor < 1 or fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh of fsdp {fsdp} x tensor {tensor} needs {fsdp * tensor} devices, there are {len(devices)}; "
            f"choose sizes whose product is that, or pass the devices to use"
        )
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"), axis_types=auto, devices=devices)


def match_partition_rules(rules: PartitionRules, tree: Tree) -> Tree:
    """Return a tree like `tree` (weights, their gradients, an optimizer's state) with each leaf's PartitionSpec.

    Scalars are replicated. Raises ValueError naming a leaf that no rule matches, or whose rule has more axes than it.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        name, shape = path_name(path), np.shape(leaf)
        if not shape:
            return PartitionSpec()
        found = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if found is None:
            raise ValueError(f"no partition rule matches the parameter '{name}' {shape}; add one for its path")
        if len(found) > len(shape):
            raise ValueError(
                f"the partition rule for '{name}' has {len(found)} axes, the parameter {len(shape)}: {shape}"
            )
        return found

    matched: Tree = jax.tree_util.tree_map_with_path(spec, tree)
    return matched


def named_shardings(mesh: Mesh, rules: PartitionRules, tree: Tree) -> Tree:
    """Return a tree like `tree` with each leaf's NamedSharding on `mesh`.

    A dimension that its axis does not divide (an odd vocabulary) is kept whole instead. Raises as
    `match_partition_rules`.
    """

    def named(leaf: Any, spec: PartitionSpec) -> NamedSharding:
        sizes = np.shape(leaf)[: len(spec)]
        fits = (axis if axis and n % mesh.shape[axis] == 0 else None for n, axis in zip(sizes, spec, strict=True))
        return NamedSharding(mesh, PartitionSpec(*fits))

    shardings: Tree = jax.tree.map(named, tree, match_partition_rules(rules, tree))
    return shardings


def weight_shardings(config: MptConfig, mesh: Mesh, fsdp: bool = True) -> Weights:
    """Return where each parameter goes on `mesh`, as `load_weights` takes it.

    Its `Attention.shards` is the mesh's tensor size. Raises ValueError where that does not divide the heads.
    """
    tensor = check_mesh(config, mesh)
    leaves = {s.path: jax.ShapeDtypeStruct(s.shape, np.float32) for s in weight_specs(config)}
    abstract = assemble_weights(config, leaves, tensor)  # shapes stand for arrays
    return named_shardings(mesh, get_partition_rules(fsdp), abstract)


def cache_sharding(config: MptConfig, mesh: Mesh) -> NamedSharding:
    """Return where a pool [num_blocks, Hkv, block_size, hd] of the KV cache goes: each shard holds its own heads.

    Raises ValueError as `check_mesh`.
    """
    check_mesh(config, mesh)
    return NamedSharding(mesh, PartitionSpec(None, "tensor"))


def check_mesh(config: MptConfig, mesh: Mesh) -> int:
    """Return the mesh's tensor size.

    Raises ValueError where the mesh has other axes, or its tensor size does not divide the key/value heads.
    """
    if set(mesh.axis_names) != {"fsdp", "tensor"}:
        raise ValueError(f"the mesh has axes {mesh.axis_names}; 'fsdp' and 'tensor' are needed (see make_mesh)")
    tensor: int = mesh.shape["tensor"]
    if config.kv_n_heads % tensor:
        sizes = [n for n in range(1, config.kv_n_heads + 1) if config.kv_n_heads % n == 0]
        raise ValueError(
            f"{config.kv_n_heads} key/value heads cannot be split over tensor = {tensor} devices; "
            f"use one of {sizes} for tensor and the other devices for fsdp or for replicas"
        )
    return tensor
