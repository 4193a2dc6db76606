"""What the server is started from: a temporary folder with a checkpoint and the configuration of Ray Serve."""

import logging
import resource
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import yaml

from model import FlaxMptForCausalLM, MptConfig
from model.checkpoint.save import save_checkpoint
from model.config.config_json import to_config_json
from model.params.weights import Weights
from mpt_serve.configuration.settings import Settings
from mpt_serve.easydel.prompt_template import FormatChat, chat_template_of
from mpt_serve.easydel.server_config import JAXServerConfig, JAXServerError

__all__ = ["CONFIGURATION", "bare_params", "peak_memory", "write_model_folder"]

logger = logging.getLogger(__name__)

CONFIGURATION = "serve_config.yaml"
_MODEL = "model"
_PLATFORM_OPTIONS = {"gpu": "num_gpus", "cuda": "num_gpus", "rocm": "num_gpus"}


def bare_params(params: Any, add_params_field: bool) -> Weights:
    """Return the weights of `params`: themselves, or with `add_params_field=False` those in their field "params".

    Raises JAXServerError for anything else than what `mpt_from_pretrained` returns.
    """
    if not add_params_field:
        if not isinstance(params, Mapping) or "params" not in params:
            raise JAXServerError(
                'add_params_field=False says that params are {"params": weights}, but they are of type'
                f" {type(params).__name__}; pass add_params_field=True with what mpt_from_pretrained returns"
            )
        params = params["params"]
    if not isinstance(params, Weights):
        hint = ' (pass add_params_field=False with {"params": weights})' if isinstance(params, Mapping) else ""
        raise JAXServerError(
            f"params is of type {type(params).__name__}; it must be what mpt_from_pretrained or"
            f" FlaxMptForCausalLM.init_weights returns{hint}"
        )
    return params


def write_model_folder(
    params: Weights,
    config_model: MptConfig,
    model: FlaxMptForCausalLM,
    tokenizer: Any,
    config: JAXServerConfig,
    format_chat: FormatChat | None,
) -> Path:
    """Write everything that the server needs to a new temporary folder, and return it.

    The weights are those of `params`, bit by bit. format_chat: of a subclass.
    Raises JAXServerError for arguments that do not fit together, and as `save_checkpoint`.
    """
    if not hasattr(tokenizer, "save_pretrained"):
        raise JAXServerError(
            f"tokenizer is of type {type(tokenizer).__name__}; it must be what transformers'"
            " AutoTokenizer.from_pretrained returns"
        )
    if model.config != config_model:
        raise JAXServerError("model has another config than config_model; construct it with config=config_model")
    args = _settings(config_model, model, config)
    folder = Path(tempfile.mkdtemp(prefix="mpt-serve-"))
    try:
        checkpoint = save_checkpoint(params, to_config_json(config_model), folder / _MODEL)
        tokenizer.save_pretrained(str(checkpoint))
        args |= {"model": str(checkpoint), **_chat_template(format_chat, tokenizer, folder)}
        text = yaml.safe_dump(_serve_config(args, config), sort_keys=False)
        (folder / CONFIGURATION).write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def peak_memory() -> str:
    """Return the most memory that this process has used so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"


def _settings(config_model: MptConfig, model: FlaxMptForCausalLM, config: JAXServerConfig) -> dict[str, Any]:
    limit = config_model.length_limit
    if limit is not None and (config.max_length or 0) > limit:
        raise JAXServerError(f"max_length is {config.max_length}, but the model's positions end at {limit}")
    dtype = config.dtype_name
    if dtype is None and model.dtype is not None:
        dtype = jax.numpy.dtype(model.dtype).name
    args = {
        "served_model_name": "mpt",
        "dtype": dtype or "auto",
        "max_model_len": config.max_length,
        "engine": {"pre_compile": config.pre_compile},
        "mesh": config.mesh(jax.local_device_count()),
    }
    Settings.model_validate(args)
    return args


def _chat_template(format_chat: FormatChat | None, tokenizer: Any, folder: Path) -> dict[str, str]:
    """Return the server's setting for prompts as `format_chat` writes them; nothing for the checkpoint's own."""
    if format_chat is None:
        return {}
    adds_bos = tokenizer.bos_token_id is not None and list(tokenizer("").input_ids) == [tokenizer.bos_token_id]
    try:
        template = chat_template_of(format_chat, "{{ bos_token }}" if adds_bos else "")
    except Exception as error:  # whatever a function of users raises
        logger.warning(
            "The page at /#chat and /v1/chat/completions use the checkpoint's own chat template, not format_chat, which"
            " no template can express (%s: %s). POST /chat uses it",
            type(error).__name__,
            error,
        )
        return {}
    file = folder / "format_chat.jinja"
    file.write_text(template, encoding="utf-8")
    return {"chat_template": str(file)}


def _serve_config(args: Mapping[str, Any], config: JAXServerConfig) -> dict[str, Any]:
    platform = config.platform or jax.default_backend()
    devices = args["mesh"]["fsdp"] * args["mesh"]["tensor"]
    generator: dict[str, Any] = {"name": "Generator"}
    if platform in _PLATFORM_OPTIONS:
        generator["ray_actor_options"] = {_PLATFORM_OPTIONS[platform]: devices}
    elif platform == "tpu":
        generator["ray_actor_options"] = {"resources": {"TPU": devices}}
    if platform != "cpu" and config.platform is None:
        logger.warning(
            "This process holds the memory of its %s devices, which the server needs. Start it with JAX_PLATFORMS=cpu,"
            " and pass config={'platform': '%s'}",
            platform,
            platform,
        )
    application = {
        "name": "mpt",
        "route_prefix": "/",
        "import_path": "mpt_serve.app:build",
        "args": dict(args),
        "deployments": [{"name": "Ingress"}, {"name": "Tokenizer"}, generator],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": config.host, "port": config.api_port},
        "logging_config": {"enable_access_log": False},
        "applications": [application],
    }
