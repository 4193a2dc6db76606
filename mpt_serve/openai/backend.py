"""What the HTTP endpoints need from the machinery behind them."""

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import Pooling, SamplingParams
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_template import Message
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["Backend", "GenerationRequest", "ModelInfo", "OnDelta", "Readiness", "Reservation"]


@dataclass(frozen=True)
class ModelInfo:
    """The served model, as `/v1/models` and the request checks see it."""

    id: str
    created: int  # seconds since the epoch
    max_model_len: int  # tokens of prompt and output together; 0 while the model loads and it is not known
    vocab_len: int  # ids in [0, vocab_len) have a token; others are refused in prompts
    root: str | None = None  # the checkpoint of the model; None shows the id
    chat_refusal: str | None = None  # why it takes no conversations; None: it does
    chat_template: str | None = None  # its source, in Jinja; None: it takes no conversations
    tools_refusal: str | None = None  # why conversations cannot have tools; None: they can
    hidden_size: int = 0  # numbers in an embedding; 0 while the model loads
    embedding_pooling: Pooling = "mean"  # where a request names none
    prompt_embeds: bool = False  # prompts may be embeddings
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # of fields that requests leave out
    max_chars_per_token: int | None = None  # no token stands for more characters; None: no bound before tokenizing


@dataclass(frozen=True)
class Readiness:
    """Whether a request would be served now. `code` is `loading`, `overloaded` or `shutting_down` if it would not.

    stage, progress: of a model that loads: what it does, and how much of that is done, from 0 to 1; None: not known.
    """

    ready: bool
    reason: str = ""
    code: str = "loading"
    retry_after_s: int = 5
    stage: str = ""
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and how to continue it: `params.n` choices.

    grammar: what every choice must match; None for free text. request_id: for logs; need not be unique.
    client: name of the owner of the request's key, empty where no keys are required; clients have turns.
    embeds: what stands in the prompt in place of ids; None for ids alone.
    """

    ids: Sequence[int]
    params: SamplingParams
    grammar: GrammarSpec | None
    request_id: str
    client: str = ""
    embeds: PromptEmbeds | None = None


OnDelta = Callable[[Delta], None]  # a plain function, called on the event loop


class Reservation(Protocol):
    """One HTTP request's part of the server's capacity."""

    def admit(self, prompts: Sequence[int], choices: int) -> None:
        """Count the request by its n `choices` of prompts with these numbers of tokens.

        Raises `NotReadyError` if the capacity is exhausted.
        """


class Backend(Protocol):
    """Tokenizer and generator behind the endpoints.

    Any method may raise an `ApiError` (`NotReadyError`, `ShuttingDownError`), which keeps its status. `RequestError`
    becomes a 400, `BusyError` and `EngineClosedError` a 503; anything else a 500 whose text stays in the log.
    """

    @property
    def model(self) -> ModelInfo:
        """Return the served model."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Return the model's tokenizer, for what is made of generated ids."""

    async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> Sequence[int]:
        """Return the text's ids; see `TextTokenizer.encode`."""

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]],
        add_special_tokens: bool,
    ) -> Sequence[int]:
        """Return the ids of the rendered conversation; raises `ChatTemplateError`.

        tools: definitions as in OpenAI's API. add_special_tokens: the tokenizer adds its own to the template's.
        """

    def retry_after_s(self) -> float | None:
        """Return None while a new request would be counted, or else the seconds after which to send it again."""

    def load(self) -> int:
        """Return the number of choices that wait or run."""

    def reserve(self) -> AbstractContextManager[Reservation]:
        """Count an HTTP request towards the server's capacity while entered, before its body is read.

        Raises `NotReadyError` if the capacity is exhausted.
        """

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        """Generate, and return when each choice has had its last delta or is in `stopped_choices`.

        on_delta: called with the deltas of all choices in order; one with a finish_reason is the last of its choice.
        stopped_choices: indices of choices of which no more is wanted. `on_delta` adds to them, and the engine then
            ends these choices; no further delta of them needs to come.
        Cancelling the coroutine ends the request in the engine, and so does an exception of `on_delta`, which is
        raised here. Raises what ended the request otherwise.
        """

    async def readiness(self) -> Readiness:
        """Return whether a request would be served now, from memory."""

    async def wait_ready(self) -> Readiness:
        """Return the readiness for a request that can wait: while replicas are replaced, after a bounded wait."""
