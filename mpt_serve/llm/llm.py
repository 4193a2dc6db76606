"""The engine with text: whole batches of prompts, for callers who wait for the completions or read along."""

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack, overload

from tqdm import tqdm

from model.pretrained import resolve_checkpoint
from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.configuration.model_folder import model_path
from mpt_serve.engine.engine import Engine, LoadOptions
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.sampling_params import POOLINGS, Pooling, SamplingParams
from mpt_serve.engine.token_masks import Grammar
from mpt_serve.errors import RequestError
from mpt_serve.llm.completion import Completion, Piece
from mpt_serve.llm.embedding import Embedding, embed_prompts
from mpt_serve.llm.piece_stream import stream_pieces
from mpt_serve.llm.prompts import Conversation, Prompt, PromptEncoder, PromptLike, as_conversations, as_prompts
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_prompt import SpecialTokens
from mpt_serve.text.text_stream import TextStream
from mpt_serve.text.tokenizer import TextTokenizer

Params = SamplingParams | Sequence[SamplingParams]
Grammars = GrammarSpec | Sequence[GrammarSpec | None] | None

_DEFAULTS = SamplingParams()


class OutputOptions(TypedDict, total=False):
    """The keyword arguments that `LLM.generate` and `LLM.chat` share.

    structured_outputs: what each output must match, for all prompts, or one for each; None, and without it, free text.
    stop: strings that end an output; they are not part of its text.
    progress: a bar on stderr; None, and without it, shows it on a terminal for several prompts that are not streamed.
    """

    structured_outputs: Grammars
    stop: str | Sequence[str]
    progress: bool | None


class LLM:
    """A model that completes prompts of text or token ids. Threads may share one: their requests run together.

    engine: closed with this object.
    prompts: the model's tokenizer and chat template; None for token ids alone.
    """

    def __init__(self, engine: Engine, prompts: PromptEncoder | None = None) -> None:
        self.engine = engine
        self._prompts = prompts or PromptEncoder(None)
        self._grammars = LazyGrammarCompiler(self._make_compiler)  # its tables cost time and memory

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        config: EngineConfig | None = None,
        *,
        tokenizer: TextTokenizer | None = None,
        chat_template: str | None = None,
        chat_special_tokens: SpecialTokens = "text",
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load a checkpoint and its tokenizer, and start an engine for it.

        tokenizer: instead of the checkpoint's own; without either, prompts and outputs are token ids alone.
        chat_template: 'chatml', 'dolly', a template's text or file; None takes the checkpoint's.
        chat_special_tokens: what control tokens in messages become, 'text' or, as in the template, control tokens with
            'parse'.
        options: of `Engine.from_pretrained`; without vocab_limit and eos_token_ids the tokenizer's are taken, where
            there is one.
        Raises as that; also `TokenizerError` for a damaged tokenizer.
        """
        folder = resolve_checkpoint(model_path(path_or_id) if isinstance(path_or_id, str) else path_or_id)
        tokenizer = tokenizer or TextTokenizer.find(folder)
        if tokenizer is not None:
            if options.get("vocab_limit") is None:
                options["vocab_limit"] = tokenizer.vocab_len
            if options.get("eos_token_ids") is None:
                options["eos_token_ids"] = tokenizer.eos_token_ids
        engine = Engine.from_pretrained(folder, config, **options)
        return cls(engine, PromptEncoder(tokenizer, folder, chat_template, chat_special_tokens))

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Return the model's tokenizer, where it has one."""
        return self._prompts.tokenizer

    @overload
    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params = ...,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[OutputOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params = ...,
        *,
        stream: Literal[True],
        **options: Unpack[OutputOptions],
    ) -> Generator[Piece]: ...

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: Params = _DEFAULTS,
        *,
        stream: bool = False,
        **options: Unpack[OutputOptions],
    ) -> list[Completion] | Generator[Piece]:
        """Complete prompts, all of them at once, and return their completions in order.

        prompts: strings, sequences of token ids, or `PromptEmbeds` where the engine's config allows them; a single one
            is a batch of one.
        params: for all prompts, or one for each. With a seed and one `SamplingParams`, prompts use the same random
            numbers, so equal prompts have equal completions: use `n` for different ones.
        stream: return an iterator of pieces, as they come. The work begins with the first piece; leaving its loop, or
            `close()` where it has a name, cancels what is unfinished.
        options: see `OutputOptions`.

        Every prompt is checked before the first runs. Raises `RequestError` for what the engine cannot take,
        `EngineClosedError` when it was closed or fails; on any exception, `KeyboardInterrupt` too, nothing keeps
        running. A request that fails alone has the finish_reason 'error'.
        """
        return self._generate(as_prompts(prompts), params, stream, **options)

    @overload
    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: Params = ...,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[OutputOptions],
    ) -> list[Completion]: ...

    @overload
    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: Params = ...,
        *,
        stream: Literal[True],
        **options: Unpack[OutputOptions],
    ) -> Generator[Piece]: ...

    def chat(
        self,
        conversations: Conversation | Sequence[Conversation],
        params: Params = _DEFAULTS,
        *,
        stream: bool = False,
        **options: Unpack[OutputOptions],
    ) -> list[Completion] | Generator[Piece]:
        """Complete conversations: lists of messages `{"role": ..., "content": ...}`, or one such list.

        The other parameters are those of `generate`. Raises also `ChatTemplateError`: where the checkpoint has no
        template, or its template refuses.
        """
        prompts = [self._prompts.encode_chat(messages) for messages in as_conversations(conversations)]
        return self._generate(prompts, params, stream, **options)

    def embed(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        pooling: Pooling = "mean",
        normalize: bool | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[Embedding]:
        """Return the embeddings of prompts, all computed together: hidden states after the model's last norm.

        prompts: as for `generate`.
        pooling: 'mean' of all tokens, 'last' token's alone, or 'none' for a vector of each token.
        normalize: scale each vector to the length 1; None does so unless pooling is 'none'.
        priority, cache_salt: as in `SamplingParams`.

        Every prompt is checked before the first runs. Raises `RequestError` for what the engine cannot take,
        `EngineClosedError` when it was closed or fails, `MptServeError` for a model whose numbers are not finite.
        """
        if pooling not in POOLINGS:
            raise RequestError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}, got {pooling!r}")
        normalize = pooling != "none" if normalize is None else normalize
        params = SamplingParams(
            max_tokens=0, pooling=pooling, normalize=normalize, priority=priority, cache_salt=cache_salt
        )
        batch = self._checked(as_prompts(prompts), params, None)
        return embed_prompts(self.engine, batch, params)

    def close(self) -> None:
        """Cancel what is left, stop the engine, and end the processes of templates and grammars. Idempotent."""
        self.engine.close()
        self._prompts.close()
        self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(
        self,
        prompts: Sequence[PromptLike],
        params: Params,
        stream: bool,
        structured_outputs: Grammars = None,
        stop: str | Sequence[str] = (),
        progress: bool | None = None,
    ) -> list[Completion] | Generator[Piece]:
        new_text = self._new_text((stop,) if isinstance(stop, str) else tuple(stop))
        batch = self._checked(prompts, params, structured_outputs)
        pieces = stream_pieces(self.engine, batch, self._compile, new_text)
        if progress is None:
            progress = not stream and len(batch) > 1 and sys.stderr.isatty()
        if progress:
            pieces = _with_progress(pieces, [prompt.params.n for prompt in batch])
        return pieces if stream else _gather(batch, pieces)

    def _new_text(self, stop: tuple[str, ...]) -> Callable[[SamplingParams], TextStream] | None:
        """Return a maker of one choice's text; None without a tokenizer."""
        if not all(isinstance(string, str) and string for string in stop):
            raise RequestError(f"stop must be a string or a list of strings, none of them empty, got {stop!r:.100}")
        tokenizer = self._prompts.require_tokenizer("a stop string") if stop else self.tokenizer
        if tokenizer is None:
            return None
        return lambda params: TextStream(tokenizer, stop, min_tokens=params.min_tokens)

    def _checked(self, prompts: Sequence[PromptLike], params: Params, grammars: Grammars) -> list[Prompt]:
        """Return the batch as the engine takes it. Raises RequestError that names the prompt."""
        count = len(prompts)
        each = [params] * count if isinstance(params, SamplingParams) else list(params)
        if len(each) != count:
            raise RequestError(f"params must be one SamplingParams or one for each of {count} prompts, got {len(each)}")
        specs = [grammars] * count if grammars is None or isinstance(grammars, GrammarSpec) else list(grammars)
        if len(specs) != count:
            raise RequestError(
                f"structured_outputs must be one GrammarSpec or one for each of {count} prompts, got {len(specs)}"
            )
        batch = []
        for i, (prompt, own, spec) in enumerate(zip(prompts, each, specs, strict=True)):
            try:
                ids = self._prompts.encode(prompt)
                if spec is not None:
                    self._prompts.require_tokenizer("a grammar")
                embeds = prompt if isinstance(prompt, PromptEmbeds) else None
                self.engine.check(ids, own, with_grammar=spec is not None, embeds=embeds)
                if spec is not None:
                    self._grammars.check(spec)
            except RequestError as error:
                error.add_note(f"This is about prompts[{i}].")
                raise
            batch.append(Prompt(tuple(map(int, ids)), own, spec, embeds))
        return batch

    def _compile(self, spec: GrammarSpec) -> Grammar:
        return self._grammars.compile(spec)

    def _make_compiler(self) -> GrammarCompiler:
        tokenizer = self._prompts.require_tokenizer("a grammar")
        token_bytes = tokenizer.text_token_bytes()[: self.engine.vocab_limit]
        return GrammarCompiler(token_bytes, sorted(self.engine.eos_token_ids))


def _gather(batch: Sequence[Prompt], pieces: Generator[Piece]) -> list[Completion]:
    """Join the pieces of each prompt as soon as all of its choices have finished."""
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


def _with_progress(pieces: Generator[Piece], choices: Sequence[int]) -> Generator[Piece]:
    """Yield the pieces, with a bar on stderr that shows finished prompts, and generated tokens per second.

    choices: number of choices of each prompt.
    """
    unfinished, tokens, begin = list(choices), 0, time.monotonic()
    # miniters: the bar is also updated while no prompt is finished.
    bar = tqdm(total=len(choices), desc="Generating", unit=" prompts", miniters=0, file=sys.stderr)
    with closing(pieces), bar:
        for piece in pieces:
            tokens += len(piece.token_ids)
            ends = piece.finish_reason is not None
            unfinished[piece.prompt_index] -= ends
            bar.set_postfix_str(f"{tokens / max(time.monotonic() - begin, 1e-9):.1f} tokens/s", refresh=False)
            bar.update(int(ends and unfinished[piece.prompt_index] == 0))
            yield piece
