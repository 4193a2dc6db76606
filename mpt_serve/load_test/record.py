"""One request of a load test, and when each part of its response came."""

import json
import time
from array import array
from typing import Any

__all__ = ["Record"]


class Record:
    """What is known of one request. Times are in seconds of `time.perf_counter`.

    started: when it was to be sent; waiting for a connection counts. token_times: of the events with text. ended: 0
    while it runs. error: the kind of what went wrong, empty where nothing did.
    prompt_tokens, output_tokens: as the server counts them; None where it does not say.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.ended = 0.0
        self.token_times = array("d")
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.error = ""
        self._line = b""
        self._done = False

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the output; that of its events where the server does not count."""
        return len(self.token_times) if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float | None:
        """Return the seconds to the first token; None where there is none."""
        return self.token_times[0] - self.started if self.token_times else None

    @property
    def mean_gap(self) -> float | None:
        """Return the seconds per token after the first one; None for a single token."""
        count = self.num_tokens - 1
        return (self.token_times[-1] - self.token_times[0]) / count if self.token_times and count > 0 else None

    def feed(self, body: bytes) -> None:
        """Read a part of a stream of server-sent events, which has arrived now."""
        now = time.perf_counter()
        lines = (self._line + body).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip(), now)

    def finish(self, error: str = "") -> None:
        """Take note of the end. A stream without [DONE] is incomplete."""
        self.ended = time.perf_counter()
        self.error = self.error or error or ("" if self._done else "incomplete stream")

    def _read_event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event: Any = json.loads(data)
            if "error" in event:
                self.error = self.error or f"error event ({error_kind(event)})"
                return
            for choice in event.get("choices") or ():
                if choice.get("text") or _has_text(choice.get("delta")):
                    self.token_times.append(now)
            usage = event.get("usage")
        except (ValueError, TypeError, AttributeError):
            self.error = self.error or "unreadable event"
            return
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
            self.output_tokens = usage.get("completion_tokens", self.output_tokens)


def _has_text(delta: Any) -> bool:
    return bool(delta) and bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))


def error_kind(body: Any) -> str:
    """Return what kind of error a JSON object states: a short word, no sentence."""
    error = body.get("error") if isinstance(body, dict) else None
    kind = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return str(kind or "unknown")[:60]
