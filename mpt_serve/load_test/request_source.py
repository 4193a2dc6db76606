"""The requests of a load test, as the bytes to send."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mpt_serve.load_test.prompts import Lengths, WordCounts, words

__all__ = ["Api", "RequestSource", "request_body"]

Api = Literal["completions", "chat"]
_PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}


@dataclass(frozen=True)
class RequestSource:
    """Makes requests with random words; the same number makes the same one.

    path: of the API, such as /v1. authority: the value of the Host header.
    """

    api: Api
    model: str
    path: str
    authority: str
    key: str | None
    prompt_tokens: Lengths
    output_tokens: Lengths
    word_counts: WordCounts
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __call__(self, number: int) -> bytes:
        """Return the request with a number."""
        source = random.Random(f"{self.seed} {number}")
        text = words(self.word_counts.words_for(self.prompt_tokens.draw(source)), source)
        body = request_body(self.api, self.model, text, self.output_tokens.draw(source))
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return self._with_head(json.dumps({**body, **stream, **self.options}).encode())

    def _with_head(self, body: bytes) -> bytes:
        lines = [
            f"POST {self.path}{_PATHS[self.api]} HTTP/1.1",
            f"Host: {self.authority}",
            "User-Agent: mpt-serve-bench",
            "Accept: text/event-stream",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([] if self.key is None else [f"Authorization: Bearer {self.key}"]),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


def request_body(api: Api, model: str, text: str, max_tokens: int) -> dict[str, Any]:
    """Return the fields of a request that states a text."""
    prompt = {"prompt": text} if api == "completions" else {"messages": [{"role": "user", "content": text}]}
    return {"model": model, **prompt, "max_tokens": max_tokens}
