"""What a step sampled, on its way from the device to the host: ids and log probabilities in one array of words."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from model.sampling.logprobs import Logprobs
from mpt_serve.engine.request import TokenLogprobs


def pack_sampled(ids: Array, logprobs: Logprobs) -> Array:
    """ids [S] and their log probabilities -> [S, 3 + 2 * 20] int32, in one transfer to the host."""
    logprob, top = (lax.bitcast_convert_type(x, jnp.int32) for x in (logprobs.logprob, logprobs.top_logprobs))
    return jnp.concatenate([jnp.stack([ids, logprob, logprobs.rank], axis=1), logprobs.top_ids, top], axis=1)


@dataclass(frozen=True)
class Sampled:
    """The packed array on the host: [S, 3 + 2 * 20] int32."""

    words: npt.NDArray[np.int32]

    @classmethod
    def read(cls, packed: Any) -> "Sampled":
        """Waits for the device."""
        return cls(np.asarray(packed))

    def ids(self, count: int) -> list[int]:
        """The first `count` ids."""
        ids: list[int] = self.words[:count, 0].tolist()
        return ids

    def logprobs(self, begin: int, end: int, num_top: int) -> list[TokenLogprobs]:
        """Of the samples [begin, end), with `num_top` of the likeliest ids each."""
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
