"""EasyDeL's options: what each becomes, and what is refused."""

import logging
from typing import Any

import pytest

from mpt_serve.easydel.server_config import JAXServerConfig, JAXServerError


def test_the_options_of_easydels_documentation() -> None:
    config = JAXServerConfig.of(
        {
            "max_length": 2048,
            "max_new_tokens": 2048,
            "max_stream_tokens": 64,
            "dtype": "bf16",
            "use_prefix_tokenizer": True,
            "pre_compile": True,
        }
    )
    assert (config.dtype_name, config.port, config.api_port) == ("bfloat16", 2059, 2060)
    assert config["max_length"] == 2048
    with pytest.raises(KeyError, match="nothing"):
        config["nothing"]
    assert JAXServerConfig.of(config) is config
    assert JAXServerConfig.of(None) == JAXServerConfig()
    assert JAXServerConfig(serve_port=8000).api_port == 8000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lenght": 1}, "config has no option 'max_lenght'; there are batch_size, "),
        ({"max_new_tokens": 100, "max_stream_tokens": 64}, r"max_new_tokens \(100\) must be a multiple of"),
        ({"max_stream_tokens": 0}, r"max_stream_tokens is 0 \(int\); it must be an integer of at least 1"),
        ({"max_length": True}, r"max_length is True \(bool\)"),
        ({"dtype": "fp64"}, "dtype is 'fp64'; it must be one of bf16, "),
        (7, "config is of type int; it must be a dict or a JAXServerConfig"),
    ],
)
def test_what_is_refused(options: Any, message: str) -> None:
    with pytest.raises(JAXServerError, match=message):
        JAXServerConfig.of(options)


@pytest.mark.parametrize(
    ("names", "shape", "mesh"),
    [
        (("dp", "fsdp", "tp", "sp"), (1, -1, 1, 1), {"fsdp": 8, "tensor": 1}),
        (("dp", "fsdp", "mp"), (1, 2, -1), {"fsdp": 2, "tensor": 4}),
        (("fsdp", "tp"), (4, 2), {"fsdp": 4, "tensor": 2}),
    ],
)
def test_the_mesh_of_eight_devices(names: tuple[str, ...], shape: tuple[int, ...], mesh: dict[str, int]) -> None:
    assert JAXServerConfig(mesh_axes_names=names, mesh_axes_shape=shape).mesh(8) == mesh


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, -1, 1, 1), "gives 2 devices to the axis 'dp'"),
        ((1, 1, 1, -1), "gives 8 devices to the axis 'sp'"),
        ((1, -1), "one size for each of mesh_axes_names"),
        ((1, -1, -1, 1), "one -1 at most"),
    ],
)
def test_meshes_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(JAXServerError, match=message):
        JAXServerConfig(mesh_axes_shape=shape).mesh(8)


def test_options_without_an_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        JAXServerConfig().log_ignored()
        assert caplog.messages == []
        JAXServerConfig(
            batch_size=4, stream_tokens_for_gradio=False, generation_ps="any", use_prefix_tokenizer=False
        ).log_ignored()
    first_words = [message.split()[0].partition("=")[0] for message in caplog.messages]
    assert first_words == ["batch_size", "stream_tokens_for_gradio", "generation_ps", "use_prefix_tokenizer"]
