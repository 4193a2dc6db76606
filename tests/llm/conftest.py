"""Programs compiled once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import compiled_in, shared_folder


@pytest.fixture(scope="session")
def llm_compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory, "compiled")


@pytest.fixture(scope="module", autouse=True)
def _compile_once(llm_compiled_folder: Path) -> Iterator[None]:
    """Engines of the same shape share their programs. Other folders' tests compile without the cache."""
    with compiled_in(llm_compiled_folder):
        yield
