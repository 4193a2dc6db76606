"""How one request wants its tokens chosen."""

import math
from dataclasses import dataclass
from typing import Any

_INTEGERS = ("max_tokens", "min_tokens", "top_k", "choice_index")
_NUMBERS = ("temperature", "top_p", "min_p")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request; checked on construction (`ValueError` names the field).

    max_tokens: generated tokens at most, >= 1; the context length may end a request earlier.
    min_tokens: stop ids are not sampled before this many tokens are generated; 0 ... max_tokens.
    temperature: 0 is greedy (the lowest id wins a tie); otherwise the logits are divided by it.
    top_k: keep the k most likely ids; 0 keeps all.
    top_p: keep the smallest set of most likely ids whose probability reaches it; (0, 1], 1 keeps all.
    min_p: drop ids less likely than min_p times the most likely one; [0, 1], 0 keeps all.
    seed: 64-bit integer; the same seed gives the same ids whatever else the engine is doing. None draws one.
    choice_index: which of several choices for one prompt this is; part of the random key, beside the seed.
    stop_token_ids: generation ends with (and includes) the first of these.
    ignore_eos: do not stop at the model's end-of-sequence ids.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    choice_index: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            _require(self, name, _is_integer(getattr(self, name)), "an integer")
        for name in _NUMBERS:
            value = getattr(self, name)
            _require(self, name, _is_number(value) and math.isfinite(value), "a finite number")
        _require(self, "max_tokens", self.max_tokens >= 1, "at least 1")
        _require(self, "min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"from 0 to max_tokens={self.max_tokens}")
        _require(self, "temperature", self.temperature >= 0, "at least 0")
        _require(self, "top_k", 0 <= self.top_k < 2**31, "at least 0 (0 keeps every id) and below 2**31")
        _require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        _require(self, "min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        _require(self, "choice_index", 0 <= self.choice_index < 2**31, "at least 0 and below 2**31")
        seed_ok = self.seed is None or (_is_integer(self.seed) and -(2**63) <= self.seed < 2**64)
        _require(self, "seed", seed_ok, "null or a 64-bit integer")
        # Lists are accepted (JSON has no tuples) and stored as a tuple, so that the parameters stay hashable.
        ids_ok = isinstance(self.stop_token_ids, (list, tuple)) and all(
            _is_integer(i) and 0 <= i < 2**31 for i in self.stop_token_ids
        )
        _require(self, "stop_token_ids", ids_ok, "a list of token ids")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require(self, "ignore_eos", isinstance(self.ignore_eos, bool), "true or false")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _require(params: SamplingParams, name: str, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {expected}, got {getattr(params, name)!r}")
