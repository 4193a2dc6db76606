"""Request bodies that are as large, or as costly to check, as a server accepts, and larger ones."""

import json
from collections.abc import Mapping

__all__ = ["MAX_BODY", "MAX_CHARS", "hostile_bodies"]

MAX_BODY = 4 * 1024 * 1024  # limits.max_body_bytes
MAX_CHARS = 524_288  # limits.max_text_chars
WORDS = "the cat sat "


def hostile_bodies() -> Mapping[str, tuple[str, bytes]]:
    """Return the path and the body of each kind, by name."""
    whole = _text(WORDS, MAX_BODY - 200)
    allowed = _text(WORDS, MAX_CHARS)
    truncated = {"max_tokens": 1, "truncate_prompt_tokens": 5}
    schema = {"type": "object", "properties": {f"p{number:05}": {"enum": ["a" * 100]} for number in range(15_000)}}
    return {
        "4 MiB of text to /tokenize": ("/tokenize", _json({"prompt": whole})),
        "0.5 Mi characters to /tokenize": ("/tokenize", _json({"prompt": allowed})),
        "0.5 Mi characters, 2 MiB, to /tokenize": ("/tokenize", _json({"prompt": _text("\U0001f389", MAX_CHARS)})),
        "4 MiB of text, truncated": ("/v1/completions", _json({**truncated, "prompt": whole})),
        "0.5 Mi characters, truncated": ("/v1/completions", _json({**truncated, "prompt": allowed})),
        "4 MiB of chat": ("/v1/chat/completions", _json({"messages": [{"role": "user", "content": whole}]})),
        "16,000 messages": (
            "/v1/chat/completions",
            _json({"messages": [{"role": "user", "content": "a"}] * 16_000, "max_tokens": 1}),
        ),
        "4 MiB of brackets": ("/v1/completions", b'{"prompt": ' + b"[" * (MAX_BODY - 20)),
        "1.4 M ids": ("/v1/completions", b'{"prompt": [' + b"1, " * ((MAX_BODY - 50) // 3) + b"1]}"),
        "260,000 ids": ("/v1/completions", b'{"prompt": [' + b"1, " * 260_000 + b"1]}"),
        "a schema of 2 MiB": ("/v1/completions", _json({"prompt": "a", "max_tokens": 4, "guided_json": schema})),
        "a larger body than allowed": ("/tokenize", _json({"prompt": _text(WORDS, 2 * MAX_BODY)})),
    }


def _text(unit: str, length: int) -> str:
    return unit * (length // len(unit))


def _json(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
