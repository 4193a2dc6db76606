"""Shows the Ingresses that a process runs, also while all else in it is busy: a few bytes from a separate thread.

A Generator sends them on the links of its deltas, a Tokenizer on those of its ids.
"""

import threading
from collections.abc import Callable

__all__ = ["PERIOD_S", "start_heartbeat"]

PERIOD_S = 0.25


def start_heartbeat(beat: Callable[[], None], period_s: float = PERIOD_S) -> threading.Event:
    """Call `beat` periodically on a new thread, for as long as the process runs or until the returned event is set.

    It needs some microseconds each time and no event loop, so that it comes through on a machine with far more to do
    than it can, where a call to the replica takes many seconds. A process that is stopped sends none.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(period_s):
            beat()

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
    return ended
