"""What a checkpoint knows of text."""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from model.config.mpt_config import MptConfig
from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler
from mpt_serve.text.chat_template import ChatTemplate, Message, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["ModelText"]


class ModelText:
    """A model's tokenizer, and what is made with it when it is first needed. Threads may share it.

    tokenizer: None where there is none; what needs one then raises `RequestError`.
    folder: the checkpoint's, where its chat template lies. chat_template: as in `ChatTemplate.from_folder`.
    """

    def __init__(
        self, tokenizer: TextTokenizer | None = None, folder: Path | None = None, chat_template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._folder = folder
        self._setting = chat_template
        self._lock = threading.Lock()
        self._template: ChatTemplate | None = None

    @classmethod
    def of_checkpoint(
        cls, folder: Path, tokenizer: TextTokenizer | None = None, chat_template: str | None = None
    ) -> Self:
        """Take the folder's tokenizer where none is given. Raises TokenizerError for a damaged one."""
        return cls(tokenizer or TextTokenizer.find(folder), folder, chat_template)

    def vocab_limit(self, config: MptConfig) -> int:
        """Ids from here on mean nothing: the tokenizer's size, as the model's may be padded."""
        return config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_len

    def eos_token_ids(self, config: MptConfig) -> Sequence[int]:
        """Ids that end a text: the tokenizer's, or else the config's."""
        return config.eos_token_ids if self.tokenizer is None else self.tokenizer.eos_token_ids

    def required(self, for_what: str) -> TextTokenizer:
        """Return the tokenizer. Raises `RequestError` where there is none."""
        if self.tokenizer is None:
            raise RequestError(
                f"{for_what} needs a tokenizer, and this engine has none: put the model's tokenizer.json into its"
                " folder, or give Engine.from_pretrained a `tokenizer`. Prompts of token ids work without"
            )
        return self.tokenizer

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt."""
        return self.required("a prompt of text").encode(prompt)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that the model answers next. Raises ChatTemplateError."""
        tokenizer = self.required("a conversation")
        prompt = self._chat_template(tokenizer).render(messages)
        return tokenizer.encode(prompt, add_special_tokens=False)  # the template writes its own

    def guides(self, eos_token_ids: Collection[int], vocab_limit: int) -> LazyGrammarCompiler | None:
        """Return what compiles guides over the tokenizer's ids below vocab_limit; None without a tokenizer."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None
        return LazyGrammarCompiler(
            lambda: GrammarCompiler(tokenizer.text_token_bytes()[:vocab_limit], sorted(eos_token_ids))
        )

    def close(self) -> None:
        """End the chat template's process, if there is one; it starts anew when needed."""
        with self._lock:
            if self._template is not None:
                self._template.close()

    def _chat_template(self, tokenizer: TextTokenizer) -> ChatTemplate:
        with self._lock:
            if self._template is None:
                if self._folder is None:
                    raise MissingChatTemplateError("chat templates come with checkpoints: see Engine.from_pretrained")
                self._template = ChatTemplate.from_folder(self._folder, self._setting, tokenizer)
            return self._template
