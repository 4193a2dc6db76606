"""One batch from where it is to its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from mpt_serve.batches.backoff import backoff_s
from mpt_serve.batches.batch_counters import BatchCounters
from mpt_serve.batches.batch_store import ENDED, Batch, BatchState, BatchStore
from mpt_serve.batches.input_lines import BatchLine, read_lines
from mpt_serve.batches.pending import pending
from mpt_serve.batches.result_files import ResultFiles
from mpt_serve.batches.results import Result
from mpt_serve.errors import MptServeError

__all__ = ["BatchRun", "LaterError"]

_PERIOD_S = 0.5  # between two looks at whether a batch is cancelled, and two writes of its progress
_LONGEST_WAIT_S = 15.0

T = TypeVar("T")


class LaterError(MptServeError):
    """A request cannot be served now, and may be later."""


class BatchRun:
    """Sends the requests of a batch that have no result yet.

    places: for requests of all batches. workers: requests of this batch at the same time, at most.
    thread: an executor with one thread, which everything that touches the batch's files runs on. counters: of all
        batches.
    """

    def __init__(
        self,
        store: BatchStore,
        batch: Batch,
        send: Callable[[str, BatchLine], Awaitable[Result]],
        places: asyncio.Semaphore,
        workers: int,
        thread: Executor,
        counters: BatchCounters,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._batch = batch
        self._send = send
        self._places = places
        self._workers = workers
        self._thread = thread
        self._counters = counters
        self._clock = clock

    async def run(self) -> None:
        """Return when the batch has ended. Raises ResultFilesError while another process works on it, and OSError."""
        results = self._store.results(self._batch)
        try:
            await self._on_thread(results.__enter__)
            self._counters.running += 1
            try:
                await self._run(results)
            finally:
                self._counters.running -= 1
        finally:  # on the same thread, and so after the beginning, if that was cancelled
            await asyncio.shield(self._on_thread(lambda: results.__exit__(None, None, None)))

    async def _run(self, results: ResultFiles) -> None:
        state = await self._on_thread(lambda: self._store.state(self._batch))
        if state.status in ENDED:  # what ended it had no time to clean up
            await self._on_thread(lambda: self._store.forget_input(self._batch))
            return
        if "in_progress" not in state.times:
            state.total = await self._on_thread(lambda: sum(1 for _ in read_lines(self._store.input(self._batch))))
            if problem := self._problem(state.total):
                state.errors = [problem]
                await self._end(state, "failed")
                return
            await self._enter(state, "in_progress")
        outcome = await self._work(results, state)
        self._count(state, results)
        if outcome == "expired":
            await self._on_thread(lambda: self._expire(results))
            self._count(state, results)
        if outcome != "cancelled":
            await self._enter(state, "finalizing")
        await self._end(state, outcome)

    def _problem(self, total: int) -> tuple[str, str] | None:
        """Return why a batch of `total` lines does not run, as code and message; None if it does."""
        most = self._store.max_requests
        if total > most:
            return "too_many_requests", f"The input file has {total} lines; a batch may have {most}."
        return None if total else ("empty_file", "The input file has no request.")

    async def _work(self, results: ResultFiles, state: BatchState) -> str:
        """Send what is left and return the status in which the batch ends."""
        lines = pending(self._store.input(self._batch), results, self._batch.endpoint)
        work = asyncio.create_task(self._send_all(lines, results))
        try:
            while True:
                now = await self._on_thread(lambda: self._store.state(self._batch))
                if now.status == "cancelling":
                    state.times["cancelling"] = now.times["cancelling"]
                    return "cancelled"
                if self._is_over():
                    return "expired"
                if self._count(state, results):
                    await self._on_thread(lambda: self._store.save(self._batch, state))
                await asyncio.wait([work], timeout=_PERIOD_S)
                if work.done():
                    work.result()
                    return "completed"
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def _send_all(self, lines: Iterator[BatchLine | Result], results: ResultFiles) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._send_one_after_another(lines, results))

    async def _send_one_after_another(self, lines: Iterator[BatchLine | Result], results: ResultFiles) -> None:
        while (line := await self._on_thread(lambda: next(lines, None))) is not None:
            result = line if isinstance(line, Result) else await self._result(line)
            await self._on_thread(lambda result=result: results.append(result))  # type: ignore[misc]
            self._counters.requests["completed" if result.succeeded else "failed"] += 1

    async def _result(self, line: BatchLine) -> Result:
        refused = 0
        self._counters.requests_running += 1
        try:
            while True:
                try:
                    async with self._places:
                        return await self._send(self._batch.owner, line)
                except LaterError:
                    refused += 1
                    await asyncio.sleep(backoff_s(refused, _LONGEST_WAIT_S))
        finally:
            self._counters.requests_running -= 1

    def _is_over(self) -> bool:
        """Return whether the completion window has ended."""
        return self._clock() >= self._batch.expires_at

    def _expire(self, results: ResultFiles) -> None:
        message = "The request was not executed before the completion window of its batch was over."
        for line in pending(self._store.input(self._batch), results, self._batch.endpoint):
            own = line if isinstance(line, Result) else Result.of_failure(line.custom_id, "batch_expired", message)
            results.append(own)

    async def _enter(self, state: BatchState, status: str) -> None:
        state.status = status
        state.times[status] = int(self._clock())
        await self._on_thread(lambda: self._store.save(self._batch, state))

    async def _end(self, state: BatchState, status: str) -> None:
        state.status = status
        state.times[status] = int(self._clock())
        await self._on_thread(lambda: self._store.end(self._batch, state))
        self._counters.ended[status] += 1

    @staticmethod
    def _count(state: BatchState, results: ResultFiles) -> bool:
        """Take over the counters of the results; return whether they have changed."""
        before = (state.completed, state.failed)
        state.completed, state.failed = results.completed, results.failed
        return before != (state.completed, state.failed)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
