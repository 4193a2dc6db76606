"""The options of `JAXServer`, with EasyDeL's names and what each means here."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from mpt_serve.errors import MptServeError

__all__ = ["JAXServerConfig", "JAXServerError"]

logger = logging.getLogger(__name__)

_DTYPES = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}
_AXES = {"fsdp": "fsdp", "tp": "tensor", "mp": "tensor"}  # the others are of one device here


class JAXServerError(MptServeError, ValueError):
    """An option, an argument or a server that cannot be used; the message says what to change."""


@dataclass
class JAXServerConfig:
    """What `JAXServer` serves and how.

    host, port: where POST /chat, POST /instruct and GET /status are served, by this process.
    serve_port: where Ray Serve serves the API of OpenAI and the page at /; None is `port` + 1.
    max_length: tokens of a prompt and its completion together; None takes the model's.
    max_new_tokens, temperature, top_p, top_k: of /chat, /instruct and `process` where a call names none.
    max_stream_tokens: `process` yields after each of this number of tokens; it divides `max_new_tokens`.
    dtype: bf16, fp16 or fp32: the type of the weights in the server; None takes the model's `dtype`.
    pre_compile: whether all programs are compiled at the start rather than when they are first needed.
    mesh_axes_names, mesh_axes_shape: how the weights are laid over devices, by `fsdp` and `tp` (or `mp`).
    platform: JAX_PLATFORMS of the server's processes, such as `cuda` or `tpu`; None is that of this process.
    batch_size, use_prefix_tokenizer, stream_tokens_for_gradio, contains_auto_format, generation_ps, logging: accepted,
        and not needed here (`log_ignored`).
    """

    host: str = "127.0.0.1"
    port: int = 2059
    serve_port: int | None = None
    batch_size: int = 1
    contains_auto_format: bool = True
    max_length: int | None = None
    max_new_tokens: int = 4096
    max_stream_tokens: int = 64
    temperature: float = 0.1
    top_p: float = 0.95
    top_k: int = 50
    logging: bool = True
    mesh_axes_names: Sequence[str] = ("dp", "fsdp", "tp", "sp")
    mesh_axes_shape: Sequence[int] = (1, -1, 1, 1)
    generation_ps: Any = None
    dtype: str | None = None
    stream_tokens_for_gradio: bool = True
    use_prefix_tokenizer: bool = True
    pre_compile: bool = True
    platform: str | None = None

    def __post_init__(self) -> None:
        for name in ("port", "max_new_tokens", "max_stream_tokens"):
            _require_positive(name, getattr(self, name))
        for name in ("serve_port", "max_length"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.max_new_tokens % self.max_stream_tokens:
            raise JAXServerError(
                f"max_new_tokens ({self.max_new_tokens}) must be a multiple of max_stream_tokens"
                f" ({self.max_stream_tokens}), as in EasyDeL"
            )
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise JAXServerError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}")

    @classmethod
    def of(cls, config: "JAXServerConfig | Mapping[str, Any] | None") -> Self:
        """Return the options of a dictionary as EasyDeL's documentation has it. Raises JAXServerError."""
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise JAXServerError(f"config is of type {type(config).__name__}; it must be a dict or a JAXServerConfig")
        names = {field.name for field in fields(cls)}
        unknown = sorted(str(key) for key in (config or {}) if key not in names)
        if unknown:
            raise JAXServerError(f"config has no option {unknown[0]!r}; there are {', '.join(sorted(names))}")
        return cls(**(config or {}))

    def __getitem__(self, name: str) -> Any:
        if name not in {field.name for field in fields(self)}:
            raise KeyError(name)
        return getattr(self, name)

    @property
    def dtype_name(self) -> str | None:
        """Return `dtype` as the server's settings name it."""
        return None if self.dtype is None else _DTYPES[self.dtype]

    @property
    def api_port(self) -> int:
        """Return the port of the API of OpenAI and of the page at /."""
        return self.port + 1 if self.serve_port is None else self.serve_port

    def mesh(self, num_devices: int) -> dict[str, int]:
        """Return the server's setting `mesh`; -1 is the number of devices that the other axes leave.

        Raises JAXServerError for axes that are of one device here.
        """
        names, shape = tuple(self.mesh_axes_names), tuple(self.mesh_axes_shape)
        if len(names) != len(shape) or shape.count(-1) > 1:
            raise JAXServerError(
                f"mesh_axes_shape {shape} must have one size for each of mesh_axes_names {names}, and one -1 at most"
            )
        product = 1
        for size in shape:
            product *= 1 if size == -1 else size
        mesh = {"fsdp": 1, "tensor": 1}
        for name, size in zip(names, shape, strict=True):
            devices = max(num_devices // product, 1) if size == -1 else size
            if name in _AXES:
                mesh[_AXES[name]] *= devices
            elif devices != 1:
                raise JAXServerError(
                    f"mesh_axes_shape gives {devices} devices to the axis {name!r}, and this server divides weights by"
                    " 'fsdp' and 'tp' alone. Give it 1; for more requests at the same time run more replicas of the"
                    " Generator"
                )
        return mesh

    def log_ignored(self) -> None:
        """Warn of options that have another value than usual and no effect here."""
        if self.batch_size != 1:
            logger.warning("batch_size is not needed: requests are batched as they arrive, whatever their number")
        if not self.stream_tokens_for_gradio:
            logger.warning("stream_tokens_for_gradio=False has no effect: the page at / always streams")
        if self.generation_ps is not None:
            logger.warning("generation_ps has no effect: batches are not sharded")
        if not self.use_prefix_tokenizer:
            logger.warning("use_prefix_tokenizer has no effect: prompts are never padded, so nothing depends on it")


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise JAXServerError(f"{name} is {value!r} ({type(value).__name__}); it must be an integer of at least 1")
