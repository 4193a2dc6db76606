"""Conversations to prompts, by a model's chat template."""

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from model.gguf.header import is_gguf
from mpt_serve.errors import RequestError
from mpt_serve.text.gguf_tokenizer import gguf_chat_template
from mpt_serve.text.template_process import TemplateProcess, TemplateRenderError
from mpt_serve.text.tokenizer import CHATML_MARKERS, TextTokenizer
from mpt_serve.text.tokenizer_files import read_gguf_header, read_json_object, text_folder

__all__ = [
    "BUILT_IN_TEMPLATES",
    "ChatTemplate",
    "ChatTemplateError",
    "FunctionCall",
    "Message",
    "MissingChatTemplateError",
    "Role",
    "ToolCall",
    "find_template",
]

MAX_TEMPLATE_CHARS = 128 * 1024

# The newline belongs after <|im_end|>: the chat models were trained on it there.
_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

# The instruct models were trained on one instruction and one response. Earlier turns repeat that pair, so that no part
# of the conversation is lost; system messages come before the sentence that the models expect first.
_DOLLY = """\
{%- for message in messages if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- endfor -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' }}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' -%}
{{ '### Response:\\n' + message.content + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}
"""

_REMEDY = (
    "Set chat_template to 'chatml' (for the MPT chat models), 'dolly' (for the MPT instruct models) or the path of a"
    " .jinja file; for a base model use /v1/completions"
)

BUILT_IN_TEMPLATES = {"chatml": _CHATML, "dolly": _DOLLY}


class ChatTemplateError(RequestError):
    """A conversation cannot be rendered, or a template is not usable; the message says what to change."""

    field = "messages"


class MissingChatTemplateError(ChatTemplateError):
    """The model has no usable chat template: it can complete text, but not continue conversations."""


Role = Literal["system", "user", "assistant", "tool"]


class FunctionCall(TypedDict):
    """The function of a call, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool, by its id."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One message of a conversation. The content of a tool's message is the result of a call."""

    role: Role
    content: str
    tool_calls: NotRequired[Sequence[ToolCall]]  # of the assistant
    tool_call_id: NotRequired[str]  # of a tool
    name: NotRequired[str]  # of the tool


class ChatTemplate:
    """A model's chat format. Thread-safe.

    Templates come with checkpoints, so they are treated as hostile: Jinja's immutable sandbox runs them in a separate
    process under limits of time, memory and output (see `template_process`). `render` blocks until that process
    replies, for `TIME_LIMIT_S` of CPU time at most: call it from a worker thread, not from an event loop.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Take a template's text. special_tokens: variables for it, such as `eos_token`."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ChatTemplateError(f"the chat template has {len(source)} characters; at most {MAX_TEMPLATE_CHARS}")
        self.source = source
        # A template that writes calls in another form would instruct the model to write what is not offered here.
        self.writes_tools = "<tool_call>" in source and re.search(r"\btools\b", source) is not None
        # In transformers these two are defined for every template, though nothing may be given for them.
        variables = {"tools": None, "documents": None, **(special_tokens or {})}
        self._process = TemplateProcess(source, variables)

    @property
    def tools_refusal(self) -> str | None:
        """Return why conversations cannot have tools; None if they can."""
        if self.writes_tools or CHATML_MARKERS[0] in self.source:
            return None
        return "this model's chat template neither writes ChatML nor `tools` with <tool_call>"

    @classmethod
    def from_folder(
        cls, path: str | Path, setting: str | None = None, tokenizer: TextTokenizer | None = None
    ) -> "ChatTemplate":
        """Return the chat template of a checkpoint folder.

        setting: a built-in name (`chatml`, `dolly`), the path of a .jinja file or the text of a template. None takes
            the folder's chat_template.jinja, or else the chat_template in tokenizer_config.json; `none` takes nothing.
        Raises MissingChatTemplateError if there is none or it cannot render a plain question, or if the checkpoint's
        own writes ChatML tokens that the tokenizer lacks. Raises ChatTemplateError for a setting that names no
        template, or one of ChatML where the tokenizer lacks its tokens.
        """
        folder = text_folder(Path(path))
        config = read_json_object(folder / "tokenizer_config.json")
        source = _from_setting(setting) if setting is not None else _from_checkpoint(folder, config)
        if any(marker in source for marker in CHATML_MARKERS):
            try:
                _require_chatml_tokens(source, tokenizer or TextTokenizer.from_folder(folder))
            except ChatTemplateError as error:
                if setting is not None:
                    raise
                raise MissingChatTemplateError(str(error)) from None  # text can be completed without it
        try:
            template = cls(source, (tokenizer or TextTokenizer.from_folder(folder)).special_tokens)
            template._try_out()
        except ChatTemplateError as error:
            raise MissingChatTemplateError(f"{error}. {_REMEDY}") from error
        return template

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the conversation as a prompt; with `continue_final_message` it ends inside the last message.

        tools: definitions as in OpenAI's API, for a template that `writes_tools`.

        Raises ChatTemplateError if the template refuses the conversation, fails, or exceeds a limit.
        """
        if continue_final_message and add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt are mutually exclusive")
        mark = ""
        if continue_final_message:  # the template may repeat the message's text after it, so its end is marked
            mark = str(secrets.randbits(64))
            last = messages[-1]
            messages = [*messages[:-1], Message(role=last["role"], content=last["content"] + mark)]
        context: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        if tools:
            context["tools"] = list(tools)
        try:
            prompt = self._process.render(context)
        except TemplateRenderError as error:
            raise ChatTemplateError(f"the chat template failed: {error}") from error
        if mark not in prompt:
            raise ChatTemplateError("continue_final_message needs a template that writes the last message's content")
        return prompt.rpartition(mark)[0] if mark else prompt

    def _try_out(self) -> None:
        """Render a plain question, to fail now rather than at the first request. Raises ChatTemplateError."""
        try:
            self.render([Message(role="user", content="Hi")])
        except ChatTemplateError:
            self.close()
            raise

    def close(self) -> None:
        """End the rendering process; the next `render` starts another one."""
        self._process.close()


def find_template(path: Path) -> str | None:
    """Return the text of a checkpoint's own chat template; None if it has none that can be read."""
    folder = text_folder(path)
    try:
        return _from_checkpoint(folder, read_json_object(folder / "tokenizer_config.json"))
    except MissingChatTemplateError:
        return None


def _from_setting(setting: str) -> str:
    if setting == "none":
        raise MissingChatTemplateError("chat is disabled: the setting chat_template is 'none'")
    if setting in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[setting]
    if "{" in setting:  # no path has one, every template does
        return setting
    file = Path(setting)
    if not file.is_file():
        raise ChatTemplateError(
            f"chat_template ({setting!r}) must be {', '.join(BUILT_IN_TEMPLATES)}, none, the path of a template file or"
            " the text of a template"
        )
    return file.read_text(encoding="utf-8")


def _from_checkpoint(folder: Path, config: dict[str, object]) -> str:
    if is_gguf(folder):
        config = {"chat_template": gguf_chat_template(read_gguf_header(folder))}
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MissingChatTemplateError(
                f"the model's {file.name} is not UTF-8 ({error.reason}). {_REMEDY}"
            ) from None
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise MissingChatTemplateError(f"this model has no chat template. {_REMEDY}")
    return source


def _require_chatml_tokens(source: str, tokenizer: TextTokenizer) -> None:
    missing = [marker for marker in CHATML_MARKERS if marker in source and tokenizer.token_id(marker) is None]
    if missing:
        raise ChatTemplateError(
            f"the chat template writes {' and '.join(missing)}, but the tokenizer has no such token and would split it"
            " into pieces that the model was not trained on. Use the chat model's own tokenizer.json (GPT-NeoX's lacks"
            " these tokens), or set chat_template to 'dolly' or to a template for this model"
        )
