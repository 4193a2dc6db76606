"""Work on parts of a matrix, on all cores of the host."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_MOST_THREADS = 16  # each has its own buffers


def in_threads(work: Callable[[slice], None], parts: Sequence[slice]) -> None:
    """Run every part's work on as many threads as there are cores; for native code, which releases the GIL."""
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as executor:
        for _ in executor.map(work, parts):
            pass
