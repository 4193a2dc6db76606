"""The settings of an engine, for Python users and, with those of a replica, for a deployment."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mpt_serve.configuration.setting_types import Count, Seconds, SettingsGroup, Size, not_boolean

__all__ = ["EngineConfig", "EngineOptions", "EngineSettings", "ModelLen"]

ModelLen = Annotated[
    Annotated[int, Field(ge=2), not_boolean("an integer")] | None,
    Field(description="Longest prompt and output together, in tokens. Unset: the model's own limit."),
]
_CompilationCache = Annotated[
    str | None,
    Field(
        description="Folder of JAX's persistent compilation cache, and on CPUs of an engine's programs as a whole,"
        " which later starts load without compiling. What it holds is run: only this user may write to it. `null`"
        " leaves JAX's own setting."
    ),
]


class EngineOptions(SettingsGroup):
    """How an engine schedules its work and divides its memory."""

    max_num_seqs: Count = Field(default=32, description="Sequences that generate at the same time; more requests wait.")
    max_num_batched_tokens: Count = Field(
        default=512,
        description="Tokens computed in one step, prompts and generated ones together; above `max_num_seqs`. Larger"
        " finishes long prompts sooner, smaller lets running streams wait less for them.",
    )
    max_gap_ms: Count | None = Field(
        default=200,
        description="Milliseconds that running streams may wait for a step with chunks of prompts: a step computes as"
        " many tokens of prompts as it usually can in that time, and at least 16. `null`: `max_num_batched_tokens`.",
    )
    block_size: Count = Field(default=32, description="Tokens in one block of the KV cache.")
    num_blocks: Count | None = Field(
        default=None, description="Blocks of the KV cache. Unset: as many as `kv_cache_memory` holds."
    )
    kv_cache_memory: Size | None = Field(
        default=None,
        description="Memory for the KV cache, such as `4GiB`. Unset: what `max_num_seqs` sequences of `max_model_len`"
        " need, as far as the device has it.",
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description="Type of the keys and values in the cache. `auto`: the weights'. `int8` takes half the memory of"
        " `bfloat16`, and moves the logits a little (`docs/quantization.md`).",
    )
    prefix_caching: bool = Field(
        default=True,
        description="Keep the keys and values of prompts and outputs for later requests with the same prefix.",
    )
    background_patience: Count | None = Field(
        default=256,
        description="Steps without any row of requests of batches, while some wait, after which the first of them is"
        " served as if somebody waited for it; one at a time. Others lose at most one row of a step to it. `null`:"
        " batches wait for as long as others fill the steps.",
    )
    speculation: Literal["none", "ngram", "draft"] = Field(
        default="ngram",
        description="Propose several draft tokens and verify them in one step, which never changes the output: `ngram`"
        " proposes what followed the same tokens before, `draft` runs a smaller model.",
    )
    prompt_embeds: bool = Field(
        default=False,
        description="Take embeddings in place of ids in prompts (`prompt_embeds` in requests). Off unless needed: each"
        " step shape then has one more program to compile, each waiting request may hold as many bytes as its body, and"
        " embeddings reach what no text does.",
    )
    num_draft_tokens: Count = Field(default=11, description="Draft tokens per sequence and step, at most.")
    past_output_tokens: Count | None = Field(
        default=100_000,
        description="Tokens of the outputs that ended last, which `speculation: ngram` may propose to other requests."
        " Each takes some 200 bytes of the host's memory, and 400 at most. Requests with a `cache_salt` have no part"
        " in it. `null`: none.",
    )
    kernels: Literal["auto", "xla"] = Field(
        default="auto",
        description="`auto` takes the fastest kernels that the device's platform has: C++ on CPUs, Pallas on GPUs and"
        " TPUs (lowered and interpreted so far, not run on such hardware). `xla` leaves attention, sampling and"
        " unquantised products to XLA.",
    )
    threads: Count | None = Field(
        default=None,
        description="Threads that the C++ kernels of one process use. Unset: as many as steps of each size are fastest"
        " with, found out while serving: one on each core for large models, and fewer where a small model shares its"
        " cores with HTTP and clients. The results are the same with any number.",
    )
    pre_compile: bool = Field(
        default=True,
        description="Compile every shape before the first request, so that no request waits for the compiler.",
    )
    compilation_cache_dir: _CompilationCache = None

    @model_validator(mode="after")
    def _check_token_budget(self) -> Self:
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be above max_num_seqs"
                f" ({self.max_num_seqs}): every running sequence takes one token of a step, prompts get the rest"
            )
        return self

    @property
    def speculates(self) -> bool:
        """Say whether draft tokens are proposed at all."""
        return self.speculation != "none"


class EngineConfig(EngineOptions):
    """The configuration of an `Engine`. Raises ConfigurationError, a ValueError that names the field.

    Values must have their exact types; only configuration files may write numbers as strings.
    """

    model_config = ConfigDict(strict=True)

    max_model_len: ModelLen = None


class EngineSettings(EngineOptions):
    """How one Generator replica schedules its work and divides its memory."""

    compilation_cache_dir: _CompilationCache = "~/.cache/mpt_serve/compilation"
    draft_model: str | None = Field(
        default=None,
        min_length=1,
        description="The smaller model for `speculation: draft`, written like `model`; it must have the same"
        " vocabulary.",
    )
    stall_timeout_s: Seconds = Field(
        default=60.0,
        description="Seconds without an engine step, while requests are running, after which the requests of a replica"
        " move to others and it is replaced. Longer where steps take long: at least 20 times the longest of the recent"
        " ones, and 300 with `pre_compile: false`, where steps compile programs.",
    )
    reply_timeout_s: Seconds = Field(
        default=10.0,
        description="Seconds without a reply or any other sign of life of a replica (its process is frozen, its node"
        " cannot be reached) after which its requests move to others and it is replaced. One that is slow because its"
        " machine has too much to do still gives signs. Also the default of Serve's `health_check_timeout_s`.",
    )

    @model_validator(mode="after")
    def _check_draft_model(self) -> Self:
        if (self.speculation == "draft") != (self.draft_model is not None):
            needs = "needs a" if self.draft_model is None else "uses no"
            raise ValueError(
                f"speculation '{self.speculation}' {needs} draft_model;"
                " to use a draft model, set speculation to 'draft' and draft_model to a smaller model"
            )
        return self
