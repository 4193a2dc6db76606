"""Where a model's tokenizer and configuration files lie. Weights are the Generator's business alone."""

from pathlib import Path

from mpt_serve.configuration.problems import ConfigurationError, Problem

__all__ = ["EMBEDDED", "folder_problem", "model_path", "tokenizer_folder"]

EMBEDDED = "embedded"
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges*"]


def model_path(model: str) -> str:
    """Return the setting `model` as a folder or a Hugging Face id; `embedded` is the folder inside this package."""
    if model == EMBEDDED:
        return str(Path(__file__).parents[1] / EMBEDDED)
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def folder_problem(model: str) -> str | None:
    """Return what is wrong with a model given as a folder of this machine; None for a good one and for a hub id."""
    path = Path(model_path(model))
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"the folder '{path}' has no config.json: no checkpoint"
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        return (
            f"there is no folder '{path}' on this node; give a checkpoint folder that exists on every node that runs a"
            " replica, a Hugging Face id such as 'owner/name', or 'embedded'"
        )
    return None


def tokenizer_folder(model: str) -> Path:
    """Return a local folder with the model's small files, from the Hugging Face Hub where need be.

    Raises ConfigurationError where there is no such folder and no such id.
    """
    path = model_path(model)
    problem = folder_problem(model)
    if problem is not None:
        raise ConfigurationError([Problem(("model",), problem)])
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download  # half a second to import, needed for hub ids only

    try:
        return Path(snapshot_download(path, allow_patterns=_SMALL_FILES))
    except Exception as error:  # the hub's client has a dozen kinds: no such id, gated, offline
        message = f"'{path}' is not a folder here, and the Hugging Face Hub does not give it: {error}"
        if path.startswith("mosaicml/"):
            message += " (the mosaicml/* repositories were removed; the folder of any copy works)"
        raise ConfigurationError([Problem(("model",), message)]) from error
