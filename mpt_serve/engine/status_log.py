"""A log line every few seconds, while there is work."""

import logging
import threading
import time
from collections.abc import Callable

from mpt_serve.engine.stats import EngineStats

__all__ = ["StatusLog", "status_line"]

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0


class StatusLog:
    """Logs the engine's state every `interval_s` seconds in a separate thread, while requests run or wait.

    stats: returns a snapshot; any thread may call it.
    memory: returns what is to be logged of the process's memory each time, also without requests; None: nothing is.
    """

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        interval_s: float = INTERVAL_S,
        memory: Callable[[], str] | None = None,
    ) -> None:
        self._stats = stats
        self._memory = memory
        self._interval_s = interval_s
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="status log", daemon=True).start()

    def close(self) -> None:
        """Log nothing more."""
        self._closed.set()

    def _run(self) -> None:
        before, read_at = self._stats(), time.monotonic()
        while not self._closed.wait(self._interval_s):
            now, now_at = self._stats(), time.monotonic()
            line = status_line(before, now, now_at - read_at)
            if line is not None:
                logger.info("%s", line)
            if self._memory is not None:
                logger.info("memory: %s", self._memory())
            before, read_at = now, now_at


def status_line(before: EngineStats, now: EngineStats, seconds: float) -> str | None:
    """Return what the engine did between two snapshots and holds now; None if it did and holds nothing.

    Prefix hits are the share of all prompt tokens so far; accepted drafts that of the draft tokens since `before`.
    """
    generated = now.generated_tokens - before.generated_tokens
    read = now.prompt_tokens - before.prompt_tokens
    if not (now.running or now.waiting or generated or read):
        return None
    parts = [
        f"tokens/s: {read / seconds:.1f} in, {generated / seconds:.1f} out",
        f"{now.running} running, {now.waiting} waiting",
        f"KV cache {_percent(now.total_blocks - now.free_blocks, now.total_blocks)}",
        f"prefix hits {_percent(now.cached_tokens, now.prompt_tokens)}",
    ]
    drafted = now.drafted_tokens - before.drafted_tokens
    if drafted:
        parts.append(f"drafts accepted {_percent(now.accepted_tokens - before.accepted_tokens, drafted)}")
    return "; ".join(parts)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
