"""Prompts of all kinds as the ids that the model reads."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.chat_prompt import ChatEncoder, SpecialTokens
from mpt_serve.text.chat_template import ChatTemplate, Message, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

PromptLike = str | Sequence[int] | PromptEmbeds
Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt that the engine can take, with its parameters and what its output must match.

    embeds: what stands in it in place of ids.
    """

    ids: tuple[int, ...]
    params: SamplingParams
    grammar: GrammarSpec | None = None
    embeds: PromptEmbeds | None = None


class PromptEncoder:
    """A checkpoint's tokenizer and chat template. Threads may share it.

    tokenizer: None where there is none; what needs one then raises `RequestError`.
    folder: the checkpoint's, with its chat template. chat_template: as in `ChatTemplate.from_folder`.
    chat_special_tokens: what control tokens in messages become; see `ChatEncoder`.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer | None,
        folder: Path | None = None,
        chat_template: str | None = None,
        chat_special_tokens: SpecialTokens = "text",
    ) -> None:
        self.tokenizer = tokenizer
        self._folder = folder
        self._setting = chat_template
        self._lock = threading.Lock()
        self._special_tokens = chat_special_tokens
        self._chat: ChatEncoder | None = None

    def require_tokenizer(self, purpose: str) -> TextTokenizer:
        """Return the tokenizer. Raises `RequestError` where there is none."""
        if self.tokenizer is None:
            raise RequestError(
                f"{purpose} needs a tokenizer, and this model has none: put its tokenizer.json into the checkpoint"
                " folder, or give LLM.from_pretrained a `tokenizer`. Prompts of token ids work without"
            )
        return self.tokenizer

    def encode(self, prompt: PromptLike) -> Sequence[int]:
        """Return the ids of a prompt; of embeddings, ids that stand for nothing.

        Raises `RequestError` for what is neither text nor a sequence.
        """
        if isinstance(prompt, PromptEmbeds):
            return [0] * (int(prompt.positions[-1]) + 1)
        if isinstance(prompt, str):
            return self.require_tokenizer("a prompt of text").encode(prompt)
        if isinstance(prompt, bytes) or not hasattr(prompt, "__len__"):
            raise RequestError(f"a prompt must be a string or a sequence of token ids, not {type(prompt).__name__}")
        return prompt

    def encode_chat(self, messages: Conversation) -> list[int]:
        """Return the ids of a conversation that the model continues. Raises ChatTemplateError."""
        tokenizer = self.require_tokenizer("a conversation")
        return self._chat_encoder(tokenizer).encode(messages)

    def close(self) -> None:
        """End the chat template's process, if there is one; it is started again when needed."""
        with self._lock:
            if self._chat is not None:
                self._chat.close()

    def _chat_encoder(self, tokenizer: TextTokenizer) -> ChatEncoder:
        with self._lock:
            if self._chat is None:
                if self._folder is None:
                    raise MissingChatTemplateError("chat templates come with checkpoints: see LLM.from_pretrained")
                template = ChatTemplate.from_folder(self._folder, self._setting, tokenizer)
                self._chat = ChatEncoder(template, tokenizer, self._special_tokens)
            return self._chat


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> Sequence[PromptLike]:
    """Return a list of prompts, also for a single one."""
    if isinstance(prompts, (str, bytes, PromptEmbeds)) or (
        len(prompts) > 0 and all(isinstance(i, Integral) for i in prompts)
    ):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def as_conversations(conversations: Conversation | Sequence[Conversation]) -> Sequence[Conversation]:
    """Return a list of conversations, also for a single one."""
    if len(conversations) > 0 and isinstance(conversations[0], Mapping):
        return [conversations]  # type: ignore[list-item]
    return conversations  # type: ignore[return-value]
