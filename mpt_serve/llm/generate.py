"""Whole batches of prompts, for callers who wait for the answers or read along."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from numbers import Integral
from typing import Literal, overload

from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.llm.completion import Completion, Piece
from mpt_serve.llm.model_text import ModelText
from mpt_serve.llm.piece_stream import Prompt, RequestRunner, stream_pieces
from mpt_serve.llm.progress import with_progress
from mpt_serve.text.chat_template import Message
from mpt_serve.text.text_stream import TextStream
from mpt_serve.text.tokenizer import TextTokenizer

PromptLike = str | Sequence[int]
Conversation = Sequence[Message]

_DEFAULTS = SamplingParams()


class GenerationMixin(RequestRunner):
    """`generate` and `chat` over an engine's requests."""

    _text: ModelText

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The checkpoint's, where it has one."""
        return self._text.tokenizer

    @overload
    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
        progress: bool | None = ...,
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[True],
        progress: bool | None = ...,
    ) -> Generator[Piece]: ...

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] = _DEFAULTS,
        *,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        progress: bool | None = None,
    ) -> list[Completion] | Generator[Piece]:
        """Answer prompts, all of them at once, and return their completions in order.

        prompts: strings, or sequences of token ids; one of either alone is a batch of one.
        params: for all prompts, or one for each. With a seed and one `SamplingParams`, prompts draw from the same
            random numbers, so equal prompts give equal completions: take `n` for different ones.
        stop: strings that end an answer; they are not part of its text.
        stream: return an iterator of pieces, as they come. It begins when it is first asked; leaving its loop, or
            `close()` where it has a name, cancels what is unfinished.
        progress: a bar on stderr; None shows it on a terminal, for several prompts that are not streamed.

        Every prompt is checked before the first runs. Raises `RequestError` for what the engine cannot take,
        `EngineClosedError` when it was closed or fails; on any exception, `KeyboardInterrupt` too, nothing keeps
        running. A request that fails alone has the finish_reason 'error'.
        """
        return self._generate(_batch_of(prompts), params, stop, stream, progress)

    @overload
    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
        progress: bool | None = ...,
    ) -> list[Completion]: ...

    @overload
    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[True],
        progress: bool | None = ...,
    ) -> Generator[Piece]: ...

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] = _DEFAULTS,
        *,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        progress: bool | None = None,
    ) -> list[Completion] | Generator[Piece]:
        """As `generate`, for conversations: lists of messages `{"role": ..., "content": ...}`, or one such list.

        Raises `ChatTemplateError` too: where the checkpoint has no template, or its template refuses.
        """
        one = len(conversations) > 0 and isinstance(conversations[0], Mapping)
        batch: Sequence[Conversation] = [conversations] if one else conversations  # type: ignore[assignment, list-item]
        prompts = [self._text.encode_chat(messages) for messages in batch]
        return self._generate(prompts, params, stop, stream, progress)

    def _generate(
        self,
        prompts: Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams],
        stop: str | Sequence[str],
        stream: bool,
        progress: bool | None,
    ) -> list[Completion] | Generator[Piece]:
        new_text = self._new_text((stop,) if isinstance(stop, str) else tuple(stop))
        batch = self._checked(prompts, params)
        pieces = stream_pieces(self, batch, new_text)
        if progress is None:
            progress = not stream and len(batch) > 1 and sys.stderr.isatty()
        if progress:
            pieces = with_progress(pieces, [prompt.params.n for prompt in batch])
        return pieces if stream else _gather(batch, pieces)

    def _new_text(self, stop: tuple[str, ...]) -> Callable[[SamplingParams], TextStream] | None:
        """What makes the text of one choice; None without a tokenizer."""
        if not all(isinstance(string, str) and string for string in stop):
            raise RequestError(f"stop must be a string or a list of strings, none of them empty, got {stop!r:.100}")
        tokenizer = self._text.required("a stop string") if stop else self.tokenizer
        if tokenizer is None:
            return None
        return lambda params: TextStream(tokenizer, stop, min_tokens=params.min_tokens)

    def _checked(
        self, prompts: Sequence[PromptLike], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Prompt]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(f"params must be one SamplingParams or one for each of {len(prompts)}, got {len(each)}")
        batch = []
        for i, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
            try:
                ids = self._ids_of(prompt)
                self.check(ids, own)
            except RequestError as error:
                error.add_note(f"This is about prompts[{i}].")
                raise
            batch.append(Prompt(tuple(map(int, ids)), own))
        return batch

    def _ids_of(self, prompt: PromptLike) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._text.encode(prompt)
        if isinstance(prompt, bytes) or not hasattr(prompt, "__len__"):
            raise RequestError(f"a prompt must be a string or a sequence of token ids, not {type(prompt).__name__}")
        return prompt


def _batch_of(prompts: PromptLike | Sequence[PromptLike]) -> Sequence[PromptLike]:
    """A list of prompts, also for one alone."""
    if isinstance(prompts, (str, bytes)) or (len(prompts) > 0 and all(isinstance(i, Integral) for i in prompts)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def _gather(batch: Sequence[Prompt], pieces: Generator[Piece]) -> list[Completion]:
    gathered: list[list[Piece]] = [[] for _ in batch]
    completions: list[Completion | None] = [None] * len(batch)
    unfinished = [prompt.params.n for prompt in batch]
    with closing(pieces):  # also when an interrupt comes between two pieces, and its traceback keeps this frame alive
        for piece in pieces:
            i = piece.prompt_index
            gathered[i].append(piece)
            unfinished[i] -= piece.finish_reason is not None
            if unfinished[i] == 0:
                completions[i] = Completion.of(batch[i].ids, gathered[i])
                gathered[i] = []
    return [completion for completion in completions if completion is not None]
