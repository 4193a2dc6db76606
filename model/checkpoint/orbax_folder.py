"""Orbax checkpoints, read and written by orbax-checkpoint, which is optional (`mpt-serve[orbax]`).

The tree has llm-foundry's names, one level for each part (`transformer`, `blocks`, `0`, ...), or Flax's. Parameters are
read one at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import CheckpointError, Computed, StoredTensor

FOLDER = "orbax"  # where `write_orbax` writes
_METADATA = "_METADATA"  # the file in the folder of a tree


def find_orbax(folder: Path) -> Path | None:
    """Return the folder of the only Orbax tree: `folder` itself, or one that is at most two levels below."""
    for pattern in (_METADATA, f"*/{_METADATA}", f"*/*/{_METADATA}"):
        found = [file.parent for file in folder.glob(pattern) if file.is_file()]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def read_orbax(folder: Path) -> dict[str, StoredTensor]:
    """Return the arrays of a tree, named by their paths joined by dots; reads descriptions only.

    Raises CheckpointError without orbax-checkpoint, and for a tree that it cannot read.
    """
    ocp = _library()
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        metadata = checkpointer.metadata(folder.absolute()).item_metadata
        if metadata is None:  # the library has logged why
            raise ValueError("its metadata is damaged, or that of another kind of object")
        leaves = jax.tree_util.tree_flatten_with_path(metadata.tree)[0]
    except Exception as error:  # the library raises those of JSON, tensorstore and its own
        raise _unreadable(folder, error) from None
    files = tuple(sorted(file for file in folder.rglob("*") if file.is_file()))
    tensors = {}
    for keys, leaf in leaves:
        path = tuple(str(getattr(key, "key", key)) for key in keys)
        if isinstance(leaf, ocp.metadata.ArrayMetadata) and leaf.dtype is not None:
            check_chunks(folder, path, leaf.shape, leaf.storage.chunk_shape if leaf.storage else None)
            tensors[".".join(path)] = _stored(folder, files, path, leaf.shape, np.dtype(leaf.dtype))
    return tensors


def check_chunks(folder: Path, path: tuple[str, ...], shape: tuple[int, ...], chunk: tuple[int, ...] | None) -> None:
    """Raise CheckpointError where an array's chunks are larger than it is: reading one would take any memory."""
    if chunk is not None and (
        len(chunk) != len(shape) or any(c > max(n, 1) for c, n in zip(chunk, shape, strict=True))
    ):
        raise CheckpointError(
            f"{folder}: {'.'.join(path)[:200]!r} is {list(shape)} in chunks of {list(chunk)}; it is damaged"
        )


def write_tree(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, named by their paths joined by dots, as a tree to `folder`, replacing what is there.

    Raises CheckpointError without orbax-checkpoint.
    """
    ocp = _library()
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *outer, last = name.split(".")
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = array
    ocp.PyTreeCheckpointer().save(folder.absolute(), tree, force=True)


def _library() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"Orbax checkpoints need the package orbax-checkpoint ({error}): pip install 'mpt-serve[orbax]'"
        ) from None
    return orbax.checkpoint


def _stored(
    folder: Path, files: tuple[Path, ...], path: tuple[str, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> StoredTensor:
    name = ".".join(path)

    def numbers() -> NDArray[np.float32]:
        found = _restore(folder, path)
        if found.shape != tuple(shape):
            raise CheckpointError(f"{folder}: {name!r} is {list(found.shape)}, by the metadata {list(shape)}")
        return found.astype(np.float32)

    computed = Computed((), numbers, files)
    return StoredTensor(folder / _METADATA, name, 0, dtype, tuple(shape), computed=computed)


def _restore(folder: Path, path: tuple[str, ...]) -> NDArray[Any]:
    """Return one array of a tree."""
    ocp = _library()
    item: Any = 0
    arguments: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for part in reversed(path):
        item, arguments = {part: item}, {part: arguments}
    request = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
    try:
        found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder.absolute(), args=request)
        for part in path:
            found = found[part]
        return np.asarray(found)
    except Exception as error:  # as above
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return CheckpointError(f"{folder}: orbax-checkpoint cannot read it ({reason}); is it complete?")
