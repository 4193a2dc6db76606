"""The config and the tokenizer that Composer saves with a model of the Hugging Face kind, in its checkpoints."""

import json
import re
from pathlib import Path
from typing import Any

from model.checkpoint.stored_tensor import CheckpointError
from model.checkpoint.torch_file import read_training_state

_STEM = re.compile(r"\w{1,64}")  # no path
_WHERE = ("state", "integrations", "huggingface")


def composer_texts(path: Path) -> dict[str, str]:
    """Return texts by names of files in one folder: config.json, and those of the tokenizer if the run had one.

    Files of other types than JSON and text are left out, as Composer does. Raises CheckpointError for a damaged file,
    and for one without a config.
    """
    found = read_training_state(path)
    for key in _WHERE:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: holds no config of the model, which Composer saves in {'.'.join(_WHERE)}; put the model's"
            " config.json and its tokenizer's files beside it"
        )
    model, tokenizer = found.get("model"), found.get("tokenizer")
    saved = {"config": model.get("config") if isinstance(model, dict) else None}
    if isinstance(tokenizer, dict):
        saved |= tokenizer
    return {name: text for stem, entry in saved.items() for name, text in _file(path, stem, entry).items()}


def _file(path: Path, stem: str, entry: Any) -> dict[str, str]:
    """Return the text of one saved file by its name; nothing for types that have no text."""
    kind = entry.get("file_extension") if isinstance(entry, dict) else None
    if kind not in (".json", ".txt") and stem != "config":
        return {}
    if not isinstance(entry, dict) or _STEM.fullmatch(stem) is None:
        raise CheckpointError(f"{path}: {stem[:100]!r} in {'.'.join(_WHERE)} is no file of a model")
    content = entry.get("content")
    try:
        text = json.dumps(content, indent=2) if kind == ".json" else "\n".join(content or ()) + "\n"
    except (TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: {stem!r} in {'.'.join(_WHERE)} is no text; put that file beside it") from None
    return {f"{stem}{kind}": text}
