"""Where a model's tokenizer and configuration files are. Only the Generator reads weights."""

from pathlib import Path

from model.config.config_files import has_config
from model.gguf.header import find_gguf, is_gguf
from mpt_serve.configuration.problems import ConfigurationError, Problem

__all__ = ["EMBEDDED", "folder_problem", "model_path", "tokenizer_folder"]

EMBEDDED = "embedded"
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges*"]


def model_path(model: str) -> str:
    """Return the setting `model` as a folder, a GGUF file or a Hugging Face id.

    `embedded` is the folder inside this package; a folder of one GGUF file without a config.json is that file.
    """
    if model == EMBEDDED:
        return str(Path(__file__).parents[1] / EMBEDDED)
    path = Path(model).expanduser()
    if is_gguf(path):
        return str(path.resolve())
    if not path.is_dir():
        return model
    inside = None if (path / "config.json").is_file() else find_gguf(path)
    return str((inside or path).resolve())


def folder_problem(model: str) -> str | None:
    """Return what is wrong with a local model folder; None for a valid one and for a Hugging Face id."""
    path = Path(model_path(model))
    if is_gguf(path):
        return None
    if path.is_dir():
        return None if has_config(path) else f"the folder '{path}' has no config.json, so it is not a checkpoint"
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        return (
            f"there is no folder '{path}' on this node; use a checkpoint folder or GGUF file that exists on every node"
            " that runs a replica, a Hugging Face id such as 'owner/name', or 'embedded'"
        )
    return None


def tokenizer_folder(model: str) -> Path:
    """Return the model's GGUF file, or a local folder with its small files.

    They are downloaded from the Hugging Face Hub if necessary. Raises ConfigurationError if there is no such folder and
    no such id.
    """
    path = model_path(model)
    problem = folder_problem(model)
    if problem is not None:
        raise ConfigurationError([Problem(("model",), problem)])
    if Path(path).exists():
        return Path(path)
    from huggingface_hub import snapshot_download  # half a second to import, needed for hub ids only

    try:
        return Path(snapshot_download(path, allow_patterns=_SMALL_FILES))
    except Exception as error:  # the client raises a dozen types: no such id, gated, offline
        message = f"'{path}' is not a local folder, and the Hugging Face Hub did not provide it: {error}"
        if path.startswith("mosaicml/"):
            message += " (the mosaicml/* repositories were removed; the folder of any copy works)"
        raise ConfigurationError([Problem(("model",), message)]) from error
