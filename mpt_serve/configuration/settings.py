"""Every setting of mpt_serve: what stands under `args` in serve_config.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.problems import ConfigurationError, schema_problems

__all__ = ["EngineSettings", "LimitSettings", "MeshSettings", "Settings"]


def _no_boolean(wanted: str) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, bool):  # Python would take `true` for 1
            raise ValueError(f"must be {wanted}, not {str(value).lower()}")
        return value

    return BeforeValidator(check)


_Count = Annotated[int, _no_boolean("a whole number"), Field(ge=1)]
_Size = Annotated[ByteSize, _no_boolean("a size such as 512MiB or 4GiB"), Field(gt=0)]
_Seconds = Annotated[float, _no_boolean("a number"), Field(gt=0, allow_inf_nan=False)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class EngineSettings(_Group):
    """How one Generator replica schedules its work and divides its memory."""

    max_num_seqs: _Count = Field(
        default=32, description="Sequences that generate at the same time; more requests wait."
    )
    max_num_batched_tokens: _Count = Field(
        default=512,
        description="Tokens computed in one step, prompts and generated ones together. Larger fills long prompts"
        " sooner, smaller lets running streams wait less for them.",
    )
    block_size: _Count = Field(default=32, description="Tokens in one block of the KV cache.")
    num_blocks: _Count | None = Field(
        default=None, description="Blocks of the KV cache. Unset: as many as `kv_cache_memory` holds."
    )
    kv_cache_memory: _Size | None = Field(
        default=None,
        description="Memory for the KV cache, such as `4GiB`. Unset: what `max_num_seqs` sequences of `max_model_len`"
        " need, as far as the device has it.",
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description="Type of the keys and values in the cache. `auto`: the weights'. `int8` takes half the memory of"
        " `bfloat16`, and moves the logits a little.",
    )
    prefix_caching: bool = Field(
        default=True,
        description="Keep the keys and values of prompts, and of answers, for requests that begin alike.",
    )
    speculation: Literal["none", "ngram", "draft"] = Field(
        default="ngram",
        description="Guess several tokens and check them in one step, which changes no answer: `ngram` guesses what"
        " followed the same tokens before, `draft` asks `draft_model`.",
    )
    draft_model: str | None = Field(
        default=None,
        min_length=1,
        description="The smaller model of `speculation: draft`, named as `model` is; it must have the same tokens.",
    )
    num_draft_tokens: _Count = Field(default=11, description="Tokens guessed at most for one step of a sequence.")
    kernels: Literal["auto", "xla"] = Field(
        default="auto",
        description="`auto` takes the fastest kernels that the device's platform has: C++ on CPUs, Pallas on GPUs and"
        " TPUs (lowered and interpreted so far, not run on such hardware). `xla` leaves attention, sampling and"
        " unquantised products to XLA.",
    )
    pre_compile: bool = Field(
        default=True,
        description="Compile every shape before the first request, so that no request waits for the compiler.",
    )
    compilation_cache_dir: str | None = Field(
        default="~/.cache/mpt_serve/compilation",
        description="Folder that keeps compiled programs between starts; `null` keeps none.",
    )
    stall_timeout_s: _Seconds = Field(
        default=300.0,
        description="Seconds without a step, while there is work, after which Serve replaces the replica.",
    )

    @model_validator(mode="after")
    def _prompts_find_room(self) -> Self:
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be above max_num_seqs"
                f" ({self.max_num_seqs}): every running sequence takes one token of a step, prompts get the rest"
            )
        return self

    @model_validator(mode="after")
    def _draft_model_is_used(self) -> Self:
        if (self.speculation == "draft") != (self.draft_model is not None):
            raise ValueError(
                f"speculation '{self.speculation}' {'needs a' if self.draft_model is None else 'uses no'} draft_model;"
                " set speculation to 'draft' and draft_model to a smaller model, or neither"
            )
        return self


class LimitSettings(_Group):
    """What one request, and all requests together, may ask for. `docs/api.md` lists the other bounds on a request."""

    request_timeout_s: _Seconds = Field(
        default=Limits.request_timeout_s,
        description="Seconds from a request's first byte to its answer's last; then it ends with an error 504.",
    )
    first_token_wait_s: _Seconds = Field(
        default=Limits.first_token_wait_s,
        description="Seconds after which a stream begins without its first token, so that nobody between takes it for"
        " dead; an error before that keeps its own status.",
    )
    keep_alive_s: _Seconds = Field(
        default=Limits.keep_alive_s, description="Seconds of silence after which a stream sends a comment."
    )
    max_body_bytes: _Size = Field(
        default=ByteSize(Limits.max_body_bytes), description="Size of one request's body, such as `4MiB`."
    )
    max_prompts: _Count = Field(default=Limits.max_prompts, description="Prompts in one /v1/completions request.")
    max_choices: _Count = Field(
        default=Limits.max_choices, description="Choices in one request: prompts times `n`, or times `best_of`."
    )
    max_prompt_logprobs: _Count = Field(
        default=Limits.max_prompt_logprobs,
        description="Log probabilities of prompts in one answer: tokens times choices times those of one token. Each"
        " takes some 60 bytes of the answer.",
    )
    max_waiting_requests: _Count = Field(
        default=256,
        description="Choices (one for each prompt, unless a request asks for more) that one Ingress replica keeps"
        " waiting or running, over all its Generator replicas. More are refused with 503 and a Retry-After header.",
    )
    max_waiting_prompt_tokens: _Count = Field(
        default=262_144,
        description="Prompt tokens of those requests together, refused alike. One request alone is always let in.",
    )


class MeshSettings(_Group):
    """The devices of one Generator replica, as a mesh. 1 x 1 is one device."""

    fsdp: _Count = Field(default=1, description="Devices that the weights' rows are spread over.")
    tensor: _Count = Field(default=1, description="Devices that attention heads and hidden units are spread over.")


class Settings(_Group):
    """The settings of one served model."""

    model: str = Field(
        default="embedded",
        min_length=1,
        description="A checkpoint folder, a Hugging Face model id (`owner/name`), or `embedded`: the"
        " small model that comes with mpt_serve. A folder must exist on every node that runs a replica.",
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
        " their kernels do not have, and `float32` for all where there are no kernels.",
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="Weights as whole numbers of 8 or 4 bits, made while loading: a half or a quarter of the memory of"
        " `bfloat16`, and on CPUs faster (`docs/quantization.md`). Takes one device: no `mesh`.",
    )
    quantization_cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Folder that keeps quantised weights, so that later starts read them instead of making them again."
        " Replicas may share it; it may be deleted at any time. Unset: none are kept.",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="`chatml` (MPT chat models), `dolly` (MPT instruct models), the path of a .jinja file, the text of"
        " a template, or `none`. Unset: the checkpoint's own.",
    )
    max_model_len: _Count | None = Field(
        default=None, description="Longest prompt and answer together, in tokens. Unset: the model's own limit."
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="Scheduling and memory of a Generator replica."
    )
    limits: LimitSettings = Field(default_factory=LimitSettings, description="What requests may ask for.")
    mesh: MeshSettings = Field(default_factory=MeshSettings, description="Devices of a Generator replica.")

    @model_validator(mode="after")
    def _quantised_on_one_device(self) -> Self:
        if self.quantization != "none" and self.mesh.fsdp * self.mesh.tensor > 1:
            raise ValueError(
                f"quantization '{self.quantization}' takes one device, but mesh has fsdp {self.mesh.fsdp} and tensor"
                f" {self.mesh.tensor}; set both to 1, or quantization to 'none'"
            )
        return self

    @classmethod
    def from_mapping(cls, args: Mapping[str, Any]) -> "Settings":
        """Return the settings in a configuration's `args`. Raises ConfigurationError with every mistake in it."""
        problems = schema_problems(cls, args)
        if problems:
            raise ConfigurationError(problems)
        return cls.model_validate(args)

    @property
    def model_name(self) -> str:
        """The model's name on the wire."""
        if self.served_model_name is not None:
            return self.served_model_name
        folder = Path(self.model).expanduser()
        return folder.resolve().name if folder.is_dir() else self.model
