"""Text to ids without any text waiting for a much longer one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mpt_serve.errors import BusyError
from mpt_serve.text.encode_process import EncodeProcess
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["EncodingLanes"]

SHORT_CHARS = 16 * 1024  # milliseconds of work
MEDIUM_CHARS = 128 * 1024
_SHORT_THREADS = 4
_MAX_WAITING_CHARS = 8 * 1024 * 1024  # of the texts on one lane

# As the kernel weighs them, beside one process that is not nice: a quarter of a processor, and what is left of it.
_MEDIUM_NICENESS = 5
_LONG_NICENESS = 19


class EncodingLanes:
    """Encodes short texts on threads, and those of two classes above in a process for each class.

    The processes give way to the engine and everything else on the machine. On a lane, texts have turns in the order of
    their arrival. Belongs to one event loop.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        medium = EncodeProcess(tokenizer, _MEDIUM_NICENESS)
        long = EncodeProcess(tokenizer, _LONG_NICENESS)
        self._processes = (medium, long)
        self._short = _Lane(tokenizer.encode, _SHORT_THREADS)
        self._medium = _Lane(medium.encode, 1)
        self._long = _Lane(long.encode, 1)

    async def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """Return the text's ids. Raises RequestError, or BusyError while too much text of its class waits."""
        lane = self._short if len(text) <= SHORT_CHARS else self._medium if len(text) <= MEDIUM_CHARS else self._long
        return await lane.encode(text, add_special_tokens)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class _Lane:
    """Encodes texts of one class with a number of threads."""

    def __init__(self, encode: Callable[[str, bool], Sequence[int]], threads: int) -> None:
        self._encode = encode
        self._threads = ThreadPoolExecutor(threads)
        self._waiting_chars = 0

    async def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        if self._waiting_chars and self._waiting_chars + len(text) > _MAX_WAITING_CHARS:
            raise BusyError("too many long texts wait to be tokenized; retry later")
        self._waiting_chars += len(text)
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._encode, text, add_special_tokens)
        future.add_done_callback(lambda _: self._leave(len(text)))
        return await future

    def _leave(self, chars: int) -> None:
        self._waiting_chars -= chars
