import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "openai"))

from loopback_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    """The application on a loopback port, over a backend that echoes."""
    with serving() as running:
        yield running
