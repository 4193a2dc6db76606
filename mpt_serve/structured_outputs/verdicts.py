"""What is known of grammars that were tried before."""

import threading
from collections import OrderedDict
from typing import NamedTuple

from mpt_serve.structured_outputs.spec import GrammarSpec

__all__ = ["Verdict", "Verdicts", "text_bytes"]


class Verdict(NamedTuple):
    """The outcome of compiling a spec: the grammar in the library's form, or why it is refused."""

    grammar: str = ""
    refusal: str = ""


class Verdicts:
    """A cache of verdicts, bounded in number and in bytes; the least recently used are dropped first. Thread-safe."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[GrammarSpec, tuple[Verdict, int]] = OrderedDict()
        self._bytes = 0

    def get(self, spec: GrammarSpec) -> Verdict | None:
        """Return the spec's verdict, None if it is not known."""
        with self._lock:
            if spec not in self._entries:
                return None
            self._entries.move_to_end(spec)
            return self._entries[spec][0]

    def put(self, spec: GrammarSpec, verdict: Verdict) -> None:
        """Remember the spec's verdict."""
        size = sum(text_bytes(text) for text in (spec.text, *verdict))
        with self._lock:
            if spec in self._entries:
                self._bytes -= self._entries.pop(spec)[1]
            self._entries[spec] = verdict, size
            self._bytes += size
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped


def text_bytes(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))
