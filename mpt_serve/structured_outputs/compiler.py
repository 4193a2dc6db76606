"""Guides compiled under limits of time, memory and number."""

import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mpt_serve.child_process import ChildEndedError, ChildProcess
from mpt_serve.errors import BusyError, RequestError
from mpt_serve.structured_outputs.grammar_state import GrammarState
from mpt_serve.structured_outputs.matcher import MatcherError, new_matcher
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.structured_outputs.vocabulary import Vocabulary

__all__ = ["CompiledGrammar", "GrammarCompiler"]

_CHILD = Path(__file__).with_name("compile_worker.py")
_BUSY = "too many guides are being compiled; try again later"


class CompiledGrammar:
    """One request's guide: makes the states of its answers. Threads may share it.

    The states share the tables that the library fills as it meets new text. No two requests share any: what is too
    much for one must not end another.
    """

    def __init__(self, beginning: GrammarState) -> None:
        self._beginning = beginning
        self._lock = threading.Lock()

    def start(self) -> GrammarState:
        """Return a state for one answer, before its first id."""
        with self._lock:
            return self._beginning.clone()


class GrammarCompiler:
    """Compiles guides for one vocabulary. Threads may share it.

    A guide that was not met before is read and compiled in a child process first. What the child survives within its
    limits, this process does as well, with the grammar that the child made of the text; what it says is kept.

    token_bytes: what each id adds to a text; None for ids that never do (special tokens, ids without a token). Ids
        beyond it are never allowed.
    eos_token_ids: allowed exactly where the text may end.
    max_workers: new guides tried at the same time, and as many known ones compiled. wait_limit_s: how long others wait
        for a turn.
    time_limit_s: processor time for one guide. memory_limit_bytes: for one guide. max_text_bytes: of one guide.
    cache_entries, cache_bytes: guides remembered, and the bytes of their texts and of what was made of them.
    Raises ValueError where no end-of-sequence id is in the vocabulary: no answer could end.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        eos_token_ids: Sequence[int],
        *,
        max_workers: int = 2,
        wait_limit_s: float = 10.0,
        time_limit_s: float = 2.0,
        memory_limit_bytes: int = 512 * 1024 * 1024,
        max_text_bytes: int = 1024 * 1024,
        cache_entries: int = 1024,
        cache_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self._vocabulary = Vocabulary.of(token_bytes, eos_token_ids)
        self._wait_limit_s = wait_limit_s
        self._time_limit_s = time_limit_s
        self._max_text_bytes = max_text_bytes
        self._verdicts = _Verdicts(cache_entries, cache_bytes)
        setup = {
            "token_bytes": [None if data is None else data.decode("latin-1") for data in token_bytes],
            "eos_token_ids": sorted(self._vocabulary.eos_token_ids),
            "limits": {"seconds": time_limit_s, "memory": memory_limit_bytes},
        }
        self._workers: queue.LifoQueue[ChildProcess] = queue.LifoQueue()
        for _ in range(max_workers):
            self._workers.put(ChildProcess(_CHILD, setup))
        # Turns of their own: guides that are known must not wait behind new ones, which may take up all their time.
        self._builders = threading.BoundedSemaphore(max_workers)

    def check(self, guide: GrammarSpec) -> None:
        """Raises as `compile`, which takes less time then, and holds nothing for it but what is known of the guide."""
        self._grammar(guide)

    def compile(self, guide: GrammarSpec) -> CompiledGrammar:
        """Return the guide's compiled form, for one request. Blocks while it compiles.

        Raises RequestError when the guide is invalid, asks for what is not supported, or breaks a limit;
        BusyError when its turn did not come in time; ChildStartError or ChildEndedError where the machine failed,
        not the guide, of which nothing is remembered then.
        """
        grammar = self._grammar(guide)
        if not self._builders.acquire(timeout=self._wait_limit_s):
            raise BusyError(_BUSY)
        try:
            return self._build(guide, grammar)
        finally:
            self._builders.release()

    def close(self) -> None:
        """End the idle workers' processes. The compiler stays usable: they start anew when needed."""
        for worker in [self._workers.get() for _ in range(self._workers.qsize())]:
            worker.close()
            self._workers.put(worker)

    def _grammar(self, guide: GrammarSpec) -> str:
        """Return what a child made of the guide, asking one where the guide is new."""
        size = _size(guide.text)
        if size > self._max_text_bytes:
            raise RequestError(f"{_name(guide)} has {size} bytes; {self._max_text_bytes} are allowed")
        verdict = self._verdicts.get(guide)
        if verdict is None:
            try:
                worker = self._workers.get(timeout=self._wait_limit_s)
            except queue.Empty:
                raise BusyError(_BUSY) from None
            try:
                verdict = self._judge(guide, worker)
            finally:
                self._workers.put(worker)
            self._verdicts.put(guide, verdict)
        if verdict.refusal:
            raise RequestError(verdict.refusal)
        return verdict.grammar

    def _judge(self, guide: GrammarSpec, worker: ChildProcess) -> "_Verdict":
        """Read and compile where neither endless work, nor memory, nor a crash can harm."""
        try:
            reply = worker.ask({"kind": guide.kind, "text": guide.text})
        except ChildEndedError as error:
            if error.timed_out:
                return _refusal(guide, f"compiling it takes longer than {self._time_limit_s:g} s")
            if error.killed:
                raise
            return _refusal(guide, "compiling it takes too much memory, or it is nested too deeply")
        return _refusal(guide, reply["error"]) if "error" in reply else _Verdict(grammar=reply["grammar"])

    def _build(self, guide: GrammarSpec, grammar: str) -> CompiledGrammar:
        try:
            matcher = new_matcher(self._vocabulary.tokens, grammar, guide.kind == "grammar")
        except MatcherError as error:
            raise RequestError(_refusal(guide, str(error)).refusal) from None
        return CompiledGrammar(GrammarState(matcher, self._vocabulary))


class _Verdict(NamedTuple):
    """What a child said of a guide: the grammar it made of it, or why it cannot be used."""

    grammar: str = ""
    refusal: str = ""


def _refusal(guide: GrammarSpec, reason: str) -> _Verdict:
    # Lines and columns are the author's in a grammar alone; the other kinds are wrapped into one.
    reason = reason if guide.kind == "grammar" else re.sub(r"^line \d+, column \d+: ", "", reason)
    return _Verdict(refusal=f"{_name(guide)} cannot be used: {reason}")


class _Verdicts:
    """What is known of guides; those not met for longest are forgotten first."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[GrammarSpec, tuple[_Verdict, int]] = OrderedDict()
        self._bytes = 0

    def get(self, guide: GrammarSpec) -> _Verdict | None:
        with self._lock:
            if guide not in self._entries:
                return None
            self._entries.move_to_end(guide)
            return self._entries[guide][0]

    def put(self, guide: GrammarSpec, verdict: _Verdict) -> None:
        size = sum(_size(text) for text in (guide.text, *verdict))
        with self._lock:
            if guide in self._entries:
                self._bytes -= self._entries.pop(guide)[1]
            self._entries[guide] = verdict, size
            self._bytes += size
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _name(guide: GrammarSpec) -> str:
    return f"the {guide.kind.replace('_', ' ').replace('json', 'JSON')}"
