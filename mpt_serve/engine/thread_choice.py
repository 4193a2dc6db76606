"""How many threads the kernels use for a step, as steps of its size have taken with one more or one less."""

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["ThreadChoice", "thread_counts", "usable_cores"]

_SETTLE = 2  # steps after a change that do not count: the pipeline started them before
_TRIAL = 12  # steps that count in a trial
_FIRST = 24  # steps of a size before its first trial
_REST = 2048  # the most steps between two trials; the interval doubles up to there while trials lose
_GAIN = 0.96  # of the median duration: what another number of threads has to reach
_HOPELESS = 4  # steps of a trial, all slower than the median before, after which it ends


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to choose from: all cores, one less, and halves of that down to one."""
    counts = {cores, max(1, cores - 1)}
    while cores > 1:
        cores //= 2
        counts.add(cores)
    return sorted(counts)


@dataclass(slots=True)
class _Size:
    """What is known about steps of one size."""

    choice: int  # indices into the counts
    trial: int | None = None
    interval: int = _FIRST
    steps: int = 0  # since the last change
    durations: list[float] = field(default_factory=list)
    before: float = 0.0  # median duration without the trial
    upwards: bool = False  # whether the last trial was with more threads


class ThreadChoice:
    """Tries now and then whether steps of a size take less time with fewer or with more threads.

    Where other processes need the same cores, a kernel on all of them waits for whichever thread has just lost its
    core, so that fewer are faster; that depends on the model, the batch and the load.

    counts: numbers of threads, ascending; the last is the first choice. limit: lets the kernels use that many.
    """

    def __init__(self, counts: list[int], limit: Callable[[int], None]) -> None:
        self._counts = counts
        self._limit = limit
        self._used = counts[-1]
        self._sizes: dict[int, _Size] = {}

    def use(self, size: int, *, spare_one: bool = False) -> None:
        """Set the number of threads for the next step, which has `size` tokens.

        spare_one: leave a core to other processes, if there are several. Such a step must not be `measured`.
        """
        known = self._sizes.get(size)
        index = len(self._counts) - 1 if known is None else known.choice if known.trial is None else known.trial
        if spare_one:
            index = min(index, max(0, len(self._counts) - 2))
        if self._counts[index] != self._used:
            self._used = self._counts[index]
            self._limit(self._used)

    def measured(self, size: int, seconds: float) -> None:
        """Take note of how long a step of `size` tokens took."""
        known = self._sizes.get(size)
        if known is None:
            known = self._sizes[size] = _Size(choice=len(self._counts) - 1)
        known.steps += 1
        if known.steps <= _SETTLE:
            return
        known.durations.append(seconds)
        if known.trial is not None:
            self._judge(known)
        elif known.steps >= known.interval + _SETTLE:
            self._try_another(known)

    def _try_another(self, known: _Size) -> None:
        known.before = statistics.median(known.durations[-_TRIAL:])
        known.upwards = not known.upwards
        neighbour = known.choice + (1 if known.upwards else -1)
        if not 0 <= neighbour < len(self._counts):
            known.upwards = not known.upwards
            neighbour = known.choice + (1 if known.upwards else -1)
        self._begin(known, neighbour if 0 <= neighbour < len(self._counts) else None)

    def _judge(self, known: _Size) -> None:
        """End a trial when it has won, or lost, or is hopeless."""
        durations = known.durations
        if len(durations) == _HOPELESS and min(durations) > known.before:
            won = False
        elif len(durations) == _TRIAL:
            won = statistics.median(durations) < _GAIN * known.before
        else:
            return
        if won and known.trial is not None:
            known.choice = known.trial
        known.interval = _FIRST if won else min(2 * known.interval, _REST)
        self._begin(known, None)

    @staticmethod
    def _begin(known: _Size, trial: int | None) -> None:
        known.trial = trial
        known.steps = 0
        known.durations.clear()
