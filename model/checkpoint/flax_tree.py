"""Names and layouts of Flax's parameters, as EasyDeL's MPT has them, and the family's names for them.

| Flax | here |
|---|---|
| kernel [in, out] | weight [out, in] |
| embedding, scale | weight |
| h | blocks |
| attn.w_qkv, attn.wo | attn.Wqkv, attn.out_proj |
| ffn.up, ffn.down | ffn.up_proj, ffn.down_proj |

The left names of the last three rows are those of EasyDeL's first releases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from model.checkpoint.stored_tensor import CheckpointError, StoredTensor

Path = tuple[str, ...]

_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_MODULES = {"h": "blocks", "w_qkv": "Wqkv", "wo": "out_proj", "up": "up_proj", "down": "down_proj"}
_OUTER = ("params", "model", "graphstate")  # around the model's own tree
_VALUE = "value"  # an nnx.Param's own leaf


def is_flax(names: Iterable[str]) -> bool:
    """Return whether tensors are named as Flax's parameters are, their paths joined by dots."""
    return any(name.endswith((".kernel", ".kernel.value")) for name in names)


def flax_tensors(leaves: Mapping[Path, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a tree of parameters by llm-foundry's names; kernels are transposed while they are read.

    Of a training state (`params` beside others) the parameters alone. Raises CheckpointError where two have one name.
    """
    if any(path[0] == "params" for path in leaves):
        leaves = {path: tensor for path, tensor in leaves.items() if path[0] == "params"}
    tensors: dict[str, StoredTensor] = {}
    for path, tensor in leaves.items():
        name, transposed = _family_name(path)
        if name in tensors:
            raise CheckpointError(f"{tensor.path}: {tensors[name].name!r} and {tensor.name!r} are the same parameter")
        tensors[name] = transpose(tensor) if transposed else tensor
    return tensors


def transpose(tensor: StoredTensor) -> StoredTensor:
    """Return a dense matrix with its rows and columns exchanged; nothing is moved before it is read."""
    if len(tensor.shape) != 2 or tensor.strides is not None:
        raise CheckpointError(
            f"{tensor.path}: {tensor.name[:200]!r} has the shape {list(tensor.shape)}; a kernel is a matrix [in, out]"
        )
    rows, columns = tensor.shape
    if tensor.computed is not None:
        numbers = tensor.computed.numbers
        computed = replace(tensor.computed, numbers=lambda: numbers().T.copy())
        return replace(tensor, shape=(columns, rows), computed=computed)
    return replace(tensor, shape=(columns, rows), strides=(1, columns))


def _family_name(path: Path) -> tuple[str, bool]:
    """Return llm-foundry's name of a parameter, and whether it is stored transposed."""
    parts = list(path[:-1] if path[-1] == _VALUE else path)
    while len(parts) > 1 and parts[0] in _OUTER:
        parts.pop(0)
    leaf = parts.pop()
    modules = [_MODULES.get(part, part) for part in parts]
    return ".".join([*modules, _LEAVES.get(leaf, leaf)]), leaf == "kernel"
