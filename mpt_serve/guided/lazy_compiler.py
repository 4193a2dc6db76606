"""A guide compiler that is made when the first guide comes."""

import threading
from collections.abc import Callable

from mpt_serve.engine.request import RequestError
from mpt_serve.guided.compiler import CompiledGuide, GuideCompiler
from mpt_serve.guided.spec import Guide

__all__ = ["LazyGuideCompiler"]


class LazyGuideCompiler:
    """Compiles as the `GuideCompiler` that `make` returns, whose tables most engines never need. Threads may share it.

    make: called once, with the first guide; its ValueError refuses that guide.
    """

    def __init__(self, make: Callable[[], GuideCompiler]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._compiler: GuideCompiler | None = None

    def check(self, guide: Guide) -> None:
        """Raises as `GuideCompiler.check`."""
        self._made().check(guide)

    def compile(self, guide: Guide) -> CompiledGuide:
        """Return the guide's compiled form. Raises as `GuideCompiler.compile`."""
        return self._made().compile(guide)

    def close(self) -> None:
        """End the compiler's processes, if there are any; they start anew when needed."""
        with self._lock:
            if self._compiler is not None:
                self._compiler.close()

    def _made(self) -> GuideCompiler:
        with self._lock:
            if self._compiler is None:
                try:
                    self._compiler = self._make()
                except ValueError as error:
                    raise RequestError(str(error)) from error
            return self._compiler
