import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from mpt_serve.child_process import ChildEndedError
from mpt_serve.text import template_process
from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError, Message, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

USER = Message(role="user", content="Hi")
ASSISTANT = Message(role="assistant", content="Hello")
SYSTEM = Message(role="system", content="Be kind.")


@pytest.fixture
def chatml(folder: Path, chatml_tokenizer: TextTokenizer) -> ChatTemplate:
    return ChatTemplate.from_folder(folder, "chatml", chatml_tokenizer)


@pytest.fixture
def dolly(folder: Path) -> ChatTemplate:
    return ChatTemplate.from_folder(folder, "dolly")


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(template_process, "TIME_LIMIT_S", 0.3)
    return None


def test_chatml_puts_the_newline_after_the_end_of_turn(chatml: ChatTemplate) -> None:
    assert chatml.render([SYSTEM, USER]) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_content_is_kept_as_it_is(chatml: ChatTemplate) -> None:
    content = '  <b>&"\n{{ 1 }} {% raw %} '
    assert chatml.render([Message(role="user", content=content)], add_generation_prompt=False) == (
        f"<|im_start|>user\n{content}<|im_end|>\n"
    )


def test_dolly_is_the_instruct_format(dolly: ChatTemplate) -> None:
    assert dolly.render([USER]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n### Response:\n"
    )


def test_dolly_keeps_earlier_turns_and_the_system_message(dolly: ChatTemplate) -> None:
    prompt = dolly.render([SYSTEM, USER, ASSISTANT, Message(role="user", content="Why?")])
    assert prompt.startswith("Be kind.\n\nBelow is an instruction")
    assert prompt.endswith("### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nWhy?\n\n### Response:\n")


@pytest.mark.parametrize("setting", ["chatml", "dolly"])
def test_final_message_can_be_continued(folder: Path, chatml_tokenizer: TextTokenizer, setting: str) -> None:
    template = ChatTemplate.from_folder(folder, setting, chatml_tokenizer)
    prompt = template.render([USER, ASSISTANT], add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith("\nHello")


@pytest.mark.parametrize("content", ["|", ">", "e", "end", "<|im_end|>", "assistant", "a ", ""])
def test_continuing_ends_after_the_content_whatever_the_template_writes_there(
    chatml: ChatTemplate, content: str
) -> None:
    message = Message(role="assistant", content=content)
    prompt = chatml.render([USER, message], add_generation_prompt=False, continue_final_message=True)
    assert prompt == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"


def test_continuing_with_a_template_that_trims() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    message = Message(role="assistant", content=" Hello ")
    assert template.render([message], add_generation_prompt=False, continue_final_message=True) == "[Hello "


def test_continuing_needs_the_content_in_the_prompt() -> None:
    template = ChatTemplate("nothing")
    with pytest.raises(ChatTemplateError, match="writes the last message"):
        template.render([ASSISTANT], add_generation_prompt=False, continue_final_message=True)


def test_continuing_excludes_a_new_turn(dolly: ChatTemplate) -> None:
    with pytest.raises(ChatTemplateError, match="mutually exclusive"):
        dolly.render([ASSISTANT], continue_final_message=True)


class TestSources:
    def test_jinja_file_comes_before_tokenizer_config(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
        assert ChatTemplate.from_folder(folder).render([USER]) == "config"
        (folder / "chat_template.jinja").write_text("file")
        assert ChatTemplate.from_folder(folder).render([USER]) == "file"

    def test_setting_comes_first(self, folder: Path, tmp_path: Path) -> None:
        (folder / "chat_template.jinja").write_text("file")
        mine = tmp_path / "mine.jinja"
        mine.write_text("mine")
        assert ChatTemplate.from_folder(folder, str(mine)).render([USER]) == "mine"
        assert ChatTemplate.from_folder(folder, "{{ messages[0].content }}!").render([USER]) == "Hi!"

    def test_named_templates_offer_their_default(self, folder: Path) -> None:
        templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
        assert ChatTemplate.from_folder(folder).render([USER]) == "plain"

    def test_special_tokens_are_variables(self, folder: Path) -> None:
        config = {"chat_template": "{{ bos_token }}|{{ eos_token }}", "bos_token": "<s>", "eos_token": {"content": "e"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert ChatTemplate.from_folder(folder).render([USER]) == "<s>|e"

    def test_the_error_for_a_base_model_names_the_setting(self, folder: Path) -> None:
        with pytest.raises(MissingChatTemplateError, match="Set chat_template to 'chatml'"):
            ChatTemplate.from_folder(folder)

    def test_none_disables_chat(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("file")
        with pytest.raises(MissingChatTemplateError, match="chat is disabled"):
            ChatTemplate.from_folder(folder, "none")

    def test_unknown_setting_is_named(self, folder: Path) -> None:
        with pytest.raises(ChatTemplateError, match=r"'chatlm'\) must be chatml, dolly, none, the path"):
            ChatTemplate.from_folder(folder, "chatlm")

    def test_broken_template_is_as_good_as_none(self, folder: Path) -> None:
        with pytest.raises(MissingChatTemplateError, match=r"the chat template failed: .*Set chat_template to"):
            ChatTemplate.from_folder(folder, "{% if %}")
        (folder / "chat_template.jinja").write_text("{% unheard_of %}")
        with pytest.raises(MissingChatTemplateError, match=r"unknown tag 'unheard_of'.*Set chat_template to"):
            ChatTemplate.from_folder(folder)
        (folder / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(MissingChatTemplateError, match="not UTF-8"):
            ChatTemplate.from_folder(folder)
        (folder / "chat_template.jinja").write_text("x" * 200_000)
        with pytest.raises(MissingChatTemplateError, match="200000 characters"):
            ChatTemplate.from_folder(folder)

    def test_a_checkpoints_chatml_without_its_tokens_is_as_good_as_none(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content }}<|im_end|>")
        with pytest.raises(MissingChatTemplateError, match="split it into pieces"):
            ChatTemplate.from_folder(folder)

    def test_chatml_needs_its_tokens(self, folder: Path) -> None:
        words = r"<\|im_start\|> and <\|im_end\|>.*split it into pieces.*dolly"
        with pytest.raises(ChatTemplateError, match=words) as caught:
            ChatTemplate.from_folder(folder, "chatml")
        assert not isinstance(caught.value, MissingChatTemplateError)  # a mistake in the settings, which ends the start

    def test_chatml_tokens_are_single_ids(self, chatml: ChatTemplate, chatml_tokenizer: TextTokenizer) -> None:
        ids = chatml_tokenizer.encode(chatml.render([USER]), add_special_tokens=False)
        assert ids[0] == 50277
        assert ids.count(50278) == 1
        assert chatml_tokenizer.eos_token_ids == ()  # this one was made without a folder


class TestHostileTemplates:
    @pytest.mark.parametrize(
        "source",
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}"
            "{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "{{ 'a' * 10 ** 12 }}",
            "{{ 9 ** (9 ** 9) }}",
            "{{ '%1000000000000d' % 1 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 99 }}"
            "{% endfor %}",
        ],
        ids=["nested loops", "doubling", "repetition", "power", "padding", "recursion", "output"],
    )
    @pytest.mark.usefixtures("short_limit")
    def test_bombs_end_in_an_error(self, source: str) -> None:
        with pytest.raises(ChatTemplateError, match="the chat template failed"):
            ChatTemplate(source).render([USER])

    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "{{ raise_exception.__globals__.os }}",
            "{{ messages.append(1) }}",
        ],
    )
    def test_the_sandbox_holds(self, source: str) -> None:
        with pytest.raises(ChatTemplateError, match="unsafe"):
            ChatTemplate(source).render([USER])

    @pytest.mark.usefixtures("short_limit")
    def test_rendering_goes_on_after_a_bomb(self) -> None:
        bomb = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        template = ChatTemplate("{% if messages|length > 1 %}" + bomb + "{% endif %}fine")
        assert template.render([USER]) == "fine"
        with pytest.raises(ChatTemplateError, match="longer than"):
            template.render([USER, ASSISTANT])
        assert template.render([USER]) == "fine"

    def test_a_process_ended_from_outside_is_no_fault_of_the_template(self, monkeypatch: pytest.MonkeyPatch) -> None:
        template = ChatTemplate("fine")
        with monkeypatch.context() as patch:
            patch.setattr(template._process._child, "ask", raising(ChildEndedError(-signal.SIGKILL)))
            with pytest.raises(ChildEndedError):
                template.render([USER])
            patch.setattr(template._process._child, "ask", raising(ChildEndedError(-signal.SIGABRT)))
            with pytest.raises(ChatTemplateError, match="its process ended"):
                template.render([USER])
        assert template.render([USER]) == "fine"

    def test_the_environment_is_not_inherited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("API_KEY", "secret")
        template = ChatTemplate("fine")
        assert template.render([USER]) == "fine"
        child = template._process._child
        assert child is not None
        process = Path(f"/proc/{child.pid}")
        assert b"API_KEY" not in (process / "environ").read_bytes()
        template.close()
        assert not process.exists()

    def test_large_templates_are_refused(self) -> None:
        with pytest.raises(ChatTemplateError, match="at most"):
            ChatTemplate("x" * 200_000)


def raising(error: Exception) -> Callable[..., NoReturn]:
    def ask(*_: object) -> NoReturn:
        raise error

    return ask


def test_templates_refusal_is_passed_on() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        template.render([USER, USER])


def test_syntax_error_is_reported() -> None:
    with pytest.raises(ChatTemplateError, match="the chat template failed"):
        ChatTemplate("{% if %}").render([USER])


def test_tojson_does_not_escape_for_html() -> None:
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([Message(role="user", content="<é>")]) == '"<é>"'


def test_loop_controls_and_dates_work() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}{{ strftime_now('%%') }}"
    assert ChatTemplate(source).render([USER, USER]) == "x%"


TEMPLATES_AS_IN_TRANSFORMERS = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{% endfor %}"
    "{{ x is defined }}",
    "tools": "{{ tools is none }}{% if tools %}T{% else %}N{% endif %}{{ documents }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}",
    "json": "{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    "dict": "{{ dict(a=1).a }}{{ dict.fromkeys([1]) }}",
    "namespace": "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.self }}",
    "loop controls": "{% for m in messages %}{% continue %}{% endfor %}{% for m in messages %}{% break %}{% endfor %}",
    "date": "{{ strftime_now('%Y-') | length }}",
    "blocks": "{% if true %}\n  a\n{% endif %}\n  {% if true %}b{% endif %}\n",
}


@pytest.mark.parametrize("name", TEMPLATES_AS_IN_TRANSFORMERS)
def test_templates_render_as_in_transformers(folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    source = TEMPLATES_AS_IN_TRANSFORMERS[name]
    (folder / "chat_template.jinja").write_text(source)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPTNeoXTokenizer", "sep_token": "a"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "mpt"}))
    theirs = AutoTokenizer.from_pretrained(str(folder))
    expected = theirs.apply_chat_template([USER, ASSISTANT], tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.from_folder(folder).render([USER, ASSISTANT]) == expected


@pytest.mark.parametrize("source", ["{% set n = namespace(_x=1) %}", "{% set n = namespace() %}{% set n._x = 1 %}"])
def test_namespaces_have_no_attributes_of_pythons(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="unsafe"):
        ChatTemplate(source).render([USER])
