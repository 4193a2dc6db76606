"""A backend without a model: it echoes each prompt, byte by byte, with made-up log probabilities."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice, repeat, zip_longest
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta, TokenLogprobs
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import GenerationRequest, ModelInfo, OnDelta, Readiness
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_template import Message
from mpt_serve.text.tokenizer import TextTokenizer


def byte_tokenizer() -> TextTokenizer:
    """One id per byte, and 256 for the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return TextTokenizer(tokenizer, eos_token_ids=[256])


EOS = 256
MODEL = ModelInfo(
    id="mpt-echo",
    created=1_700_000_000,
    max_model_len=256,
    vocab_len=257,
    hidden_size=3,
    max_chars_per_token=13,
)


READY = Readiness(ready=True)
FAILURE = Delta((), "error", None, 0, message='File "/srv/engine.py" at 0x7f00')


@dataclass
class FakeBackend:
    """`generate` echoes the prompt's ids, then ends the text. The fields below steer it.

    outputs: ids of the choices, in order and cyclically, in place of the echo; a choice still ends where it must.
    reversed_choices: deltas of the last choice come first.
    stopped_choices: of the last request; no more deltas of them are sent.
    """

    model: ModelInfo = MODEL
    state: Readiness = READY
    ids_per_delta: int = 1
    pause_s: float = 0.0  # before each delta
    hang_after: int | None = None  # deltas after which nothing more comes
    hang_from: int | None = None  # requests in `started` after which the next ones get nothing
    fail_after: int | None = None  # deltas after which the engine reports an error
    failure: Delta = FAILURE
    refusal: Exception | None = None  # raised instead of the first delta
    outputs: list[list[int]] = field(default_factory=list)
    reversed_choices: bool = False
    started: list[tuple[str, SamplingParams]] = field(default_factory=list)
    grammars: list[GrammarSpec | None] = field(default_factory=list)  # of the requests in `started`
    conversations: list[tuple[Sequence[Message], Sequence[Mapping[str, Any]]]] = field(default_factory=list)
    embeds: list[PromptEmbeds | None] = field(default_factory=list)  # of the requests in `started`
    clients: list[str] = field(default_factory=list)  # of the requests in `started`
    admitted: list[tuple[int, int]] = field(default_factory=list)
    full: bool = False  # the capacity is exhausted
    reserved: int = 0  # requests that are counted now
    running: set[str] = field(default_factory=set)
    most_running: int = 0  # at the same time, so far
    encoding: int = 0
    most_encoding: int = 0
    cancelled: list[str] = field(default_factory=list)
    stopped_choices: Set[int] = frozenset()

    def __post_init__(self) -> None:
        self.tokenizer = byte_tokenizer()

    async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
        self.encoding += 1
        self.most_encoding = max(self.most_encoding, self.encoding)
        await asyncio.sleep(0)
        self.encoding -= 1
        return self.tokenizer.encode(text, add_special_tokens, parse_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]],
        add_special_tokens: bool,
    ) -> list[int]:
        self.conversations.append((messages, tools))
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        begin = "^" if add_special_tokens else ""
        return self.tokenizer.encode(begin + text + ("[assistant]" if add_generation_prompt else ""))

    async def readiness(self) -> Readiness:
        return self.state

    async def wait_ready(self) -> Readiness:
        return self.state

    def retry_after_s(self) -> float | None:
        return 3.0 if self.full else None

    def load(self) -> int:
        return self.reserved

    @contextmanager
    def reserve(self) -> Iterator["FakeBackend"]:
        if self.full:
            raise NotReadyError("The server is at capacity.", retry_after_s=3)
        self.reserved += 1
        try:
            yield self
        finally:
            self.reserved -= 1

    def admit(self, prompts: Sequence[int], choices: int) -> None:
        self.admitted.append((len(prompts), choices))

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        self.stopped_choices = stopped_choices
        if self.refusal is not None:
            raise self.refusal
        if max(request.ids) >= self.model.vocab_len:
            raise RequestError("an id is out of range")
        self.started.append((request.request_id, request.params))
        self.grammars.append(request.grammar)
        self.clients.append(request.client)
        self.embeds.append(request.embeds)
        self.running.add(request.request_id)
        self.most_running = max(self.most_running, len(self.running))
        unfinished = set(range(request.params.n))
        hangs = self.hang_from is not None and len(self.started) > self.hang_from
        try:
            if hangs:
                await asyncio.Event().wait()
            for number, delta in enumerate(self._deltas(request.ids, request.params)):
                await asyncio.sleep(self.pause_s)
                if number == self.hang_after:
                    await asyncio.Event().wait()
                if number == self.fail_after:
                    on_delta(self.failure)
                    return
                if delta.finish_reason is not None:
                    unfinished.discard(delta.index)
                if delta.index not in stopped_choices:
                    on_delta(delta)
                if unfinished <= stopped_choices:
                    return
        finally:
            self.running.discard(request.request_id)
            if unfinished:
                self.cancelled.append(request.request_id)

    def _deltas(self, ids: Sequence[int], params: SamplingParams) -> list[Delta]:
        """Return all choices' deltas, one of each choice in turn."""
        order = range(params.n)[::-1] if self.reversed_choices else range(params.n)
        choices = [choice_deltas(ids, params, index, self._output(ids, params, index)) for index in order]
        merged = [merge(deltas, self.ids_per_delta) for deltas in choices]
        return [delta for turn in zip_longest(*merged) for delta in turn if delta is not None]

    def _output(self, ids: Sequence[int], params: SamplingParams, index: int) -> Iterator[int]:
        if self.outputs:
            return chain(self.outputs[index % len(self.outputs)], repeat(EOS))
        return cycle([*ids, ids[0] if params.ignore_eos else EOS])


def choice_deltas(ids: Sequence[int], params: SamplingParams, index: int, output: Iterator[int]) -> list[Delta]:
    """Return the deltas of a choice, an id in each."""
    prompt_logprobs = None
    if params.prompt_logprobs is not None and index == 0:
        prompt_logprobs = (None, *(likelihood(token_id, params.prompt_logprobs) for token_id in ids[1:]))
    head = {"num_prompt_tokens": len(ids), "num_cached_tokens": len(ids) // 2, "index": index}
    deltas: list[Delta] = []
    for count, token_id in enumerate(islice(output, params.max_tokens), 1):
        if token_id == EOS and count <= params.min_tokens:
            token_id = ids[0]
        stops = (token_id == EOS and not params.ignore_eos) or token_id in params.stop_token_ids
        reason: Any = "stop" if stops else "length" if count == params.max_tokens else None
        logprobs = None if params.logprobs is None else (likelihood(token_id, params.logprobs),)
        if logprobs and params.logprob_token_ids is not None:
            logprobs = (replace(logprobs[0], top=tuple((i, -i / 8) for i in params.logprob_token_ids)),)
        deltas.append(Delta((token_id,), reason, token_id if stops else None, **head, logprobs=logprobs))
        if reason is not None:
            break
    deltas = deltas or [Delta((), "length", None, **head, hidden_states=hidden_states(ids, params))]
    return [replace(deltas[0], prompt_logprobs=prompt_logprobs), *deltas[1:]]


def hidden_states(ids: Sequence[int], params: SamplingParams) -> bytes | None:
    """Return what pooling makes of made-up vectors: of the length 3, with the id in them."""
    if params.pooling is None:
        return None
    vectors = np.array([[2.0, 1.0, -2.0] if i % 2 else [0.0, -3.0, i / 2**20] for i in ids])
    vectors = {"none": vectors, "mean": vectors.mean(axis=0)[None], "last": vectors[-1:]}[params.pooling]
    if params.normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype("<f4").tobytes()


def likelihood(token_id: int, count: int) -> TokenLogprobs:
    """Return the log probabilities of an id, a function of the id alone: of rank 1, 2 or 3, among its neighbours."""
    rank = token_id % 3 + 1
    others = iter((token_id + 37 * distance) % 257 for distance in range(1, 30))
    top = [(token_id if place == rank else next(others), -0.1 * place * place) for place in range(1, 21)]
    return TokenLogprobs(-0.1 * rank * rank, rank, tuple(top[:count]))


def merge(deltas: Sequence[Delta], size: int) -> list[Delta]:
    """Return the deltas of a choice, `size` of them merged into each."""
    runs = [deltas[i : i + size] for i in range(0, len(deltas), size)]
    return [
        replace(
            run[-1],
            token_ids=tuple(token_id for delta in run for token_id in delta.token_ids),
            logprobs=None if run[0].logprobs is None else tuple(own for d in run for own in d.logprobs or ()),
            prompt_logprobs=run[0].prompt_logprobs,
        )
        for run in runs
    ]
