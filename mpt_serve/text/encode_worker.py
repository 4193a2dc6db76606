"""The child process of `encode_process`: encodes one text per line of input."""

import base64
import json
import os
import resource
import signal
import sys
from array import array

from mpt_serve.text.tokenizer import TextTokenizer


def main() -> None:
    """Read the setup and reply `{}`, then reply to each text with `{"ids": ...}`: 32-bit integers in base 64."""
    setup = json.loads(sys.stdin.buffer.readline())
    os.nice(setup["niceness"])
    tokenizer = TextTokenizer.from_serialized(setup["tokenizer"])
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    _send({})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, setup["seconds"])  # CPU time, as for templates
        ids = array("i", tokenizer.encode(**json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send({"ids": base64.b64encode(ids).decode()})


def _send(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
