"""A Composer checkpoint alone: its config and its tokenizer are in it, and nothing else leaves it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from torch_writer import FakeTensor, pickled_with_python, write_zip

from model.checkpoint.folder import find_weights
from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.pretrained import resolve_checkpoint
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.conversion.convert import convert
from mpt_serve.text.tokenizer import TextTokenizer


def composer_file(path: Path, checkpoint: Path) -> None:
    """Write a checkpoint's weights, config and tokenizer as a run of Composer does."""
    arrays = load_file(checkpoint / "model.safetensors")

    def saved(name: str) -> dict[str, Any]:
        return {"file_extension": ".json", "content": json.loads((checkpoint / name).read_text())}

    huggingface = {
        "model": {"config": {**saved("config.json"), "class": "llmfoundry.MPTConfig"}},
        "tokenizer": {
            "tokenizer": saved("tokenizer.json"),
            "special_words": {"file_extension": ".txt", "content": ["a", "b"]},
            "spiece": {"file_extension": ".model", "content": b"binary"},
        },
    }
    model = {f"model.{name}": FakeTensor(name, array.shape) for name, array in arrays.items()}
    state = {"state": {"model": model, "integrations": {"huggingface": huggingface}}, "rng": []}
    write_zip(path, pickled_with_python(state), {name: array.tobytes() for name, array in arrays.items()})


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_composer_checkpoint_holds_its_config_and_tokenizer(
    tiny_checkpoint: Path, tmp_path: Path, named: str
) -> None:
    file = tmp_path / "run" / "latest-rank0.pt"
    file.parent.mkdir()
    composer_file(file, tiny_checkpoint)
    source = file if named == "file" else file.parent
    done = convert(str(source), str(tmp_path / "out"), None, None)
    assert done.comparison.same
    assert MptConfig.from_file(done.path) == replace(MptConfig.from_file(tiny_checkpoint), torch_dtype="float32")
    ours, theirs = (TextTokenizer.from_folder(folder).encode("Hi  naïve") for folder in (done.path, tiny_checkpoint))
    assert ours == theirs
    assert not (done.path / "spiece.model").exists()
    assert file.is_file()
    with pytest.raises(CheckpointError, match=r"Where Composer has saved the config in it: mpt-serve convert .*FOLDER"):
        resolve_checkpoint(source)


def test_a_composer_checkpoint_stays_beside_what_is_made_of_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "latest-rank0.pt"
    composer_file(file, tiny_checkpoint)
    with pytest.raises(ConfigurationError, match="--overwrite"):
        convert(str(file), str(tmp_path), None, None)
    for _ in range(2):
        convert(str(file), str(tmp_path), None, "bfloat16", overwrite=True)
        assert file.is_file()
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("huggingface", "message"),
    [
        (None, "holds no config of the model"),
        ({"model": {}}, "'config' in state.integrations.huggingface is no file of a model"),
        ({"model": {"config": {"file_extension": ".json", "content": {1, 2}}}}, "'config' in .* is no text"),
        (
            {
                "model": {"config": {"file_extension": ".json", "content": {}}},
                "tokenizer": {"../../x": {"file_extension": ".json", "content": {}}},
            },
            "'../../x' in state.integrations.huggingface is no file of a model",
        ),
    ],
)
def test_what_a_composer_checkpoint_does_not_hold_is_named(tmp_path: Path, huggingface: Any, message: str) -> None:
    file = tmp_path / "latest-rank0.pt"
    write_zip(file, pickled_with_python({"state": {"integrations": {"huggingface": huggingface}}}), {})
    with pytest.raises(ConfigurationError, match=message):
        convert(str(file), str(tmp_path / "out"), None, None)
    assert list(tmp_path.iterdir()) == [file]
