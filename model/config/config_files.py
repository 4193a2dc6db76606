"""Which file of a folder says what its model is."""

from pathlib import Path

from model.config.adapter import FILE as ADAPTER_CONFIG
from model.config.ft_config import is_fastertransformer


def has_config(folder: Path) -> bool:
    """Return whether a folder says what its model is: in a config.json, as an adapter, or for FasterTransformer."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)) or is_fastertransformer(folder)
