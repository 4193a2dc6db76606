"""The sampling parameters of one request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from annotated_types import Interval

Pooling = Literal["mean", "last", "none"]
POOLINGS: Final = get_args(Pooling)

MAX_INT32 = 2**31 - 1
MAX_LOGPROBS = 20
MAX_BIASED_IDS = 1024

# The one statement of these bounds: the HTTP API's fields are annotated with them, and may narrow them.
INTEGER_BOUNDS: Final[Mapping[str, Interval]] = {
    "max_tokens": Interval(ge=0, le=MAX_INT32),
    "min_tokens": Interval(ge=0, le=MAX_INT32),
    "top_k": Interval(ge=0, le=MAX_INT32),
    "n": Interval(ge=1, le=1024),
    "choice_index": Interval(ge=0, le=MAX_INT32),
    "priority": Interval(ge=-1000, le=1000),
    "prompt_logprobs_start": Interval(ge=0, le=MAX_INT32),
}
NUMBER_BOUNDS: Final[Mapping[str, Interval]] = {
    "temperature": Interval(ge=0),
    "top_p": Interval(gt=0, le=1),
    "min_p": Interval(ge=0, le=1),
    "repetition_penalty": Interval(gt=0, le=10),
    "presence_penalty": Interval(ge=-2, le=2),
    "frequency_penalty": Interval(ge=-2, le=2),
}
LOGPROBS_BOUNDS: Final = Interval(ge=0, le=MAX_LOGPROBS)
MAX_LOGPROB_TOKEN_IDS = 128
_ID_LISTS = {"stop_token_ids": False, "allowed_token_ids": True, "logprob_token_ids": True}  # whether it may be null


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request; checked on construction (`ValueError` names the field).

    max_tokens: generated tokens at most; the context length may end a request earlier. 0 only reads the prompt.
    min_tokens: stop ids are not sampled before this many tokens are generated; 0 ... max_tokens.
    temperature: 0 is greedy (the lowest id wins a tie); otherwise the logits are divided by it.
    top_k: keep the k most likely ids; 0 keeps all.
    top_p: keep the smallest set of most likely ids whose probability reaches it; (0, 1], 1 keeps all.
    min_p: drop ids less likely than min_p times the most likely one; [0, 1], 0 keeps all.
    repetition_penalty: divides positive logits, and multiplies negative ones, of ids in prompt or output; above 0.
    presence_penalty: subtracted from the logits of ids in the output.
    frequency_penalty: subtracted once for each occurrence of the id in the output.
    logit_bias: added to the logits of these ids, at most 1,024 of them; a mapping, stored as pairs.
    allowed_token_ids: no other id is sampled; None allows all.
    bad_words: sequences of ids that the output never contains; the last id of one is not sampled after the others.
    seed: 64-bit integer; the same seed gives the same ids whatever else the engine is doing. None takes a random one.
    n: choices, each with its own random numbers; they share the prompt's keys and values.
    choice_index: index of the first choice; part of the random key, beside the seed.
    stop_token_ids: generation ends with (and includes) the first of these.
    ignore_eos: do not stop at the model's end-of-sequence ids.
    logprobs: log probabilities of each generated id and of this many of the most likely ones, 0 ... 20; None for none.
        They are the model's own: before penalties, bias, masks and temperature.
    logprob_token_ids: log probabilities of these ids, at most 128, after each token, in place of those of the most
        likely ones; `logprobs` is then 0, which it need not say.
    prompt_logprobs: those of the prompt's ids.
    prompt_logprobs_start: the first of the prompt's ids that has them; those before may come from the prefix cache.
    pooling: return the hidden states of the prompt's tokens after the model's last norm: their mean, the last token's
        alone, or with 'none' each token's; None for nothing. It needs max_tokens=0, n=1 and no log probabilities.
    normalize: scale what pooling returns to vectors of length 1; one of zeros stays as it is.
    priority: each unit is worth 16 positions in the queue, negative ones towards the front; -1,000 ... 1,000.
    expedited: its prompt is computed in steps of expedited requests alone, in one of two steps at most, and it is 64
        positions further ahead in the queue: for a client that has had less than others.
    background: nobody waits for it: it comes after all others in queues, and runs where they leave something.
    cache_salt: requests reuse each other's cached prompts only where their salts are equal.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    n: int = 1
    choice_index: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    pooling: Pooling | None = None
    normalize: bool = False
    priority: int = 0
    expedited: bool = False
    background: bool = False
    cache_salt: str = ""

    def __post_init__(self) -> None:
        for name, bounds in INTEGER_BOUNDS.items():
            _require(self, name, is_integer(getattr(self, name)), "an integer")
            _require(self, name, _within(getattr(self, name), bounds), _words(bounds))
        for name, bounds in NUMBER_BOUNDS.items():
            _require(self, name, is_finite(getattr(self, name)), "a finite number")
            _require(self, name, _within(getattr(self, name), bounds), _words(bounds))
        _require(self, "min_tokens", self.min_tokens <= self.max_tokens, f"from 0 to max_tokens={self.max_tokens}")
        seed_ok = self.seed is None or (is_integer(self.seed) and -(2**63) <= self.seed < 2**64)
        _require(self, "seed", seed_ok, "null or a 64-bit integer")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            count_ok = value is None or (is_integer(value) and _within(value, LOGPROBS_BOUNDS))
            _require(self, name, count_ok, f"null or an integer {_words(LOGPROBS_BOUNDS)}")
        for name in ("ignore_eos", "normalize", "expedited", "background"):
            _require(self, name, isinstance(getattr(self, name), bool), "true or false")
        _require(self, "cache_salt", isinstance(self.cache_salt, str), "a string")
        self._check_pooling()
        self._check_ids()

    def _check_pooling(self) -> None:
        """Check that a request for hidden states asks for nothing else."""
        names = ", ".join(map(repr, POOLINGS))
        _require(self, "pooling", self.pooling is None or self.pooling in POOLINGS, f"null or one of {names}")
        if self.pooling is not None:
            _require(self, "max_tokens", self.max_tokens == 0, "0 with pooling")
            _require(self, "n", self.n == 1, "1 with pooling")
            for name in ("logprobs", "logprob_token_ids", "prompt_logprobs"):
                _require(self, name, getattr(self, name) is None, "null with pooling")

    def _check_ids(self) -> None:
        """Check lists and mappings, and store them as tuples, so that the parameters stay hashable."""
        for name, optional in _ID_LISTS.items():
            value = getattr(self, name)
            if value is not None or not optional:
                _require(self, name, _are_ids(value), "a list of token ids")
                object.__setattr__(self, name, tuple(value))
        named = self.logprob_token_ids
        named_ok = named is None or 0 < len(set(named)) == len(named) <= MAX_LOGPROB_TOKEN_IDS
        _require(self, "logprob_token_ids", named_ok, f"null or a list of 1 to {MAX_LOGPROB_TOKEN_IDS} different ids")
        if named is not None:
            _require(self, "logprobs", not self.logprobs, "null or 0 with logprob_token_ids")
            object.__setattr__(self, "logprobs", 0)
        _require(self, "allowed_token_ids", self.allowed_token_ids != (), "null or a list that is not empty")
        words = self.bad_words
        words_ok = isinstance(words, (list, tuple)) and all(_are_ids(word) and len(word) > 0 for word in words)
        _require(self, "bad_words", words_ok, "a list of lists of token ids, none empty")
        object.__setattr__(self, "bad_words", tuple(map(tuple, words)))
        self._check_bias()

    def _check_bias(self) -> None:
        bias: dict[int, float] = {}
        try:
            bias.update(self.logit_bias)
            bias_ok = len(bias) <= MAX_BIASED_IDS and _are_ids(list(bias))
        except (TypeError, ValueError):  # neither a mapping nor pairs
            bias_ok = False
        _require(self, "logit_bias", bias_ok, f"a mapping from at most {MAX_BIASED_IDS} token ids to numbers")
        finite = all(map(is_finite, bias.values()))
        _require(self, "logit_bias", finite, "a mapping from token ids to finite numbers")
        object.__setattr__(self, "logit_bias", tuple(bias.items()))

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Return logit_bias as pairs."""
        assert isinstance(self.logit_bias, tuple)  # as it is stored
        return self.logit_bias

    @property
    def greedy(self) -> bool:
        """Return whether the most likely id is taken."""
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        """Return whether the logits depend on the ids before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def is_integer(value: Any) -> bool:
    """Return whether this is an integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether this is a number that a float can hold; booleans are not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that is too large
        return False


def _are_ids(value: Any) -> bool:
    """Return whether this is a list of ids: by its types and extremes, as it may name a whole vocabulary."""
    if not isinstance(value, (list, tuple)):
        return False
    integers = all(issubclass(kind, int) and kind is not bool for kind in set(map(type, value)))
    return integers and (not value or (min(value) >= 0 and max(value) < 2**31))


def _within(value: Any, bounds: Interval) -> bool:
    """Return whether a number lies within its bounds."""
    above = value >= bounds.ge if bounds.gt is None else value > bounds.gt
    return bool(above and (bounds.le is None or value <= bounds.le))


def _words(bounds: Interval) -> str:
    """Return the bounds in words."""
    if bounds.gt is not None:
        return f"above {bounds.gt} and at most {bounds.le}"
    return f"at least {bounds.ge}" if bounds.le is None else f"from {bounds.ge} to {bounds.le}"


def _require(params: SamplingParams, name: str, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {expected}, got {getattr(params, name)!r}")
