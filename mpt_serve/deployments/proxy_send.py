"""Sends to a client that may have stopped reading."""

import asyncio
from collections.abc import Callable

from starlette.types import Message, Send

from mpt_serve.openai.eager import run_eagerly

__all__ = ["patient_send"]

PATIENCE_S = 60.0  # for a client that takes nothing of what waits for it


def patient_send(send: Send, abort: Callable[[], None], patience_s: float = PATIENCE_S) -> Send:
    """Return what sends, and closes the connection when the client has not read for a time.

    To everything behind it that is a client that disconnects.
    """

    async def send_in_time(message: Message) -> None:
        rest = run_eagerly(send(message))  # type: ignore[arg-type]
        if rest is None:
            return
        timer = asyncio.get_running_loop().call_later(patience_s, abort)
        try:
            await rest
        finally:
            timer.cancel()

    return send_in_time
