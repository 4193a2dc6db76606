"""All choices of one request, generated side by side."""

import asyncio
from collections.abc import Sequence
from types import TracebackType

from mpt_serve.openai.backend import Backend
from mpt_serve.openai.errors import InternalServerError
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.prompt_stream import PromptStream
from mpt_serve.openai.usage import Usage

__all__ = ["RequestStream"]


class RequestStream:
    """Runs jobs in the backend while the context is entered.

    Leaving the context, for whatever reason, closes every stream that has not finished, and waits for that: the engine
    generates nothing for an answer that nobody will read.
    """

    def __init__(self, backend: Backend, jobs: Sequence[PromptStream], request_id: str) -> None:
        self._backend = backend
        self._jobs = jobs
        self._request_id = request_id
        self._news: asyncio.Queue[ChoicePart | Exception] = asyncio.Queue()
        self._failure: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = sum(len(job.choices) for job in jobs)

    @property
    def done(self) -> bool:
        """Every choice has its last part."""
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """The tokens so far, over all prompts and choices."""
        return Usage.total(job.usage for job in self._jobs)

    @property
    def mean_logprobs(self) -> list[float]:
        """Each choice's mean log probability, in the order of their indices."""
        return [choice.mean_logprob for job in self._jobs for choice in job.choices]

    async def __aenter__(self) -> "RequestStream":
        for number, job in enumerate(self._jobs):
            request_id = self._request_id if len(self._jobs) == 1 else f"{self._request_id}-{number}"
            self._tasks.append(asyncio.create_task(self._run(job, request_id)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, timeout: float | None = None) -> list[ChoicePart]:
        """Wait for news and return all there is: parts of one choice that came together are joined into one.

        Returns nothing when `timeout` seconds pass without news. Raises what a stream raised, after its last part.
        """
        self._raise_failure()
        try:
            async with asyncio.timeout(timeout):
                news = [await self._news.get()]
        except TimeoutError:
            return []
        while not self._news.empty():
            news.append(self._news.get_nowait())
        parts = self._joined(news)
        if not parts:
            self._raise_failure()
        return parts

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _joined(self, news: Sequence[ChoicePart | Exception]) -> list[ChoicePart]:
        parts: dict[int, list[ChoicePart]] = {}
        for part in news:
            if isinstance(part, Exception):
                self._failure = self._failure or part
                continue
            parts.setdefault(part.index, []).append(part)
            self._unfinished -= part.finish_reason is not None
        return [ChoicePart.of(own) for own in parts.values()]

    async def _run(self, job: PromptStream, request_id: str) -> None:
        try:
            await self._read(job, request_id)
        except Exception as error:
            self._news.put_nowait(error)

    async def _read(self, job: PromptStream, request_id: str) -> None:
        stream = self._backend.generate(job.ids, job.params, request_id, job.unwanted)
        try:
            async for delta in stream:
                for part in job.advance(delta):
                    self._news.put_nowait(part)
                if job.done:
                    return
        finally:
            await stream.aclose()
        raise InternalServerError("The engine ended this request without finishing it.")
