"""How much of a checkpoint has been read: a bar on a terminal, and a log line every few seconds elsewhere."""

import logging
import sys
import time
from typing import Self

from tqdm import tqdm

__all__ = ["LoadProgress"]

logger = logging.getLogger(__name__)

_LOADING = "Loading weights"
_PERIOD_S = 2.0
_MIB = 2**20


class LoadProgress:
    """Counts bytes up to `total`; a context manager.

    progress: whether to show a bar on stderr; None: on a terminal.
    title: what is done, in front of the bar and in the log.
    """

    def __init__(self, total: int, progress: bool | None, title: str = _LOADING) -> None:
        disable = None if progress is None else not progress  # tqdm's None: only on a terminal
        self._bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc=title,
            file=sys.stderr,
            disable=disable,
            leave=False,
        )
        self._message = "weights: %d of %d MiB read" if title == _LOADING else f"{title}: %d of %d MiB"
        self._total = total
        self._done = 0
        self._logged_at = time.monotonic()

    def update(self, size: int) -> None:
        """Count bytes, and log the sum if the last time was long ago."""
        self._bar.update(size)
        self._done += size
        now = time.monotonic()
        if now - self._logged_at >= _PERIOD_S:
            logger.info(self._message, self._done // _MIB, -(-self._total // _MIB))
            self._logged_at = now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
