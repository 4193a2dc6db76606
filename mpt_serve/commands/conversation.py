"""A conversation with a server: its messages, and the streams that continue it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpt_serve.commands.server_client import ServerClient

__all__ = ["Conversation", "Reply"]

_SHORT_S = 0.1


@dataclass
class Reply:
    """What the model wrote to one message, and when.

    tokens: as the server counts them, or else the number of its deltas. ttft_s: until the first text; None where there
        is none. seconds: from the first text to the last. finish_reason: None if the stream was stopped.
    """

    text: str = ""
    tokens: int = 0
    prompt_tokens: int | None = None
    ttft_s: float | None = None
    seconds: float = 0.0
    finish_reason: str | None = None

    def tokens_per_s(self) -> float | None:
        """Return the rate after the first token; None where one token alone came.

        Of a short reply it is that since the message was sent: tokens that came together say nothing of the rate.
        """
        if self.tokens < 2 or self.ttft_s is None:
            return None
        if self.seconds < _SHORT_S:
            return self.tokens / (self.ttft_s + self.seconds)
        return (self.tokens - 1) / self.seconds

    def summary(self) -> str:
        """Return the figures as one line."""
        rate = self.tokens_per_s()
        parts = [f"{self.tokens} tokens"]
        parts += [] if rate is None else [f"{rate:.1f} tokens/s"]
        parts += [] if self.ttft_s is None else [f"TTFT {1000 * self.ttft_s:.0f} ms"]
        parts += [] if self.prompt_tokens is None else [f"{self.prompt_tokens} prompt tokens"]
        if self.finish_reason != "stop":
            parts.append("stopped" if self.finish_reason is None else f"ended by {self.finish_reason}")
        return ", ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "content": self.text,
            "finish_reason": self.finish_reason,
            "completion_tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "ttft_s": self.ttft_s,
            "tokens_per_s": self.tokens_per_s(),
        }


@dataclass
class Conversation:
    """Messages in OpenAI's form. system: the system prompt; None for the chat template's own."""

    client: ServerClient
    model: str
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def send(self, text: str, write: Callable[[str], None]) -> Reply:
        """Say something, pass each piece of the reply to `write` as it comes, and keep both.

        KeyboardInterrupt stops the reply, and what there is of it stays in the conversation. Raises CommandError, after
        which the conversation is as before.
        """
        reply = Reply()
        message = {"role": "user", "content": text}
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        body = {
            "model": self.model,
            "messages": [*before, *self.turns, message],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        try:
            self._read(body, reply, write)
        except KeyboardInterrupt:
            reply.finish_reason = None
        self.turns += [message, {"role": "assistant", "content": reply.text}]
        return reply

    def take_back(self) -> str | None:
        """Remove the last message with its reply, and return the message; None where there is none."""
        if not self.turns:
            return None
        message = self.turns[-2]["content"]
        del self.turns[-2:]
        return message

    def _read(self, body: Mapping[str, Any], reply: Reply, write: Callable[[str], None]) -> None:
        begun = time.monotonic()
        with self.client.events("/chat/completions", body) as events:
            for event in events:
                for choice in event.get("choices") or ():
                    piece = (choice.get("delta") or {}).get("content")
                    if piece:
                        now = time.monotonic()
                        if reply.ttft_s is None:
                            reply.ttft_s = now - begun
                        reply.seconds = now - begun - reply.ttft_s
                        reply.text += piece
                        reply.tokens += 1
                        write(piece)
                    reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
                usage = event.get("usage")
                if usage:
                    reply.tokens = usage.get("completion_tokens", reply.tokens)
                    reply.prompt_tokens = usage.get("prompt_tokens")
