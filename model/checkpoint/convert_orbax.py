"""Writes a checkpoint as an Orbax tree, beside a config.json."""

import json
import shutil
from pathlib import Path

import numpy as np

from model.checkpoint.convert import Checkpoint, check_same_numbers, write_safetensors
from model.checkpoint.folder import find_tensors
from model.checkpoint.orbax_folder import FOLDER, write_tree

_INTERMEDIATE = ".weights"


def write_orbax(checkpoint: Checkpoint, folder: Path, dtype: str | None = None, progress: bool | None = None) -> None:
    """Write config.json and an Orbax tree with llm-foundry's names to a folder, created where missing.

    Orbax takes all arrays at once. They are written to files first, which it reads as memory maps, so that the memory
    that the process needs is not that of the model; the disk holds the weights twice until the end. What an interrupted
    call has written to those files stays.

    Raises CheckpointError without orbax-checkpoint, and as `write_safetensors`.
    """
    intermediate = folder / _INTERMEDIATE
    write_safetensors(checkpoint, intermediate, "llm-foundry", dtype, progress)
    arrays = {
        name: np.memmap(tensor.path, tensor.dtype, "r", tensor.offset, tensor.shape)
        for name, tensor in find_tensors(intermediate).items()
    }
    write_tree(folder / FOLDER, arrays)
    config = json.loads((intermediate / "config.json").read_text(encoding="utf-8"))
    shutil.rmtree(intermediate)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    check_same_numbers(checkpoint, Checkpoint.open(folder), progress)
