"""What `JAXServer` starts its server from: the weights bit by bit, the settings, and the prompts of a subclass."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from server import free_port

import mpt_serve
from model import FlaxMptForCausalLM, MptConfig, mpt_from_pretrained
from model.params.weights import Weights
from mpt_serve.configuration.model_folder import model_path
from mpt_serve.easydel.jax_server import JAXServer
from mpt_serve.easydel.server_config import JAXServerError
from mpt_serve.text.chat_template import ChatTemplate
from mpt_serve.text.tokenizer import TextTokenizer

EMBEDDED = Path(model_path("embedded"))


@pytest.fixture(scope="module")
def loaded() -> tuple[Weights, MptConfig]:
    return mpt_from_pretrained(str(EMBEDDED), device=jax.devices("cpu")[0])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED)


class Prompts(JAXServer):
    """EasyDeL's way to customise prompts."""

    @staticmethod
    def format_chat(history: Any, prompt: str, system: str | None) -> str:
        return (
            f"{system}\n"
            + "".join(f"User: {said}\nBot: {reply}\n" for said, reply in history)
            + f"User: {prompt}\nBot:"
        )

    def format_instruct(self, system: str | None, instruction: str) -> str:  # type: ignore[override]
        return f"### {instruction}"


class Unforeseeable(JAXServer):
    """Its prompts depend on the number of turns."""

    @staticmethod
    def format_chat(history: Any, prompt: str, system: str | None) -> str:
        return f"{len(history)} {system} {history} {prompt}"


class Load:
    """Loads servers, and removes what they leave."""

    def __init__(self, loaded: tuple[Weights, MptConfig], tokenizer: Any) -> None:
        self.params, self.config = loaded
        self.tokenizer = tokenizer
        self.servers: list[JAXServer] = []

    def __call__(self, kind: type[JAXServer] = JAXServer, **options: Any) -> JAXServer:
        model = FlaxMptForCausalLM(config=self.config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, _do_init=False)
        usual = {"params": self.params, "model": model, "config_model": self.config, "tokenizer": self.tokenizer}
        self.servers.append(kind.load_from_params(**{**usual, **options}))
        return self.servers[-1]


@pytest.fixture
def load(loaded: tuple[Weights, MptConfig], tokenizer: Any) -> Iterator[Load]:
    load = Load(loaded, tokenizer)
    yield load
    for server in load.servers:
        server.end()


def folder_of(server: JAXServer) -> Path:
    assert server._folder is not None
    return server._folder


def served(server: JAXServer) -> dict[str, Any]:
    """Return the settings that the server is started with."""
    (application,) = yaml.safe_load((folder_of(server) / "serve_config.yaml").read_text())["applications"]
    return dict(application["args"])


def test_the_public_names() -> None:
    assert mpt_serve.JAXServer is JAXServer
    assert mpt_serve.mpt_from_pretrained is mpt_from_pretrained
    with pytest.raises(AttributeError, match="no attribute 'JaxServer'"):
        mpt_serve.JaxServer  # noqa: B018


def test_the_weights_are_those_that_were_passed(load: Load) -> None:
    server = load()
    written, config = mpt_from_pretrained(served(server)["model"])
    assert replace(config, torch_dtype=None) == replace(load.config, torch_dtype=None)
    pairs = zip(jax.tree.leaves(written), jax.tree.leaves(load.params), strict=True)
    assert all(a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    folder = folder_of(server)
    server.end()
    assert not folder.exists()
    with pytest.raises(JAXServerError, match=r"end\(\) has removed an earlier one"):
        server.fire()


def test_the_settings(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"max_length": 512, "max_new_tokens": 512, "max_stream_tokens": 64, "dtype": "fp32", "pre_compile": False}
    server = load(config=config, do_memory_log=True, add_params_field=False, params={"params": load.params})
    args = served(server)
    assert (args["dtype"], args["max_model_len"], args["engine"]) == ("float32", 512, {"pre_compile": False})
    assert "chat_template" not in args
    assert capsys.readouterr().out.count("Peak memory") == 2
    assert served(load())["dtype"] == "bfloat16"  # the model's


def test_the_tokenizer_is_the_one_that_was_passed(load: Load) -> None:
    folder = Path(served(load())["model"])
    text = "Once upon a time <|im_start|>user\n"
    own, written = TextTokenizer.from_folder(EMBEDDED), TextTokenizer.from_folder(folder)
    assert written.encode(text) == own.encode(text)
    assert ChatTemplate.from_folder(folder).source == ChatTemplate.from_folder(EMBEDDED).source


def test_the_prompts_of_a_subclass_become_the_chat_template(load: Load) -> None:
    args = served(load(Prompts))
    template = ChatTemplate.from_folder(args["model"], args["chat_template"])
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    rendered = template.render([{"role": role, "content": text} for role, text in turns])  # type: ignore[typeddict-item]
    assert rendered == Prompts.format_chat([["a", "b"]], "c", "Be brief.")
    template.close()


def test_prompts_that_no_template_expresses_are_for_the_endpoint_alone(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    assert "chat_template" not in served(load(Unforeseeable))
    assert "POST /chat uses it" in caplog.text


def test_arguments_that_do_not_fit_are_named(load: Load, tmp_path: Path) -> None:
    other = FlaxMptForCausalLM(MptConfig(d_model=8, n_heads=1, n_layers=1, vocab_size=8))
    wrong = {
        r"params is of type list": {"params": [1]},
        r"pass add_params_field=False with": {"params": {"params": load.params}},
        r"pass add_params_field=True with": {"add_params_field": False},
        r"tokenizer is of type str; it must be what transformers' AutoTokenizer": {"tokenizer": "mosaicml/mpt-7b"},
        r"model has another config than config_model": {"model": other},
        r"there are batch_size": {"config": {"max_tokens": 1}},
    }
    for message, options in wrong.items():
        with pytest.raises(JAXServerError, match=message):
            load(**options)


def test_a_learned_table_of_positions_bounds_the_length(load: Load) -> None:
    data = json.loads((EMBEDDED / "config.json").read_text())
    config = MptConfig.from_dict({**data, "attn_config": {"alibi": False}})
    model = FlaxMptForCausalLM(config, param_dtype=jnp.bfloat16, _do_init=True)
    own = {"params": model.params, "model": model, "config_model": config}
    with pytest.raises(JAXServerError, match="max_length is 2048, but the model's positions end at 1024"):
        load(**own, config={"max_length": 2048})


def test_a_server_that_is_forgotten_leaves_no_folder(load: Load) -> None:
    folder = folder_of(load())
    assert folder.exists()
    load.servers.clear()
    gc.collect()
    assert not folder.exists()


def test_a_server_that_cannot_start_says_why(load: Load) -> None:
    ports = {"port": free_port(), "serve_port": free_port()}
    server = load(config={"max_length": 512, "platform": "cpu", **ports}, verbose=False)
    (folder_of(server) / "model" / "model.safetensors").write_bytes(b"")
    server.fire()
    with pytest.raises(JAXServerError, match=r"ended with status 2:\n(.*\n)*.*model\.safetensors"):
        server.wait_ready()
    status = httpx.get(f"{server.rest_url}/status", timeout=30)
    assert (status.status_code, "ended with status 2" in status.text) == (503, True)
    server.end()


def test_nothing_runs_before_fire(load: Load) -> None:
    server = load(config={"platform": "cuda"})
    generator = yaml.safe_load((folder_of(server) / "serve_config.yaml").read_text())["applications"][0]["deployments"]
    assert generator[-1] == {"name": "Generator", "ray_actor_options": {"num_gpus": 1}}
    with pytest.raises(JAXServerError, match=r"does not run; call fire\(\) first"):
        next(server.process("Hi"))
    assert server.status()["status"] == "Ended"
