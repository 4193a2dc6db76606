"""Conversations to ids."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError, Message, Role
from mpt_serve.text.control_tokens import Marks, MarksError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["ChatEncoder", "SpecialTokens"]

SpecialTokens = Literal["text", "parse"]

_FIELDS: tuple[Literal["role", "content"], ...] = ("role", "content")
_ROLES = get_args(Role)


class ChatEncoder:
    """Renders conversations by a chat template and encodes them. Thread-safe; blocks as `ChatTemplate.render` does.

    special_tokens: what control tokens in the messages become. `text`: ordinary text, so that no message can end its
        own turn or begin another one. `parse`: control tokens, as those that the template writes.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: TextTokenizer, special_tokens: SpecialTokens = "text"
    ) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._control = tokenizer.control_tokens(template.source) if special_tokens == "text" else None

    @property
    def renames(self) -> bool:
        """Return whether `render` renames the template's control tokens."""
        return self._control is not None

    def encode(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, continue_final_message: bool = False
    ) -> list[int]:
        """Return the conversation's ids. Raises ChatTemplateError as `render` does."""
        prompt = self.render(messages, add_generation_prompt, continue_final_message)
        if self._control is not None:
            return self._control.encode(prompt)
        return self._tokenizer.encode(prompt, add_special_tokens=False)  # the template writes its own

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, continue_final_message: bool = False
    ) -> str:
        """Return the conversation as text, its own control tokens renamed for `ControlTokens.encode` if `renames`.

        Raises ChatTemplateError as `ChatTemplate.render` does, and for a message with control tokens if the template
        decides by the characters that these are made of, so that nobody can tell whose they are.
        """

        def render(messages: Sequence[Message]) -> str:
            return self.template.render(messages, add_generation_prompt, continue_final_message)

        prompt = render(messages)
        control = self._control
        if control is None:
            return prompt
        try:
            marks = Marks(control.boundary_characters, [m[key] for m in messages for key in _FIELDS])
        except MarksError as error:
            raise ChatTemplateError(f"the messages cannot be encoded: {error}") from error
        if not marks:
            return control.rename(prompt)
        # With all characters replaced that begin or end a control token, those that remain are the template's.
        marked = render([_marked(message, marks) for message in messages])
        if marks.unmark(marked) == prompt:
            return control.rename(marked, marks)
        if control.find(marked) == control.find(prompt):  # the template changed the characters, none is at stake
            return control.rename(prompt)
        raise ChatTemplateError(
            "a message holds control tokens, and this model's chat template treats their characters in a way that"
            " does not let the server take them for text. Leave them out"
        )

    def close(self) -> None:
        """End the template's process; the next conversation starts another one."""
        self.template.close()


def _marked(message: Message, marks: Marks) -> Message:
    role = message["role"]
    if role not in _ROLES:  # text of the caller's, where no API has checked it
        role = cast(Role, marks.mark(role))
    return Message(role=role, content=marks.mark(message["content"]))
