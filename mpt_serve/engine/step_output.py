"""What a step generated: on its way from the device to the host, and as records for the engine."""

from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from model.sampling.logprobs import Logprobs
from mpt_serve.engine.request import FinishReason, Request, TokenLogprobs


class Sampled(Protocol):
    """What `pack_sampled` returns, on its way to the host: an array of JAX's, or one that a native step fills."""

    def block_until_ready(self) -> object: ...

    def __array__(self) -> npt.NDArray[np.int32]: ...


def pack_sampled(ids: Array, logprobs: Logprobs) -> Array:
    """Pack ids [S] and their log probabilities into one array, for one transfer to the host.

    -> [S, 3 + 2 * max_logprobs] int32
    """
    logprob, top = (lax.bitcast_convert_type(x, jnp.int32) for x in (logprobs.logprob, logprobs.top_logprobs))
    return jnp.concatenate([jnp.stack([ids, logprob, logprobs.rank], axis=1), logprobs.top_ids, top], axis=1)


@dataclass(frozen=True)
class SampledIds:
    """The packed array on the host: [S, 3 + 2 * max_logprobs] int32."""

    words: npt.NDArray[np.int32]

    @classmethod
    def read(cls, packed: Sampled) -> "SampledIds":
        """Read the array; waits for the device."""
        return cls(np.asarray(packed))

    def ids(self, count: int) -> list[int]:
        """Return the first `count` ids; `NO_NUMBER` in place of one that could not be sampled."""
        ids: list[int] = self.words[:count, 0].tolist()
        return ids

    def has_numbers(self, begin: int, end: int) -> bool:
        """Return whether the log probabilities of the samples [begin, end) are numbers."""
        return not np.isnan(self.words[begin:end, 1].view(np.float32)).any()

    def logprobs(self, begin: int, end: int, num_top: int) -> list[TokenLogprobs]:
        """Return the log probabilities of the samples [begin, end), with `num_top` of the likeliest ids each."""
        words = self.words[begin:end]
        floats = words.view(np.float32)
        width = (words.shape[1] - 3) // 2
        top_ids, top_logprobs = words[:, 3 : 3 + num_top], floats[:, 3 + width : 3 + width + num_top]
        return [
            TokenLogprobs(logprob, rank, tuple(zip(ids, values, strict=True)))
            for logprob, rank, ids, values in zip(
                floats[:, 1].tolist(), words[:, 2].tolist(), top_ids.tolist(), top_logprobs.tolist(), strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step brought one request.

    finish_reason: when the step ended the request.
    """

    request: Request
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class StepFailure:
    """A request that cannot continue, and has been ended; message: why, for its client."""

    request: Request
    message: str


@dataclass(slots=True)
class TurnResult:
    """What one turn of the pipeline brought; a request's output comes before its failure.

    scheduled: whether there was a next step. outputs: one for each request that the step read has ids for, or that it
    ended. error: raised by the device, a drafter or the engine's own code; what was read before it counts.
    """

    scheduled: bool = False
    outputs: list[StepOutput] = field(default_factory=list)
    failures: list[StepFailure] = field(default_factory=list)
    error: Exception | None = None
