"""The child process of `encode_process`: encodes one text per line of input."""

import base64
import json
import os
import resource
import signal
import sys
from array import array

from tokenizers import Tokenizer

from mpt_serve.text.tokenizer import TextTokenizer


def main() -> None:
    """Read the setup and reply `{}`, then reply to each text with `{"ids": ...}`: 32-bit integers in base 64."""
    setup = json.loads(sys.stdin.buffer.readline())
    _step_back(setup["niceness"])
    tokenizer = TextTokenizer(Tokenizer.from_str(setup["tokenizer"]))
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    _send({})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])  # CPU time, as for templates
        ids = array("i", tokenizer.encode(**json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send({"ids": base64.b64encode(ids).decode()})


def _step_back(niceness: int) -> None:
    """Let other processes go first; with 19, also when they wake up while this one has a processor."""
    os.nice(niceness)
    if niceness == 19 and hasattr(os, "SCHED_IDLE"):  # Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _send(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
