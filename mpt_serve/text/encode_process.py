"""A child process that encodes long texts at a low priority, under limits of time and memory."""

import base64
import logging
from array import array
from collections.abc import Sequence
from pathlib import Path

from mpt_serve.child_process import ChildEndedError, ChildProcess, ChildStartError
from mpt_serve.errors import BusyError, RequestError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["EncodeProcess"]

logger = logging.getLogger(__name__)

TIME_LIMIT_S = 30.0  # CPU time of one text
MEMORY_LIMIT_BYTES = 3 * 1024**3  # addresses: half a gigabyte is in use after a text of a million characters

_WORKER = Path(__file__).with_name("encode_worker.py")


class EncodeProcess:
    """Encodes one text at a time, in a process that starts with the first. Threads may share it.

    niceness: how far the process steps back behind others that want the processor, from 0 to 19.
    """

    def __init__(self, tokenizer: TextTokenizer, niceness: int) -> None:
        limits = {"seconds": TIME_LIMIT_S, "memory": MEMORY_LIMIT_BYTES}
        self._child = ChildProcess(_WORKER, {"tokenizer": tokenizer.serialized, "niceness": niceness, **limits})

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]:
        """Return the text's ids, as an array. Raises RequestError if that takes too long or too much memory.

        Raises BusyError if the process cannot be started or was ended from outside, twice: by a system without memory.
        """
        try:
            reply = self._child.ask({"text": text, "add_special_tokens": add_special_tokens})
        except (ChildEndedError, ChildStartError) as error:
            if isinstance(error, ChildStartError) or error.killed:
                logger.error("A process that tokenizes long texts was lost: %s", error)
                raise BusyError("the process that tokenizes long texts was lost; retry later") from None
            what = "too long" if error.timed_out else "too much memory"
            raise RequestError(f"the text takes {what} to tokenize; send a shorter one") from None
        ids = array("i")
        ids.frombytes(base64.b64decode(reply["ids"]))
        return ids

    def close(self) -> None:
        """End the child process, if there is one."""
        self._child.close()
