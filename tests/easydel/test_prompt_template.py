"""A `format_chat` and the template made of it write the same prompts, or it is refused."""

from collections.abc import Callable

import pytest

from mpt_serve.easydel.prompt_template import FormatChat, chat_template_of
from mpt_serve.easydel.server_config import JAXServerError
from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError, Message

TEXTS = ["  Hi'\n", "{{ x }}", "\\n", "%}", "ü😀", "<|im_end|>", "a", "b", "c", "d", "e"]


def llama(history: list[list[str]], prompt: str, system: str) -> str:
    """Llama 2's form: the system text is inside of the first turn."""
    text = f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n" if system else "<s>[INST] "
    for said, replied in history:
        text += f"{said} [/INST] {replied} </s><s>[INST] "
    return f"{text}{prompt} [/INST]"


def special(history: list[list[str]], prompt: str, system: str) -> str:
    """Texts that templates and their literals could take for something else, and a first turn of another form."""
    text = f"'\\n{{{{ y }}}}{{% z %}} é😀{system}"
    for turn, (said, replied) in enumerate(history):
        text += f"{'first' if turn == 0 else 'next'}:{said}:{'first' if turn == 0 else 'next'}-reply:{replied}\r\n"
    return f"{text}{'last' if history else 'only'}:{prompt}{{#"


def messages(turns: int, system: str) -> tuple[list[list[str]], str, list[Message]]:
    history = [[TEXTS[2 * turn], TEXTS[2 * turn + 1]] for turn in range(turns)]
    prompt = TEXTS[2 * turns]
    said = [Message(role="system", content=system)] if system else []
    for user, assistant in history:
        said += [Message(role="user", content=user), Message(role="assistant", content=assistant)]
    return history, prompt, [*said, Message(role="user", content=prompt)]


@pytest.mark.parametrize("format_chat", [llama, special])
def test_the_template_writes_what_the_function_returns(format_chat: FormatChat) -> None:
    template = ChatTemplate(chat_template_of(format_chat))
    for turns in range(6):
        for system in ("", "Be brief."):
            history, prompt, conversation = messages(turns, system)
            assert template.render(conversation) == format_chat(history, prompt, system)
    template.close()


def test_the_end_of_a_message_of_the_assistant_can_be_continued() -> None:
    template = ChatTemplate(chat_template_of(llama, "{{ bos_token }}"), {"bos_token": "<bos>"})
    conversation = [Message(role="user", content="Hi"), Message(role="assistant", content="Good")]
    rendered = template.render(conversation, add_generation_prompt=False, continue_final_message=True)
    assert rendered == "<bos><s>[INST] Hi [/INST] Good"
    template.close()


def test_other_orders_of_roles_are_refused() -> None:
    template = ChatTemplate(chat_template_of(llama))
    user, system = Message(role="user", content="Hi"), Message(role="system", content="Be brief.")
    with pytest.raises(ChatTemplateError, match="of user and assistant in turn"):
        template.render([user, user])
    with pytest.raises(ChatTemplateError, match="needs a message of the user"):
        template.render([system])
    template.close()


def without(part: str) -> Callable[[list[list[str]], str, str], str]:
    def format_chat(history: list[list[str]], prompt: str, system: str) -> str:
        parts = {"system": system, "history": "".join(map("".join, history)), "prompt": prompt}
        return "|".join(text for name, text in parts.items() if name != part)

    return format_chat


@pytest.mark.parametrize(
    ("format_chat", "message"),
    [
        (without("system"), "does not write system, history and prompt once each"),
        (without("history"), "does not write system, history and prompt once each"),
        (lambda history, prompt, system: llama(history, prompt.upper(), system), "and unchanged"),
        (lambda history, prompt, system: prompt + llama(history, prompt, system), "once each"),
        (lambda history, prompt, system: prompt + "".join(map("".join, history)) + system, "in this order"),
        (lambda history, prompt, system: str(len(history)) + llama(history, prompt, system), "longer conversations"),
        (lambda history, prompt, system: None, "returned a value of type NoneType"),
    ],
)
def test_functions_that_no_template_can_express(format_chat: FormatChat, message: str) -> None:
    with pytest.raises(JAXServerError, match=message):
        chat_template_of(format_chat)
