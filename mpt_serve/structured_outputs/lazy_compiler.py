"""A guide compiler that is made when the first guide comes."""

import threading
from collections.abc import Callable

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import CompiledGrammar, GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec

__all__ = ["LazyGrammarCompiler"]


class LazyGrammarCompiler:
    """Compiles as the `GrammarCompiler` that `make` returns, whose tables most engines never need. Thread-safe.

    make: called once, with the first guide; its ValueError refuses that guide.
    """

    def __init__(self, make: Callable[[], GrammarCompiler]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None

    def check(self, guide: GrammarSpec) -> None:
        """Raises as `GrammarCompiler.check`."""
        self._made().check(guide)

    def compile(self, guide: GrammarSpec) -> CompiledGrammar:
        """Return the guide's compiled form. Raises as `GrammarCompiler.compile`."""
        return self._made().compile(guide)

    def close(self) -> None:
        """End the compiler's processes, if there are any; they start anew when needed."""
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
