"""All choices of one HTTP request, generated at the same time."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from mpt_serve.openai.backend import Backend
from mpt_serve.openai.errors import InternalServerError
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.prompt_stream import PromptStream
from mpt_serve.openai.usage import Usage

__all__ = ["RequestStream"]


class RequestStream:
    """Generates several prompts in the backend while the context is entered, and queues the parts of their choices.

    Deltas are converted as they arrive; parts that arrive while the reader is busy are joined. The queue is bounded by
    the request itself: it holds the text of max_tokens for each choice at most.

    Leaving the context, for whatever reason, cancels what has not finished, and waits for that: the engine generates
    nothing for a response that nobody will read.

    at_once: prompts that are with the backend at the same time; None for all.
    """

    def __init__(self, backend: Backend, prompts: Sequence[PromptStream], at_once: int | None = None) -> None:
        self._backend = backend
        self._prompts = prompts
        self._places = asyncio.Semaphore(at_once or len(prompts))
        self._parts: dict[int, list[ChoicePart]] = {}  # by choice, in the order in which they began to wait
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None  # waits for parts
        self._listener: Callable[[], None] | None = None  # is called instead
        self._listener_due = False
        self._context = contextvars.copy_context()
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = sum(len(prompt.choices) for prompt in prompts)

    @property
    def done(self) -> bool:
        """Return whether `next` has returned the last part of every choice."""
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """Return the tokens so far, over all prompts and choices."""
        return Usage.total(prompt.usage for prompt in self._prompts)

    @property
    def mean_logprobs(self) -> list[float]:
        """Return each choice's mean log probability, in the order of their indices."""
        return [choice.mean_logprob for prompt in self._prompts for choice in prompt.choices]

    async def __aenter__(self) -> "RequestStream":
        self._tasks = [asyncio.create_task(self._generate(prompt)) for prompt in self._prompts]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        tasks, self._tasks = self._tasks, []  # what they have raised refers to this object
        await asyncio.gather(*tasks, return_exceptions=True)

    def cancel(self) -> None:
        """Cancel what has not finished, without waiting for that."""
        for prompt, task in zip(self._prompts, self._tasks, strict=False):
            if not prompt.done:  # else it ends by itself, as soon as it has its turn
                task.cancel()

    async def next(self, timeout: float | None = None) -> list[ChoicePart]:
        """Wait for parts and return all that have arrived, those of one choice joined into one.

        Returns an empty list if none arrives within `timeout` seconds. Raises what ended a prompt, after the parts that
        came before.
        """
        if not self.ready:
            await self._wait(timeout)
        return self.take()

    @property
    def ready(self) -> bool:
        """Return whether `take` has something to return or to raise."""
        return bool(self._parts) or self._failure is not None

    def take(self) -> list[ChoicePart]:
        """Return the parts that have arrived, as `next` does, without waiting for any."""
        if not self._parts and self._failure is not None:
            raise self._failure
        parts = [ChoicePart.joined(parts) for parts in self._parts.values()]
        self._parts.clear()
        self._unfinished -= sum(part.finish_reason is not None for part in parts)
        return parts

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call something on the event loop, in the context of this request, whenever there are parts or an error.

        It is called once for all that arrive together. None: nothing any more; `next` may be called again.
        """
        self._listener = listener

    async def _wait(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._reader = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, self._wake_reader)
        try:
            await self._reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        """Tell whoever waits for parts that there are some."""
        if self._listener is None:
            self._wake_reader()
        elif not self._listener_due:
            self._listener_due = True
            asyncio.get_running_loop().call_soon(self._call_listener, context=self._context)

    def _call_listener(self) -> None:
        self._listener_due = False
        if self._listener is not None:
            self._listener()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _generate(self, prompt: PromptStream) -> None:
        try:
            async with self._places:
                await self._backend.generate(
                    prompt.request, partial(prompt.advance, emit=self._queue), prompt.stopped_choices
                )
            if not prompt.done:
                raise InternalServerError("The engine ended this request without finishing it.")
        except Exception as error:
            self._failure = self._failure or error
            self._wake()

    def _queue(self, part: ChoicePart) -> None:
        if self._failure is None:  # nothing follows an error
            self._parts.setdefault(part.index, []).append(part)
            self._wake()
