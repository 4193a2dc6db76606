"""mpt_from_pretrained and resolve_checkpoint: folders, hub ids, devices, and never a repository's own code."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_writer import write_easydel
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from tiny_model import TINY, checkpoint_arrays, random_weights
from torch_writer import write_arrays

from model.checkpoint.save import save_checkpoint
from model.checkpoint.stored_tensor import CheckpointError
from model.params.sharding import make_mesh
from model.pretrained import mpt_from_pretrained, resolve_checkpoint


def test_loads_a_folder(save: Callable[..., Path]) -> None:
    weights, config = mpt_from_pretrained(save())
    jax.tree.map(np.testing.assert_array_equal, weights, random_weights(TINY))
    assert config.d_model == 16


@pytest.mark.parametrize("device", ["cpu", jax.devices("cpu")[0]])
def test_device_and_dtype(save: Callable[..., Path], device: Any) -> None:
    weights, _ = mpt_from_pretrained(str(save()), device=device, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}
    assert weights.wte.devices() == {jax.devices("cpu")[0]}


def test_mesh(save: Callable[..., Path]) -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    weights, _ = mpt_from_pretrained(save(), mesh=mesh)
    assert weights.wte.sharding.mesh == mesh
    with pytest.raises(ValueError, match="a device or a mesh, not both"):
        mpt_from_pretrained(save(overwrite=True), device="cpu", mesh=mesh)


def test_device_that_is_not_there(save: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"device 'abacus' is not there; this machine has .*cpu"):
        mpt_from_pretrained(save(), device="abacus")


def test_auto_map_is_never_followed(save: Callable[..., Path], tmp_path: Path) -> None:
    """A repository's Python would leave a marker if it were imported or run."""
    folder, marker = save(), tmp_path / "marker"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_mpt.MPTConfig",
        "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for module in ("configuration_mpt", "modeling_mpt", "__init__"):
        (folder / f"{module}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    weights, _ = mpt_from_pretrained(folder)
    assert weights.wte.shape == (40, 16)
    assert not marker.exists()
    assert not {"configuration_mpt", "modeling_mpt"} & sys.modules.keys()


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./missing", "just-a-name", "a/b/c", "~/nowhere-at-all", "", "x y/z"]
)
def test_paths_that_are_not_there(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"(no folder|holds no).*config\.json, tokenizer\.json and one of model\."
    ):
        resolve_checkpoint(name)


def test_folders_that_are_not_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json.*found: nothing"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no weights.*pytorch_model\.bin.*found: config\.json"):
        resolve_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_checkpoint(tmp_path / "config.json")


class Hub:
    """Stands for the hub: a repository's files, of which snapshot_download copies those that are requested."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.requests: list[tuple[str, str | None]] = []

    def snapshot_download(self, repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.requests.append((repo_id, revision))
        self.cache.mkdir(exist_ok=True)
        for file in self.repository.iterdir():
            if any(Path(file.name).match(pattern) for pattern in allow_patterns):
                (self.cache / file.name).write_bytes(file.read_bytes())
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("modeling_mpt.py", "README.md", "training_args.bin", "optimizer.pt", "tokenizer.json"):
        (repository / name).write_text("{}")
    (repository / "config.json").write_text(json.dumps(TINY))
    fake = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_hub_gives_safetensors_and_no_code(hub: Hub) -> None:
    save_checkpoint(random_weights(TINY), TINY, hub.repository, max_shard_bytes=5000)
    write_arrays(hub.repository / "pytorch_model.bin", checkpoint_arrays(TINY))
    weights, _ = mpt_from_pretrained("someone/mpt-7b", revision="v1")
    assert weights.wte.shape == (40, 16)
    assert hub.requests == [("someone/mpt-7b", "v1")]
    downloaded = {file.name for file in hub.cache.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= downloaded
    assert not any(name.endswith((".py", ".bin", ".pt", ".md")) for name in downloaded)


def test_hub_gives_pickled_weights_where_there_is_nothing_else(hub: Hub) -> None:
    write_arrays(hub.repository / "pytorch_model.bin", checkpoint_arrays(TINY))
    weights, _ = mpt_from_pretrained("someone/mpt-7b")
    assert weights.wte.shape == (40, 16)
    assert {file.name for file in hub.cache.iterdir()} == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_hub_gives_files_of_easydel(hub: Hub) -> None:
    write_easydel(hub.repository, "stream")
    weights, _ = mpt_from_pretrained("someone/mpt-7b")
    assert weights.wte.shape == (40, 16)
    assert {file.name for file in hub.cache.iterdir()} == {"config.json", "tokenizer.json", "easydel-model.parameters"}


def test_hub_repository_without_weights(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        resolve_checkpoint("someone/mpt-7b")


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no connection\nmore"), HFValidationError("bad id"), OSError("reset"), OSError()]
)
def test_hub_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint("mosaicml/mpt-7b")
    assert "were removed from the hub; any local copy or mirror" in str(caught.value)
    assert type(error).__name__ in str(caught.value)
    with pytest.raises(CheckpointError, match=r"Give the path of a folder with config\.json") as caught:
        resolve_checkpoint("someone/mpt-7b")
    assert "removed" not in str(caught.value)


def test_local_folder_of_a_hub_ids_name(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save()
    (folder.parent / "mosaicml").mkdir()
    folder.rename(folder.parent / "mosaicml" / "mpt-7b")
    monkeypatch.chdir(folder.parent)
    assert resolve_checkpoint("mosaicml/mpt-7b") == Path("mosaicml/mpt-7b")
