"""Every setting of mpt_serve: the `args` of the application in serve_config.yaml."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.batches import BatchSettings
from mpt_serve.configuration.engine_config import EngineConfig, EngineOptions, EngineSettings, ModelLen
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.sampling_defaults import SamplingDefaults
from mpt_serve.configuration.setting_types import Count, SettingsGroup

__all__ = ["MeshSettings", "Settings"]


class MeshSettings(SettingsGroup):
    """The device mesh of one Generator replica. 1 x 1 is a single device."""

    fsdp: Count = Field(default=1, description="Devices to shard the rows of the weights over.")
    tensor: Count = Field(default=1, description="Devices to shard attention heads and hidden units over.")


class Settings(SettingsGroup):
    """The settings of one served model."""

    model: str = Field(
        default="embedded",
        min_length=1,
        description="A checkpoint folder, a Hugging Face model id (`owner/name`), or `embedded`: the"
        " small model inside the package. A folder must exist on every node that runs a replica.",
    )
    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The name clients use for the model. Unset: `model`, or its last folder.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type of the weights in memory. `auto`: the checkpoint's; on CPUs `float32` for `float16`, which"
        " the CPU kernels lack, and always `float32` without native kernels.",
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="Quantise weights to 8 or 4 bits while loading: a half or a quarter of the memory of"
        " `bfloat16`, and faster on CPUs (`docs/quantization.md`). On one device: no `mesh`.",
    )
    quantization_cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the packed-weights cache: later starts map the weights from there, in a second or two,"
        " instead of quantising and packing again; on CPUs also with `quantization: none`. Replicas may share it, and"
        " on one machine its memory; its files may be deleted at any time. Unset: no cache.",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="`chatml` (MPT chat models), `dolly` (MPT instruct models), the path of a .jinja file, the text of"
        " a template, or `none`. Unset: the checkpoint's own template.",
    )
    chat_special_tokens: Literal["text", "parse"] = Field(
        default="text",
        description="What control tokens such as `<|im_end|>` in the messages of a chat become. `text`: ordinary text,"
        " so that no message can end its turn or begin another one. `parse`: control tokens, as those that the template"
        " writes; only for clients that may write every turn.",
    )
    sampling_defaults: SamplingDefaults = Field(
        default_factory=SamplingDefaults, description="What sampling fields mean in requests that leave them out."
    )
    embedding_pooling: Literal["mean", "last"] = Field(
        default="mean",
        description="What an embedding is made of where a request names no `pooling`: the `mean` of all tokens' hidden"
        " states, or the `last` token's, which later requests with the same prefix compute faster.",
    )
    server_root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        max_length=256,
        description="The prefix below which a proxy in front serves this API, such as `/llm`, whether it removes the"
        " prefix from the paths or not. `/openapi.json` and `/docs` name it.",
    )
    playground: bool = Field(
        default=True,
        description="Serve the page at `/` that lets people try the model in a browser (`docs/playground.md`). It needs"
        " no key itself; what it sends does.",
    )
    do_memory_log: bool = Field(
        default=False,
        description="Log every ten seconds how much memory each Generator takes: on its machine, and on its devices.",
    )
    max_model_len: ModelLen = None
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="Scheduling and memory of a Generator replica."
    )
    limits: Limits = Field(default_factory=Limits, description="What requests may ask for.")
    access: AccessSettings = Field(default_factory=AccessSettings, description="Who may send requests, and how many.")
    batches: BatchSettings = Field(default_factory=BatchSettings, description="Files, and batches of requests in them.")
    mesh: MeshSettings = Field(default_factory=MeshSettings, description="Devices of a Generator replica.")

    @model_validator(mode="after")
    def _quantised_on_one_device(self) -> Self:
        if self.quantization != "none" and self.mesh.fsdp * self.mesh.tensor > 1:
            raise ValueError(
                f"quantization '{self.quantization}' needs a single device, but mesh has fsdp {self.mesh.fsdp} and"
                f" tensor {self.mesh.tensor}; set both to 1, or quantization to 'none'"
            )
        return self

    @property
    def engine_config(self) -> EngineConfig:
        """Return the configuration of a Generator replica's engine."""
        options = {name: getattr(self.engine, name) for name in EngineOptions.model_fields}
        if self.engine.compilation_cache_dir is not None:
            options["compilation_cache_dir"] = str(Path(self.engine.compilation_cache_dir).expanduser())
        return EngineConfig(**options, max_model_len=self.max_model_len)

    @property
    def model_name(self) -> str:
        """Return the name that clients use for the model."""
        if self.served_model_name is not None:
            return self.served_model_name
        folder = Path(self.model).expanduser()
        return folder.resolve().name if folder.is_dir() else self.model
