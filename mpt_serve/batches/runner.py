"""Works on the batches of a store until it is cancelled, beside the runners of other processes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from mpt_serve.batches.batch_counters import BatchCounters
from mpt_serve.batches.batch_run import BatchRun
from mpt_serve.batches.batch_store import Batch, BatchStore
from mpt_serve.batches.input_lines import BatchLine
from mpt_serve.batches.result_files import ResultFilesError
from mpt_serve.batches.results import Result

__all__ = ["BatchRunner"]

logger = logging.getLogger(__name__)

_MAX_BATCHES = 8  # that one runner works on at the same time
_SWEEP_PERIOD_S = 300.0

Send = Callable[[str, BatchLine], Awaitable[Result]]


class BatchRunner:
    """Runs the batches that no other process works on: the lock of a batch's results says that.

    send: returns the result of a request of an owner. Raises LaterError where it cannot be sent now.
    max_running: requests that are sent at the same time, over all batches, which have turns.
    period_s: between two looks at the store, where nobody calls `wake`. counters: of what it does.
    """

    def __init__(self, store: BatchStore, send: Send, max_running: int, period_s: float = 2.0) -> None:
        self._store = store
        self._send = send
        self._max_running = max_running
        self._places = asyncio.Semaphore(max_running)
        self._period_s = period_s
        self.counters = BatchCounters()
        self._woken = asyncio.Event()
        self._running: dict[str, tuple[Batch, asyncio.Task[None]]] = {}
        self._sweep_at = 0.0

    def wake(self) -> None:
        """Look at the store now: something has changed."""
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._look()
                except Exception:  # the file system is full or away; it may come back
                    logger.exception("The folder of batches cannot be read; it is read again soon.")
                try:
                    async with asyncio.timeout(self._period_s):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        if time.monotonic() >= self._sweep_at:
            await asyncio.to_thread(self._store.files.sweep)
            self._sweep_at = time.monotonic() + _SWEEP_PERIOD_S
        active = await asyncio.to_thread(self._store.active)
        self.counters.unfinished = len(active)
        for batch in active:
            owners = [other.owner for other, _ in self._running.values()]
            if batch.id in self._running or len(owners) >= _MAX_BATCHES or batch.owner in owners:
                continue
            self._running[batch.id] = (batch, asyncio.create_task(self._run(batch)))

    async def _run(self, batch: Batch) -> None:
        # One thread, so that what touches the batch's files happens in order, also when the task is cancelled.
        with ThreadPoolExecutor(1, thread_name_prefix=batch.id) as thread:
            try:
                how = (self._send, self._places, self._max_running, thread, self.counters)
                await BatchRun(self._store, batch, *how).run()
                self.wake()  # its owner's next batch may begin
            except ResultFilesError:
                logger.debug("%s: another process works on it", batch.id)
            except Exception:
                logger.exception("%s: its run ended, and another one will continue", batch.id)
                await asyncio.sleep(self._period_s)
            finally:
                del self._running[batch.id]
