"""What the HTTP routes need from the machinery behind them."""

from collections.abc import AsyncIterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.text.chat_template import Message

__all__ = ["Backend", "DeltaStream", "Detokenizer", "ModelInfo", "Readiness"]


@dataclass(frozen=True)
class ModelInfo:
    """The served model, as `/v1/models` and the request checks see it."""

    id: str
    created: int  # seconds since the epoch
    max_model_len: int  # prompt and completion together, in tokens; 0 while the model loads and it is not known
    vocab_len: int  # ids in [0, vocab_len) mean something; others are refused in prompts
    root: str | None = None  # the checkpoint the model came from; None shows the id
    has_chat_template: bool = False
    max_chars_per_token: int | None = None  # no token stands for more characters; None: no bound before tokenizing


@dataclass(frozen=True)
class Readiness:
    """Whether a request would be served now. `code` is `loading`, `overloaded` or `shutting_down` when it would not."""

    ready: bool
    reason: str = ""
    code: str = "loading"
    retry_after_s: int = 5


class DeltaStream(Protocol):
    """One request's deltas; any async generator of `Delta` is one."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """Iterate over the deltas of all choices; one with a finish_reason is its choice's last."""

    async def aclose(self) -> None:
        """End the request in the engine, from whatever state it is in."""


class Detokenizer(Protocol):
    """Ids to text as they come; `IncrementalDetokenizer` is one."""

    @property
    def unfinished(self) -> bool:
        """Bytes of a character wait for its last one."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that these ids complete."""

    def flush(self) -> str:
        """Return what is left when no more ids come."""


class Backend(Protocol):
    """Tokenizer and generator behind the routes.

    Any method may raise an `ApiError` of its own choice (`NotReadyError`, `ShuttingDownError`), which keeps its
    status. `RequestError` and `ChatTemplateError` become a 400, `BusyError` and `EngineClosedError` a 503; anything
    else a 500 whose text stays in the log.
    """

    @property
    def model(self) -> ModelInfo:
        """The served model."""

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids."""

    async def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[int]:
        """Return the ids of the rendered conversation; raises `ChatTemplateError`."""

    async def decode(self, ids: Sequence[int]) -> str:
        """Return the ids' text, special tokens included."""

    async def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the sequences of ids to forbid so that none of the words is written."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return what the token adds to a text; nothing for an id without a token."""

    def detokenizer(self, skip_special_tokens: bool, continues_text: bool = True) -> Detokenizer:
        """Return a fresh detokenizer, for text that continues a prompt or for a prompt itself."""

    def admit(self, prompts: Sequence[Sequence[int]], choices: int) -> AbstractContextManager[None]:
        """Hold the places of one HTTP request while entered, of so many choices for each prompt.

        Raises `NotReadyError` when there are none.
        """

    def generate(self, ids: Sequence[int], params: SamplingParams, request_id: str, unwanted: Set[int]) -> DeltaStream:
        """Start a request for `params.n` choices. Closing the stream, or cancelling its reader's task, ends it.

        unwanted: choices that the reader wants nothing more of. It adds to them while it reads, and the engine soon
        ends them, which may be silent.
        """

    async def readiness(self) -> Readiness:
        """Say whether a request would be served now; asked before each request, so it answers from memory."""
