"""Compiles grammars under limits of time, memory and number."""

import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mpt_serve.child_process import ChildEndedError, ChildProcess
from mpt_serve.errors import BusyError, RequestError
from mpt_serve.structured_outputs.grammar import CompiledGrammar, GrammarState
from mpt_serve.structured_outputs.matcher import MatcherError, new_matcher
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.structured_outputs.verdicts import Verdict, Verdicts, text_bytes
from mpt_serve.structured_outputs.vocabulary import Vocabulary

__all__ = ["GrammarCompiler", "LazyGrammarCompiler"]

_WORKER = Path(__file__).with_name("compile_worker.py")
_BUSY = "too many grammars are being compiled; try again later"


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe.

    A spec that is not known is read and compiled in a worker process first. What the worker survives within its
    limits, this process does as well, with the grammar that the worker made of the text; the outcome is remembered.

    token_bytes: what each id adds to a text; None for ids that add nothing (special tokens, ids without a token). Ids
        beyond it are never allowed.
    eos_token_ids: allowed exactly if the text may end.
    max_workers: unknown grammars compiled at the same time, and as many known ones. wait_limit_s: how long others wait.
    time_limit_s: CPU time for one grammar. memory_limit_bytes: for one grammar. max_text_bytes: of one spec.
    cache_entries, cache_bytes: specs remembered, and the bytes of their texts and of what was made of them.
    Raises ValueError if no end-of-sequence id is in the vocabulary: no output could end.
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
        self._verdicts = Verdicts(cache_entries, cache_bytes)
        setup = {
            "token_bytes": [None if data is None else data.decode("latin-1") for data in token_bytes],
            "eos_token_ids": sorted(self._vocabulary.eos_token_ids),
            "limits": {"seconds": time_limit_s, "memory": memory_limit_bytes},
        }
        self._workers: queue.LifoQueue[ChildProcess] = queue.LifoQueue()
        for _ in range(max_workers):
            self._workers.put(ChildProcess(_WORKER, setup))
        # Counted separately: known grammars must not wait for unknown ones, which may take all of their time.
        self._builders = threading.BoundedSemaphore(max_workers)

    def check(self, spec: GrammarSpec) -> None:
        """Raise what `compile` would raise for the spec, in less time, and keep only the outcome."""
        self._grammar(spec)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Return the compiled grammar, for one request. Blocks while it compiles.

        Raises RequestError if the spec is invalid, needs what is not supported, or exceeds a limit; BusyError if too
        many others compile; ChildStartError or ChildEndedError if the worker process failed through no fault of the
        spec, of which nothing is remembered then.
        """
        grammar = self._grammar(spec)
        if not self._builders.acquire(timeout=self._wait_limit_s):
            raise BusyError(_BUSY)
        try:
            return self._build(spec, grammar)
        finally:
            self._builders.release()

    def close(self) -> None:
        """End the idle worker processes. The compiler stays usable: they are started again when needed."""
        for worker in [self._workers.get() for _ in range(self._workers.qsize())]:
            worker.close()
            self._workers.put(worker)

    def _grammar(self, spec: GrammarSpec) -> str:
        """Return what a worker made of the spec, asking one if the spec is not known."""
        size = text_bytes(spec.text)
        if size > self._max_text_bytes:
            raise RequestError(f"{_name(spec)} has {size} bytes; {self._max_text_bytes} are allowed")
        verdict = self._verdicts.get(spec)
        if verdict is None:
            try:
                worker = self._workers.get(timeout=self._wait_limit_s)
            except queue.Empty:
                raise BusyError(_BUSY) from None
            try:
                verdict = self._try(spec, worker)
            finally:
                self._workers.put(worker)
            self._verdicts.put(spec, verdict)
        if verdict.refusal:
            raise RequestError(verdict.refusal)
        return verdict.grammar

    def _try(self, spec: GrammarSpec, worker: ChildProcess) -> Verdict:
        """Read and compile in a worker, where neither endless work, nor memory, nor a crash can do harm."""
        try:
            reply = worker.ask({"kind": spec.kind, "text": spec.text})
        except ChildEndedError as error:
            if error.timed_out:
                return _refusal(spec, f"compiling it takes longer than {self._time_limit_s:g} s")
            if error.killed:
                raise
            return _refusal(spec, "compiling it takes too much memory, or it is nested too deeply")
        return _refusal(spec, reply["error"]) if "error" in reply else Verdict(grammar=reply["grammar"])

    def _build(self, spec: GrammarSpec, grammar: str) -> CompiledGrammar:
        try:
            matcher = new_matcher(self._vocabulary.tokens, grammar, spec.kind == "grammar")
        except MatcherError as error:
            raise RequestError(_refusal(spec, str(error)).refusal) from None
        return CompiledGrammar(GrammarState(matcher, self._vocabulary))


class LazyGrammarCompiler:
    """Compiles as the `GrammarCompiler` that `make` returns, whose tables most servers never need. Thread-safe.

    make: called once, with the first spec; if it raises ValueError, that spec is refused.
    """

    def __init__(self, make: Callable[[], GrammarCompiler]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None

    def check(self, spec: GrammarSpec) -> None:
        """Raise as `GrammarCompiler.check`."""
        self._made().check(spec)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Return the compiled grammar. Raises as `GrammarCompiler.compile`."""
        return self._made().compile(spec)

    def close(self) -> None:
        """End the compiler's processes, if there are any; they are started again when needed."""
        with self._lock:
            if self._compiler is not None:
                self._compiler.close()

    def _made(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                try:
                    self._compiler = self._make()
                except ValueError as error:
                    raise RequestError(str(error)) from error
            return self._compiler


def _refusal(spec: GrammarSpec, reason: str) -> Verdict:
    # Lines and columns are the author's in a Lark grammar alone; the other kinds are wrapped into one.
    reason = reason if spec.kind == "grammar" else re.sub(r"(^|: )line \d+, column \d+: ", r"\1", reason)
    return Verdict(refusal=f"{_name(spec)} cannot be used: {reason}")


def _name(spec: GrammarSpec) -> str:
    return f"the {spec.kind.replace('_', ' ').replace('json', 'JSON')}"
