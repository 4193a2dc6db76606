"""A backend without a model: it answers each prompt with the prompt, byte by byte."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mpt_serve.engine.request import Delta, RequestError
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import ModelInfo, Readiness
from mpt_serve.text.chat_template import Message
from mpt_serve.text.detokenizer import IncrementalDetokenizer
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
    eos_token_ids=(EOS,),
    has_chat_template=True,
    max_chars_per_token=13,
)


READY = Readiness(ready=True)
FAILURE = Delta((), "error", None, 0, message='File "/srv/engine.py" at 0x7f00')


@dataclass
class FakeBackend:
    """`generate` echoes the prompt's ids, then ends the text. The fields below steer it."""

    model: ModelInfo = MODEL
    state: Readiness = READY
    ids_per_delta: int = 1
    pause_s: float = 0.0  # before each delta
    hang_after: int | None = None  # deltas after which nothing more comes
    fail_after: int | None = None  # deltas after which the engine reports an error
    failure: Delta = FAILURE
    refusal: Exception | None = None  # raised instead of the first delta
    started: list[tuple[str, SamplingParams]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = byte_tokenizer()

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens)

    async def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[int]:
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        return self.tokenizer.encode(text + ("[assistant]" if add_generation_prompt else ""))

    async def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def detokenizer(self, skip_special_tokens: bool) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.tokenizer, skip_special_tokens, continues_text=True)

    async def readiness(self) -> Readiness:
        return self.state

    def admit(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        return nullcontext()

    async def generate(
        self, ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        if self.refusal is not None:
            raise self.refusal
        if max(ids) >= self.model.vocab_len:
            raise RequestError("an id is out of range")
        self.started.append((request_id, params))
        self.running.add(request_id)
        finished = False
        try:
            for number, delta in enumerate(echo(ids, params, self.ids_per_delta)):
                await asyncio.sleep(self.pause_s)
                if number == self.hang_after:
                    await asyncio.Event().wait()
                if number == self.fail_after:
                    yield self.failure
                    return
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self.running.discard(request_id)
            if not finished:
                self.cancelled.append(request_id)


def echo(ids: Sequence[int], params: SamplingParams, ids_per_delta: int) -> list[Delta]:
    """Return the deltas of the prompt's echo under the given parameters."""
    output: list[int] = []
    stop_reason = None
    while len(output) < params.max_tokens and stop_reason is None:
        at_end = len(output) % (len(ids) + 1) == len(ids)
        token = EOS if at_end and not params.ignore_eos else ids[len(output) % len(ids)]
        if len(output) < params.min_tokens and token == EOS:
            token = ids[0]
        output.append(token)
        if (token == EOS and not params.ignore_eos) or token in params.stop_token_ids:
            stop_reason = token
    chunks = [tuple(output[i : i + ids_per_delta]) for i in range(0, len(output), ids_per_delta)]
    finish_reason = "length" if stop_reason is None else "stop"
    return [
        *(Delta(chunk, None, None, len(ids), len(ids) // 2) for chunk in chunks[:-1]),
        Delta(chunks[-1], finish_reason, stop_reason, len(ids), len(ids) // 2),
    ]
