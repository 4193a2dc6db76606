"""A child process that renders one chat template under limits.

A template is a program: nested loops, strings that double or recursion keep any in-process sandbox busy for ever. A
child process can be ended when it takes too long.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpt_serve.child_process import ChildEndedError, ChildProcess

__all__ = ["TIME_LIMIT_S", "TemplateProcess", "TemplateRenderError"]

TIME_LIMIT_S = 2.0  # CPU time of one render
MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
MAX_OUTPUT_CHARS = 8 * 1024 * 1024

_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateRenderError(ValueError):
    """The template refused the conversation, failed, or exceeded a limit."""


class TemplateProcess:
    """Renders one template with fixed variables, one conversation at a time. Threads may share it."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        limits = {"seconds": TIME_LIMIT_S, "memory": MEMORY_LIMIT_BYTES, "chars": MAX_OUTPUT_CHARS}
        self._child = ChildProcess(_WORKER, {"source": source, "variables": dict(variables), "limits": limits})

    def render(self, context: Mapping[str, Any]) -> str:
        """Return the rendered template. Raises TemplateRenderError.

        Raises ChildStartError if the process cannot be started, ChildEndedError if it was ended from outside.
        """
        try:
            reply = self._child.ask(dict(context))
        except ChildEndedError as error:
            if error.killed:
                raise
            reason = f"it took longer than {TIME_LIMIT_S} s" if error.timed_out else str(error)
            raise TemplateRenderError(reason) from None
        if "error" in reply:
            raise TemplateRenderError(reply["error"])
        return str(reply["text"])

    def close(self) -> None:
        """End the child process, if there is one."""
        self._child.close()
