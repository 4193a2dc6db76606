"""The bodies of responses and the chunks of streams, as typed dictionaries: they cost nothing where they are made."""

from typing import Literal, NotRequired

# pydantic makes JSON Schemas of these only, before Python 3.12.
from typing_extensions import TypedDict

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "CompletionChunk",
    "DetokenizeResponse",
    "ErrorBody",
    "Load",
    "LoadingBody",
    "ModelBody",
    "ModelList",
    "Rerank",
    "Scores",
    "Status",
    "TokenizeResponse",
    "TokenizerInfo",
    "UsageBody",
    "Version",
]

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class UsageBody(TypedDict):
    """Each prompt counts once; the tokens of every choice that was generated count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(TypedDict):
    """One alternative for a prompt's token."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by id, for each token of a prompt; null for the first


class CompletionLogprobs(TypedDict):
    """Four lists with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None  # the stop string, or the id among `stop_token_ids`
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None


class Completion(TypedDict):
    """The body of a whole completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class CompletionChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | int | None]  # in the last chunk of a choice
    prompt_token_ids: NotRequired[list[int] | None]  # in its first
    token_ids: NotRequired[list[int]]


class CompletionChunk(TypedDict):
    """A chunk of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[UsageBody | None]


class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class CalledFunctionBody(TypedDict):
    name: str
    arguments: str  # JSON


class ToolCallBody(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunctionBody


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None  # null if there is nothing but calls
    refusal: None
    tool_calls: NotRequired[list[ToolCallBody]]


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None


class ChatCompletion(TypedDict):
    """The body of a whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None


class CalledFunctionDelta(TypedDict):
    name: NotRequired[str]  # in the first delta of a call
    arguments: str  # the next piece


class ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]  # in the first delta of a call
    type: NotRequired[Literal["function"]]
    function: CalledFunctionDelta


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]  # in the first chunk of a choice
    content: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(TypedDict):
    """A chunk of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[UsageBody | None]
    prompt_token_ids: NotRequired[list[int] | None]  # in the first chunk


class Score(TypedDict):
    """The likelihood of one text after another."""

    index: int
    object: Literal["score"]
    score: float  # natural logarithm: the sum over its tokens, or with `normalize` their mean
    num_tokens: int
    is_greedy: bool  # each of its tokens is the most likely one


class Scores(TypedDict):
    """The body of /v1/score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: UsageBody


class Embedding(TypedDict):
    """What the model makes of one input."""

    object: Literal["embedding"]
    index: int  # of the input
    # With `encoding_format` base64 a string; with `pooling` none a vector of each token.
    embedding: list[float] | list[list[float]] | str


class Embeddings(TypedDict):
    """The body of /v1/embeddings."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: UsageBody


class RankedDocument(TypedDict):
    text: str


class Ranked(TypedDict):
    index: int  # of the request's documents
    relevance_score: float  # from 0 to 1
    document: NotRequired[RankedDocument]


class Rerank(TypedDict):
    """The body of /v1/rerank."""

    id: str
    model: str
    results: list[Ranked]  # best first
    usage: UsageBody


class ModelBody(TypedDict):
    """OpenAI's model object, with the context length and the checkpoint that clients look for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None  # null while the model loads


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelBody]


class TokenizeResponse(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None  # as the vocabulary writes them


class DetokenizeResponse(TypedDict):
    prompt: str


class Status(TypedDict):
    """The body of /health and /ready."""

    status: Literal["ok", "ready"]


class Version(TypedDict):
    version: str


class Load(TypedDict):
    """The body of /load."""

    server_load: int  # choices that wait or run


class TokenizerInfo(TypedDict):
    """The body of /tokenizer_info. Tokens are texts; null where the tokenizer has none."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int | None  # null while the model loads
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    all_special_tokens: list[str]
    chat_template: str | None  # its source, in Jinja


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class LoadingBody(TypedDict):
    """How far the start of a model is: what it does, and how much of that is done, from 0 to 1."""

    stage: str
    progress: float


class ErrorBody(TypedDict):
    """The body of every error, and the event that ends a stream with one."""

    error: ErrorDetails
    loading: NotRequired[LoadingBody]  # of a 503 `loading`, as far as it is known
