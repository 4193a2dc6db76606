"""The hidden states of a request's prompt, gathered while steps compute its chunks."""

import numpy as np
import numpy.typing as npt

from mpt_serve.engine.sampling_params import Pooling

__all__ = ["PooledStates"]

States = npt.NDArray[np.float32]  # [n, d], after the model's last norm


class PooledStates:
    """What one request returns of the hidden states of its prompt; see `SamplingParams.pooling`.

    begin: the first token whose state is still needed; grows with what is taken.

    The mean is summed in float64 and token by token, so that it does not depend on the chunks that steps compute.
    """

    def __init__(self, pooling: Pooling, normalize: bool, num_tokens: int) -> None:
        self.begin = num_tokens - 1 if pooling == "last" else 0
        self._pooling = pooling
        self._normalize = normalize
        self._num_tokens = num_tokens
        self._sum: npt.NDArray[np.float64] | None = None
        self._states: list[States] = []

    def take(self, states: States) -> None:
        """Take the states of the tokens from `begin` on."""
        self.begin += len(states)
        if self._pooling != "mean":
            self._states.append(states)
            return
        if self._sum is None:
            self._sum = np.zeros(states.shape[1])
        for state in states:
            self._sum += state

    def result(self) -> bytes | None:
        """Return the vector, or the vectors one after the other, as float32 in little-endian bytes; None until then."""
        if self.begin < self._num_tokens:
            return None
        vectors = np.concatenate(self._states) if self._sum is None else self._sum[None] / self._num_tokens
        if self._normalize:
            vectors = vectors.astype(np.float64)
            lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
            vectors /= np.where(lengths == 0, 1, lengths)
        return vectors.astype("<f4").tobytes()
