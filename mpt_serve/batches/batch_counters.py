"""What one process counts of the batches that it works on."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["BatchCounters"]


@dataclass
class BatchCounters:
    """Counters start at 0 with the process. Belongs to one event loop.

    unfinished: batches in the folder that have not ended, whoever works on them, as last seen. running: batches that
    this process works on. ended: batches that it has brought to their end, by status.
    requests_running: requests that wait or are computed. requests: requests with a result, `completed` or `failed`.
    """

    unfinished: int = 0
    running: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    requests_running: int = 0
    requests: Counter[str] = field(default_factory=Counter)
