"""The worker process of `compiler`: reads and compiles one spec per line of input, and replies with the outcome.

Runs as a script. What it survives within its limits of time, memory and stack, its parent may do as well: compile the
grammar that it made of a spec's text.
"""

import importlib.util
import json
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_STACK_BYTES = 1024 * 1024  # less than any thread of the parent has, so that a recursion that fits here fits there


def main() -> None:
    """Run in a thread, because only the stack size of a thread can be chosen."""
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_run)
    thread.start()
    thread.join()


def _run() -> None:
    """Read the setup and reply `{}`, then reply to each spec with `{"grammar": ...}` or `{"error": ...}`."""
    setup = json.loads(sys.stdin.buffer.readline())
    limits = setup["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lark, matchers = _neighbour("lark"), _neighbour("matcher")
    tokens = [None if token is None else token.encode("latin-1") for token in setup["token_bytes"]]
    vocabulary = matchers.build_vocabulary(tokens, setup["eos_token_ids"])
    # Writable memory: address space alone would not count what the allocator has reserved for this thread.
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + limits["memory"],) * 2)
    _send({})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        reply = _reply(lark, matchers, vocabulary, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(reply)


def _send(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def _reply(lark: Any, matchers: Any, vocabulary: Any, spec: dict[str, Any]) -> dict[str, str]:
    try:
        lark.check_parts(spec["kind"], spec["text"], lambda part: matchers.new_matcher(vocabulary, part, False))
        grammar = lark.grammar_of(spec["kind"], spec["text"])
        matchers.new_matcher(vocabulary, grammar, spec["kind"] == "grammar")
    except (lark.GrammarError, matchers.MatcherError) as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    return {"grammar": grammar}


def _neighbour(name: str) -> Any:
    """Load a module by its path, since its package may not be importable here."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
