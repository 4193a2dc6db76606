"""Fixtures of the checkpoint tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TINY, random_weights

from model.checkpoint.save import save_checkpoint


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(config, **options) -> a folder with a checkpoint of random weights."""

    def save(config: dict[str, Any] = TINY, **options: Any) -> Path:
        return save_checkpoint(random_weights(config), config, tmp_path / "checkpoint", **options)

    return save
