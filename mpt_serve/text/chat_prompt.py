"""Conversations to ids."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError, Message, Role
from mpt_serve.text.control_tokens import Marks, MarksError
from mpt_serve.text.tokenizer import TextTokenizer
from mpt_serve.text.tool_format import as_text, as_values, uses_tools

__all__ = ["ChatEncoder", "SpecialTokens"]

SpecialTokens = Literal["text", "parse"]

# Names of members that templates read; all others are text of the caller's.
_NAMES = {"role", "content", "tool_calls", "tool_call_id", "id"}
_NAMES |= {"type", "function", "name", "arguments", "description", "parameters"}

Tools = Sequence[Mapping[str, Any]]

_ROLES = get_args(Role)
_RESULT_ROLES: tuple[Literal["tool", "user"], ...] = ("tool", "user")  # not every template knows the first


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
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
    ) -> list[int]:
        """Return the conversation's ids. Raises ChatTemplateError as `render` does."""
        prompt = self.render(messages, add_generation_prompt, continue_final_message, tools)
        if self._control is not None:
            return self._control.encode(prompt)
        return self._tokenizer.encode(prompt, add_special_tokens=False)  # the template writes its own

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
    ) -> str:
        """Return the conversation as text, its own control tokens renamed for `ControlTokens.encode` if `renames`.

        tools: definitions as in OpenAI's API. A template that does not write them gets them, calls and results as text.
        Raises ChatTemplateError as `ChatTemplate.render` does, and for a message with control tokens if the template
        decides by the characters that these are made of, so that nobody can tell whose they are; also if it has no
        form for tools.
        """
        ending = (add_generation_prompt, continue_final_message)
        if not tools and not any(map(uses_tools, messages)):
            return self._render(messages, (), *ending)
        if self.template.tools_refusal is not None:
            raise ChatTemplateError(f"tools cannot be used: {self.template.tools_refusal}")
        if self.template.writes_tools:
            return self._render(as_values(messages), tools, *ending)
        for role in _RESULT_ROLES:
            plain = as_text(messages, tools, role)
            added = [text["content"] for text in plain if text["role"] == role or (tools and text is plain[0])]
            try:
                prompt = self._render(plain, (), *ending)
            except ChatTemplateError:
                if role == _RESULT_ROLES[-1]:
                    raise
                continue
            if all(text.strip() in prompt for text in added):
                return prompt
        raise ChatTemplateError("the chat template leaves out or changes the messages of tools")

    def _render(
        self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool, continue_final_message: bool
    ) -> str:
        """Return what `render` does, of a conversation that the template can write."""

        def render(messages: Sequence[Message], tools: Tools) -> str:
            return self.template.render(messages, add_generation_prompt, continue_final_message, tools)

        prompt = render(messages, tools)
        control = self._control
        if control is None:
            return prompt
        try:
            marks = Marks(control.boundary_characters, [*_strings(messages), *_strings(tools)])
        except MarksError as error:
            raise ChatTemplateError(f"the messages cannot be encoded: {error}") from error
        if not marks:
            return control.rename(prompt)
        # With all characters replaced that begin or end a control token, those that remain are the template's.
        marked = render([_marked_message(message, marks) for message in messages], _marked(tools, marks))
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


def _marked_message(message: Message, marks: Marks) -> Message:
    """Return the message with marks in all that is text of the caller's."""
    role = message["role"]
    if role not in _ROLES:  # where no API has checked it
        role = cast(Role, marks.mark(role))
    return cast(Message, {**_marked(message, marks), "role": role})


def _marked(value: Any, marks: Marks) -> Any:
    """Return a JSON value with marks in all of its strings."""
    if isinstance(value, str):
        return marks.mark(value)
    if isinstance(value, Mapping):
        return {_marked_name(name, marks): _marked(member, marks) for name, member in value.items()}
    if isinstance(value, Sequence):
        return [_marked(item, marks) for item in value]
    return value


def _marked_name(name: str, marks: Marks) -> str:
    return name if name in _NAMES else marks.mark(name)


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, the names of members included that are text of the caller's."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            if name not in _NAMES:
                yield name
            yield from _strings(member)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)
