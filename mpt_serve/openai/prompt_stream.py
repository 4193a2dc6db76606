"""The output of one prompt: all its choices."""

from collections.abc import Callable, Sequence

from mpt_serve.engine.request import Delta, TokenLogprobs
from mpt_serve.openai.backend import GenerationRequest
from mpt_serve.openai.echo import Echo
from mpt_serve.openai.output_choice import ChoicePart, OutputChoice, Token
from mpt_serve.openai.server_metrics import TokenTimer
from mpt_serve.openai.usage import Usage

__all__ = ["PromptStream"]


class PromptStream:
    """Turns the deltas of one engine request, which has one prompt and several choices, into parts of these choices.

    choices: in the order of the deltas' index. echo: the prompt, if each choice begins with it.
    timer: measures when tokens arrive, where that is wanted.
    stopped_choices: choices (indices of deltas) that ended here, at a stop string, before the engine ended them.
    """

    def __init__(
        self,
        request: GenerationRequest,
        choices: Sequence[OutputChoice],
        echo: Echo | None = None,
        timer: TokenTimer | None = None,
    ) -> None:
        self.request = request
        self.choices = choices
        self.stopped_choices: set[int] = set()
        self._echo = echo
        self._timer = timer
        self._cached_tokens = 0
        self._opened = False
        self._early: list[Delta] = []  # those that came before the prompt's log probabilities

    @property
    def done(self) -> bool:
        """Return whether every choice has had its last part."""
        return all(choice.finished for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """Return the tokens so far. The prompt counts once, and every choice that is generated counts."""
        completion_tokens = sum(choice.completion_tokens for choice in self.choices)
        return Usage(len(self.request.ids), completion_tokens, self._cached_tokens)

    def advance(self, delta: Delta, emit: Callable[[ChoicePart], None]) -> None:
        """Call `emit` with the parts that the engine's next delta adds.

        Raises an ApiError if the engine gave the request up.
        """
        if delta.index == 0:  # the choice that read the prompt
            self._cached_tokens = max(self._cached_tokens, delta.num_cached_tokens)
        if self._opened:
            self._advance_choice(delta, emit)
            return
        self._early.append(delta)
        if self._waits_for_prompt(delta):
            return
        self._opened = True
        self._open(delta.prompt_logprobs, emit)
        for early in self._early:
            self._advance_choice(early, emit)
        self._early.clear()

    def _advance_choice(self, delta: Delta, emit: Callable[[ChoicePart], None]) -> None:
        choice = self.choices[delta.index]
        if choice.finished:  # the engine continues past a stop string until the choice is ended there
            return
        if self._timer is not None and delta.token_ids:
            self._timer.tokens(delta.index, len(delta.token_ids))
        part = choice.advance(delta)
        if part.finish_reason is not None and delta.finish_reason is None:
            self.stopped_choices.add(delta.index)
        emit(part)

    def _waits_for_prompt(self, delta: Delta) -> bool:
        return self.request.params.prompt_logprobs is not None and delta.prompt_logprobs is None and not delta.failed

    def _open(self, logprobs: tuple[TokenLogprobs | None, ...] | None, emit: Callable[[ChoicePart], None]) -> None:
        """Emit what each choice begins with: the text and the tokens of an echoed prompt."""
        if self._echo is None and logprobs is None:
            return
        text: str = ""
        tokens: tuple[Token, ...] = ()
        if self._echo is not None:
            text = self._echo.text
            tokens = self._echo.tokens if logprobs is None else self._echo.with_logprobs(logprobs)
        for choice in self.choices:
            emit(ChoicePart(choice.index, text, tokens=tokens, prompt_logprobs=logprobs))
