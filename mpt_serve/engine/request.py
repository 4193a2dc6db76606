"""One request inside the engine, and the updates on it that the engine sends out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mpt_serve.engine.block_pool import extend_digests, first_link
from mpt_serve.engine.pooling import PooledStates
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.token_masks import TokenMasks
from mpt_serve.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
FAILED: tuple[FinishReason, ...] = ("cancelled", "error")  # reasons of what was not generated to its end
AbortReason = Literal["stop", "cancelled"]  # why a caller ends a request

POSITIONS_PER_PRIORITY = 16
_EXPEDITED = 4  # units of priority

NO_NUMBERS_MESSAGE = (
    "the model's logits for this request hold no finite number, so nothing can be sampled: its weights or its"
    " computation are broken"
)
NO_STATES_MESSAGE = (
    "the model's hidden states for this request hold numbers that are not finite: its weights or its computation are"
    " broken"
)


_BACKGROUND = 2**62  # positions: more than any server has requests


def queue_order(arrival: int, priority: int, background: bool = False) -> tuple[int, int]:
    """Return a request's sort key in the queue, the smallest first.

    Finitely many later requests can be sorted before an earlier one: no request starves, but for those that run in the
    background, which come after all others.
    arrival: number of requests that came before.
    """
    return arrival + POSITIONS_PER_PRIORITY * priority + background * _BACKGROUND, arrival


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The likelihood of an id by the model's own distribution.

    logprob: natural logarithm of its probability.
    rank: 1 for the likeliest id, 1 + the number of likelier ids otherwise.
    top: the likeliest ids with their log probabilities, the likeliest first; as many as the request wants.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """An update on one choice of a request. Exactly one delta of a choice has a finish_reason, and it is its last.

    token_ids: newly generated ids, in order; the stop id that ended the choice is included.
    stop_reason: the id that matched, when finish_reason is 'stop'; None when the caller ended the choice.
    num_cached_tokens: prompt tokens whose keys and values were reused rather than computed.
    message: the error, when finish_reason is 'error'.
    index: the choice's index: choice_index ... choice_index + n - 1.
    logprobs: one for each of token_ids, where the request wants them.
    prompt_logprobs: one for each of the prompt's ids, None for the first; once, with a delta of the first choice.
    hidden_states: what the request's pooling returns, with the last delta: one vector, or those of all tokens one after
        the other, as float32 in little-endian bytes.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: int | None
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    message: str | None = None
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    hidden_states: bytes | None = None

    @property
    def failed(self) -> bool:
        """Return whether the choice has ended without being generated to its end."""
        return self.finish_reason in FAILED


def ignore_delta(delta: Delta) -> None:
    """Do nothing: the listener of a request whose own listener has failed."""


@dataclass(slots=True, eq=False)
class Request:
    """One choice of a request: its ids and its state in the engine. Counters are in tokens.

    siblings: the same list for all choices of a request: those that have not finished. They share a computed prompt.
    token_masks: None where every id of the vocabulary may be sampled.
    embeds: what stands in the prompt in place of ids; None for ids alone.
    num_resumed: how many of output_ids another engine generated and delivered.
    num_computed: tokens whose keys and values are in the cache, counting the steps already dispatched.
    num_cached: prompt tokens that were not computed for this choice, when it was first admitted.
    in_flight: sampled tokens that the device has been asked for and the host has not read yet.
    blocks: the block table: cache block i holds positions [i * block_size, (i + 1) * block_size).
    digests: of its full blocks, as far as they were needed; num_published of them name blocks of this request.
    slot: row of the device's slot state (last sampled token, penalties, bias) while running, else None.
    slot_state_is_set: the slot's penalties and bias are this request's.
    prompt_logprobs: of the prompt's first ids, as far as they are known. prompt_logprobs_sent: they were delivered.
    pooled: the prompt's hidden states, as far as they are known; None where they are not wanted.
    arrival: order of submission, assigned by the scheduler. patient: others come first if it is in the background.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int  # 64 bits, unsigned
    max_output: int  # generated tokens at most: max_tokens, or what the context length leaves
    choice_index: int = 0
    stop_ids: frozenset[int] = frozenset()
    on_delta: Callable[[Delta], None] = ignore_delta
    siblings: list["Request"] = field(default_factory=list)
    token_masks: TokenMasks | None = None
    embeds: PromptEmbeds | None = None
    output_ids: list[int] = field(default_factory=list)
    num_resumed: int = 0
    num_computed: int = 0
    num_cached: int | None = None
    in_flight: int = 0
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_published: int = 0
    slot: int | None = None
    slot_state_is_set: bool = False
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    prompt_logprobs_sent: bool = False
    pooled: PooledStates | None = None
    arrival: int = -1
    patient: bool = True
    finish_reason: FinishReason | None = None

    def resume(self, generated: list[int]) -> None:
        """Continue after ids that another engine generated. Raises `RequestError` where the grammar rejects them."""
        self.output_ids, self.num_resumed = generated, len(generated)
        if self.token_masks is not None:
            try:
                for token in generated:
                    self.token_masks.accept(token)
            except ValueError:
                raise RequestError("generated does not match the request's grammar") from None

    @property
    def order(self) -> tuple[int, int]:
        """Return the sort key in queues; see `queue_order`."""
        priority = self.params.priority - _EXPEDITED * self.params.expedited
        return queue_order(self.arrival, priority, self.background)

    @property
    def hurries(self) -> bool:
        """Return whether it is expedited and its prompt has not been computed."""
        expedited = self.params.expedited and self.pooled is None and not self.background
        return expedited and self.num_computed < len(self.prompt_ids)

    @property
    def background(self) -> bool:
        """Return whether nobody waits for the request, and others come first."""
        return self.params.background and self.patient

    @property
    def num_known(self) -> int:
        """Return the number of tokens whose ids the host knows."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_tokens(self) -> int:
        """Return the length of the sequence, counting tokens in flight."""
        return len(self.prompt_ids) + len(self.output_ids) + self.in_flight

    @property
    def num_generated(self) -> int:
        """Return the number of generated tokens, counting those in flight."""
        return len(self.output_ids) + self.in_flight

    @property
    def exhausted(self) -> bool:
        """Return whether every token that the request may generate has been generated or is in flight."""
        return self.num_generated >= self.max_output

    @property
    def is_first(self) -> bool:
        """Return whether this choice represents the prompt where that counts once."""
        return self.choice_index == self.params.choice_index

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Return whether this choice scores and delivers the prompt's log probabilities."""
        return self.params.prompt_logprobs is not None and self.is_first and not self.num_resumed

    @property
    def wants_states(self) -> bool:
        """Return whether something is computed of the hidden states of its steps."""
        return self.wants_prompt_logprobs or self.pooled is not None or self.params.logprob_token_ids is not None

    @property
    def read_ids(self) -> list[int]:
        """Return the prompt's ids without those that embeddings stand for."""
        if self.embeds is None:
            return list(self.prompt_ids)
        replaced = set(self.embeds.positions.tolist())
        return [token for position, token in enumerate(self.prompt_ids) if position not in replaced]

    def known_ids(self, start: int, stop: int) -> list[int]:
        """Return the ids at positions [start, stop) that the host knows; a token in flight is missing at the end."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.output_ids[start - prompt : stop - prompt]
        return [*self.prompt_ids[start:stop], *self.output_ids[: max(0, stop - prompt)]]

    def extend_digests(self, known: int, block_size: int) -> None:
        """Digest the full blocks of the first `known` ids."""
        begin = len(self.digests) * block_size
        if known - begin >= block_size:
            content = None if self.embeds is None else self.embeds.content
            first = first_link(self.params.cache_salt)
            extend_digests(self.digests, self.known_ids(begin, known), block_size, first, content)
