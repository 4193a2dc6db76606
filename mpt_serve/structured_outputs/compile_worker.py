"""The child of `compiler`: reads and compiles the guides it is sent, one per line of input, and says how that went.

Runs as a script. What it survives, within its limits of time, memory and stack, its parent may do as well: compile the
grammar that it made of a guide's text.
"""

import importlib.util
import json
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_STACK_BYTES = 1024 * 1024  # less than any thread of the parent's has, so that no recursion fits here and not there


def main() -> None:
    """Answer in a thread, because only a thread's stack can be chosen."""
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_answer_all)
    thread.start()
    thread.join()


def _answer_all() -> None:
    """Read the setup and answer `{}`, then each guide with `{"grammar": ...}` or `{"error": ...}`."""
    setup = json.loads(sys.stdin.buffer.readline())
    limits = setup["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammars, matchers = _neighbour("grammar"), _neighbour("matcher")
    tokens = [None if token is None else token.encode("latin-1") for token in setup["token_bytes"]]
    vocabulary = matchers.build_vocabulary(tokens, setup["eos_token_ids"])
    # Writable memory: address space alone would not count what the allocator has reserved for this thread.
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + limits["memory"],) * 2)
    _answer({})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        reply = _reply(grammars, matchers, vocabulary, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(reply)


def _answer(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    sys.stdout.buffer.flush()


def _reply(grammars: Any, matchers: Any, vocabulary: Any, guide: dict[str, Any]) -> dict[str, str]:
    try:
        grammar = grammars.grammar_of(guide["kind"], guide["text"])
        matchers.new_matcher(vocabulary, grammar, guide["kind"] == "grammar")
    except (grammars.GrammarError, matchers.MatcherError) as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    return {"grammar": grammar}


def _neighbour(name: str) -> Any:
    """Load a module by its path: the package that it belongs to may not be importable, and need not be."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
