"""Shows the Ingresses that a process runs, also while all else in it is busy: a few bytes from a separate thread.

A Generator sends them on the links of its deltas, a Tokenizer on those of its ids.
"""

import threading
import time
from collections.abc import Callable

__all__ = ["PERIOD_S", "start_heartbeat"]

PERIOD_S = 0.25


def start_heartbeat(beat: Callable[[], None], period_s: float = PERIOD_S) -> threading.Thread:
    """Call `beat` periodically on a new thread, for as long as the process runs.

    It needs some microseconds each time and no event loop, so that it comes through on a machine with far more to do
    than it can, where a call to the replica takes many seconds. A process that is stopped sends none.
    """

    def run() -> None:
        while True:
            time.sleep(period_s)
            beat()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    return thread
