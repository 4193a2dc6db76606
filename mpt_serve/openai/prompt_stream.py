"""One prompt with all its choices."""

from collections.abc import Iterator, Sequence

from mpt_serve.engine.request import Delta, TokenLogprobs
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.echo import Echo
from mpt_serve.openai.output_choice import ChoicePart, OutputChoice
from mpt_serve.openai.token_alignment import Token
from mpt_serve.openai.usage import Usage

__all__ = ["PromptStream"]


class PromptStream:
    """A prompt on its way through the engine: one request there, whose deltas belong to several choices.

    choices: in the order of the deltas' index. echo: the prompt, where each choice begins with it.
    unwanted: choices (deltas' indices) that ended here, at a stop string, before the engine ended them.
    """

    def __init__(
        self, ids: Sequence[int], params: SamplingParams, choices: Sequence[OutputChoice], echo: Echo | None = None
    ) -> None:
        self.ids = ids
        self.params = params
        self.choices = choices
        self.unwanted: set[int] = set()
        self._echo = echo
        self._cached_tokens = 0
        self._opened = False
        self._early: list[Delta] = []  # that came before the prompt's log probabilities

    @property
    def done(self) -> bool:
        """Every choice has had its last part."""
        return all(choice.finished for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """The tokens so far. The prompt counts once, and every choice that was made counts."""
        completion_tokens = sum(choice.completion_tokens for choice in self.choices)
        return Usage(len(self.ids), completion_tokens, self._cached_tokens)

    def advance(self, delta: Delta) -> Iterator[ChoicePart]:
        """Take the engine's next delta and yield what it adds. Raises an ApiError if the engine gave the request up."""
        if delta.index == 0:  # the choice that read the prompt
            self._cached_tokens = max(self._cached_tokens, delta.num_cached_tokens)
        if not self._opened:
            if self._waits_for_prompt(delta):
                self._early.append(delta)
                return
            self._opened = True
            yield from self._open(delta.prompt_logprobs)
        for news in (*self._early, delta):
            choice = self.choices[news.index]
            if choice.finished:  # the engine goes on past a stop string until it hears of it
                continue
            part = choice.advance(news)
            if part.finish_reason is not None and news.finish_reason is None:
                self.unwanted.add(news.index)
            yield part
        self._early.clear()

    def _waits_for_prompt(self, delta: Delta) -> bool:
        failed = delta.finish_reason in ("error", "cancelled")
        return self.params.prompt_logprobs is not None and delta.prompt_logprobs is None and not failed

    def _open(self, logprobs: tuple[TokenLogprobs | None, ...] | None) -> Iterator[ChoicePart]:
        """Yield what each choice begins with: the prompt's text and tokens, where they are echoed."""
        if self._echo is None and logprobs is None:
            return
        text: str = ""
        tokens: tuple[Token, ...] = ()
        if self._echo is not None:
            text = self._echo.text
            tokens = self._echo.tokens if logprobs is None else self._echo.with_logprobs(logprobs)
        for choice in self.choices:
            yield ChoicePart(choice.index, text, tokens=tokens, prompt_logprobs=logprobs)
