"""Bounds on what one request may ask for."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Limits"]


def _bound(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Limits:
    """Bounds on one request. Sizes in bytes, times in seconds; each field's metadata says what it bounds."""

    max_body_bytes: int = _bound(4 * 1024 * 1024, "bytes of a body, counted while it is read")
    max_json_depth: int = _bound(32, "depth of a body's arrays and objects")
    max_json_items: int = _bound(262_144, "elements and members in a body, over all depths")
    max_header_bytes: int = _bound(64 * 1024, "bytes of all headers together")
    max_headers: int = _bound(256, "headers")
    max_prompts: int = _bound(128, "prompts in one completions request")
    max_choices: int = _bound(256, "choices in one request: prompts times `n`, or times `best_of`")
    max_prompt_logprobs: int = _bound(
        262_144, "log probabilities of prompts in one answer: tokens times choices times those of one token"
    )
    request_timeout_s: float = _bound(600.0, "seconds from a request's first byte to its answer's last")
    keep_alive_s: float = _bound(15.0, "seconds of silence after which a stream sends a comment")
    first_token_wait_s: float = _bound(
        15.0, "seconds after which a stream begins without its first token; an error before that keeps its own status"
    )
