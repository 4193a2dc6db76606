"""Ray in tests, and servers that several files of tests share."""

import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from server import ServerProcess, free_port, serve_config
from shared_servers import shared
from tiny_checkpoint import END, write_tiny_checkpoint

# Ray's own modules warn while they are imported; everything after that counts as an error here, as elsewhere.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401
    from ray._private import auto_init_hook

# A call of Ray's API would start a Ray whose end, a minute later, ends the process of the tests.
auto_init_hook.enable_auto_connect = False

_TOOLS_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}{% endfor %}{% endfor %}[assistant]"
)


@pytest.fixture
def kept_loggers() -> Iterator[None]:
    """A replica arranges its process's loggers; put them back."""
    loggers = [logging.getLogger(name) for name in ("mpt_serve", "model")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture(scope="session")
def ending_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose model has an end-of-sequence id, as structured outputs need one, and a template with tools."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("ending"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    args = {
        "model": str(folder),
        "served_model_name": "tiny",
        "chat_template": _TOOLS_TEMPLATE,
        "max_model_len": 2048,
        "engine": {
            "max_num_seqs": 16,
            "max_num_batched_tokens": 64,
            "num_blocks": 512,
            "pre_compile": False,
            "prompt_embeds": True,
        },
    }
    with shared(ServerProcess.of(serve_config(args, free_port()), tmp_path_factory.mktemp("server"))) as server:
        yield server
