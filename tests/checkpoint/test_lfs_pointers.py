"""Files that a clone without Git LFS has in place of weights."""

import json
from pathlib import Path

import pytest
from ft_writer import write_fastertransformer

from model.checkpoint.folder import find_tensors
from model.checkpoint.stored_tensor import CheckpointError
from model.config.lfs_pointer import lfs_pointer_problem
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13298573824\n"


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "easydel-model.parameters"),
        *("flax_model.msgpack", "ep0-ba1-rank0.pt"),
    ],
)
def test_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*13,298,573,824 bytes.*git lfs pull"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_shards_are_named(tmp_path: Path, name: str) -> None:
    index = "model.safetensors.index.json" if name.endswith("safetensors") else "pytorch_model.bin.index.json"
    (tmp_path / index).write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("name", ["config.ini", "model.wte.bin", "model.layers.0.mlp.dense_h_to_4h.weight.0.bin"])
def test_files_of_fastertransformer_are_named(tmp_path: Path, name: str) -> None:
    write_fastertransformer(tmp_path)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer"):
        find_tensors(tmp_path)
    if name == "config.ini":
        with pytest.raises(ConfigError, match=r"config\.ini is a Git LFS pointer"):
            MptConfig.from_file(tmp_path)


def test_other_files_are_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "those of the real one" in (lfs_pointer_problem(file) or "")
    for text in ("", "{}", "version 2\n"):
        file.write_text(text)
        assert lfs_pointer_problem(file) is None
