"""The Tokenizer deployment's class, over a real tokenizer."""

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Literal

import pytest

from mpt_serve.configuration.model_folder import model_path, tokenizer_folder
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.delta_receiver import DeltaReceiver
from mpt_serve.deployments.ingress import chat_template
from mpt_serve.deployments.logs import log_through_serve
from mpt_serve.deployments.tokenizer import Tokenizer
from mpt_serve.text.chat_template import MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.usefixtures("kept_loggers")


def test_text_and_conversations_become_ids(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer(Settings(model=str(tiny_checkpoint), chat_template="dolly"))
    ids = asyncio.run(tokenizer.encode("ab"))
    assert len(ids) == 2
    chat = asyncio.run(tokenizer.encode_chat([{"role": "user", "content": "ab"}]))
    assert any(chat[start : start + 2] == ids for start in range(len(chat)))
    with_special = asyncio.run(tokenizer.encode_chat([{"role": "user", "content": "ab"}], add_special_tokens=True))
    assert with_special == chat  # this tokenizer adds none
    tokenizer._chat.close()


def test_an_ingress_hears_that_it_lives(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer(Settings(model=str(tiny_checkpoint)))

    async def scenario() -> None:
        receiver = DeltaReceiver()
        receiver.start("127.0.0.1")
        address = await receiver.address(-1)
        while (report := await tokenizer.report(address)).link is None:  # the first begins to connect
            await asyncio.sleep(0.01)
        connection = receiver.connection(report.link)
        assert connection is not None
        heard = connection.received
        while connection.received == heard:
            await asyncio.sleep(0.01)
        assert (report.requests, report.stalled) == ((), "")
        receiver.close()

    asyncio.run(scenario())


def test_without_a_template_conversations_are_refused_with_the_remedy(tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer(Settings(model=str(tiny_checkpoint)))
    with pytest.raises(MissingChatTemplateError, match="chat_template"):
        asyncio.run(tokenizer.encode_chat([{"role": "user", "content": "ab"}]))


@pytest.mark.parametrize("special_tokens", ["text", "parse"])
def test_control_tokens_in_messages_are_text_unless_the_setting_says_otherwise(
    tiny_checkpoint: Path, special_tokens: Literal["text", "parse"]
) -> None:
    settings = Settings(model=str(tiny_checkpoint), chat_template="dolly", chat_special_tokens=special_tokens)
    tokenizer = Tokenizer(settings)
    hostile = "a<|endoftext|>b"
    end = asyncio.run(tokenizer.encode(hostile))[1]
    assert end not in asyncio.run(tokenizer.encode(hostile, parse_special_tokens=False))
    chat = asyncio.run(tokenizer.encode_chat([{"role": "user", "content": hostile}]))
    assert chat.count(end) == (special_tokens == "parse")
    tokenizer._chat.close()


def test_a_template_that_cannot_be_compiled_disables_chat_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{% unheard_of %}{% endfor %}")
    settings = Settings(model=str(folder))
    tokenizer = Tokenizer(settings)
    assert asyncio.run(tokenizer.encode("ab"))
    words = "the chat template failed: Encountered unknown tag 'unheard_of'"
    with pytest.raises(MissingChatTemplateError, match=words):
        asyncio.run(tokenizer.encode_chat([{"role": "user", "content": "ab"}]))
    assert words in (chat_template(folder, settings, TextTokenizer.from_folder(folder))[1] or "")


def test_a_model_is_a_folder_an_id_or_the_embedded_one(tiny_checkpoint: Path) -> None:
    assert tokenizer_folder(str(tiny_checkpoint)) == tiny_checkpoint.resolve()
    assert Path(model_path("embedded")).name == "embedded"
    assert model_path("mosaicml/mpt-7b") == "mosaicml/mpt-7b"
    for missing in ("/no/such/folder", "./no-such-folder", "no-such-model"):
        with pytest.raises(ConfigurationError, match=r"model: there is no folder .*on this node"):
            tokenizer_folder(missing)


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no config\.json"):
        tokenizer_folder(str(tmp_path))


def test_the_products_log_lines_go_where_serves_go() -> None:
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    serve_logger, handler = logging.getLogger("ray.serve"), Collector()
    serve_logger.addHandler(handler)
    try:
        log_through_serve()
        logging.getLogger("mpt_serve.engine").info("weights: 3 GiB")
    finally:
        serve_logger.removeHandler(handler)
    assert lines == ["weights: 3 GiB"]
