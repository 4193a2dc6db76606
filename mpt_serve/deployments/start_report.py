"""How far the start of a Generator is, reported to the Ingress replicas through Ray's key-value store.

A replica takes no call before its constructor returns, so it cannot be asked.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.experimental import internal_kv

from mpt_serve.serve_logs.start_progress import StartProgress

__all__ = ["LoadingStage", "furthest_stage", "reported_start"]

_NAMESPACE = "mpt_serve_start"
_LOGGERS = ("mpt_serve", "model")


@dataclass(frozen=True, order=True)
class LoadingStage:
    """Where a start is: a later stage, or more of the same, is greater. part: from 0 to 1."""

    number: int
    part: float

    @property
    def name(self) -> str:
        """Return the stage in words."""
        return _STAGES[self.number]


_STAGES = ("starting", "reading the checkpoint", "loading weights", "compiling programs")


def stage_of(progress: StartProgress) -> LoadingStage:
    """Return the stage that a Generator's log lines show."""
    if progress.programs:
        return LoadingStage(3, progress.compiled / progress.programs)
    if progress.weights:
        return LoadingStage(2, progress.loaded / progress.weights)
    if progress.checkpoint:
        return LoadingStage(1, progress.read / progress.checkpoint)
    return LoadingStage(0, 0.0)


class _Reporter(logging.Handler):
    """Takes the log lines of a start, and reports each that changes the stage."""

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica
        self._progress = StartProgress()
        self._reported: LoadingStage | None = None
        self.report()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._progress.take(record.getMessage())
        self.report()

    def report(self) -> None:
        """Store the stage, if it has changed."""
        stage = stage_of(self._progress)
        if stage != self._reported:
            self._reported = stage
            internal_kv._internal_kv_put(self._replica, json.dumps([stage.number, stage.part]), namespace=_NAMESPACE)


@contextmanager
def reported_start(replica: str) -> Iterator[None]:
    """Report the start of a replica of this name while the context is entered; outside Ray nothing is reported."""
    if not internal_kv._internal_kv_initialized():
        yield
        return
    reporter = _Reporter(replica)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for own in loggers:
        own.addHandler(reporter)
    try:
        yield
    finally:
        for own in loggers:
            own.removeHandler(reporter)
        internal_kv._internal_kv_del(replica, namespace=_NAMESPACE)


def furthest_stage(replicas: Iterable[str]) -> LoadingStage | None:
    """Return the stage of the one of these replicas that is furthest; None if none has reported any.

    Blocks for calls to Ray: call it from a worker thread.
    """
    found = (internal_kv._internal_kv_get(replica, namespace=_NAMESPACE) for replica in replicas)
    return max((LoadingStage(*json.loads(stage)) for stage in found if stage is not None), default=None)
