"""What code leaves to the garbage collector, whose collections stop all streams."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leaving_at_most(objects: int) -> Iterator[None]:
    """Let nothing be collected while entered, and assert that a collection then finds no more than some objects."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() <= objects
    finally:
        gc.enable()
