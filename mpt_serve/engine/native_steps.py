"""Steps that the CPU's kernels compute without XLA, on the same state as the compiled programs."""

import jax
import numpy as np
import numpy.typing as npt

from model.config.mpt_config import MptConfig
from model.kernel_selection import OpenSession
from model.kernels.cpu.session import StepInputs, StepSession, addresses
from model.params.kv_cache import KvCache
from model.params.weights import Weights
from mpt_serve.engine.programs import DeviceState
from mpt_serve.engine.sampling_params import MAX_LOGPROBS
from mpt_serve.engine.step_inputs import Packed
from mpt_serve.engine.step_shapes import StepShape
from mpt_serve.engine.token_masks import Words


class NativeSteps:
    """Starts steps one after the other. Threads of the kernels compute them; the caller joins those at the next one.

    XLA's arrays are updated in place, which XLA does not know of: it must compute with them only after `finish`, and
    its own steps are waited for before the next native one.
    """

    def __init__(
        self, open_session: OpenSession, weights: Weights, config: MptConfig, state: DeviceState, vocab_limit: int
    ) -> None:
        self._open_session = open_session
        self._weights, self._config = weights, config
        self._state = state
        self._vocab_limit = vocab_limit
        self._session: StepSession | None = None
        self._cache: KvCache | None = None  # that the session writes, None where XLA may have computed since
        self._slots = [0, 0, 0]  # addresses of the sampler's state
        self._inputs: dict[StepShape, StepInputs] = {}
        self._latest: SampledLater | None = None  # of the step that was begun last
        self._held: list[object] = []  # what the step in flight reads and writes

    def start(
        self, shape: StepShape, forward: Packed, sampling: Packed, masks: Words | None, *, yields: bool = False
    ) -> "SampledLater":
        """Begin a step and return what it samples, as `pack_sampled` does. Does not wait for it.

        forward, sampling: as `step_inputs` packs them for a step of this shape. yields: whether `abandon` may end it.
        """
        if self._cache is not self._state.cache:
            self._meet_xla()
        session = self._session
        assert session is not None
        inputs = self._inputs.get(shape)
        if inputs is None:
            inputs = self._inputs[shape] = self._inputs_of(shape)
        sampled = np.empty((shape.key.num_samples, 3 + 2 * MAX_LOGPROBS), np.int32)
        inputs.forward, inputs.sampling, inputs.sampled = map(_address, (forward, sampling, sampled))
        inputs.masks = None if masks is None else _address(masks)
        inputs.last_tokens, inputs.counts, inputs.bias = self._slots
        session.start(inputs, yields=yields)
        if self._latest is not None:
            self._latest.end()
        self._held[:] = masks, sampled
        self._latest = SampledLater(session, sampled)
        return self._latest

    def abandon(self) -> None:
        """Have the step in flight end soon, if that yields. Any thread."""
        session = self._session
        if session is not None:
            session.abandon()

    def open(self) -> None:
        """Open the session now, rather than with the first step."""
        self._meet_xla()

    def finish(self) -> None:
        """Wait for the step in flight: XLA is about to compute with the state."""
        if self._session is not None:
            self._session.finish()
        self._cache = None

    def _meet_xla(self) -> None:
        """Wait for XLA, and open the session where there is none on the present cache."""
        state = self._state
        self.finish()
        jax.block_until_ready((state.cache, state.slots))
        if self._session is None or self._session.caches != addresses(jax.tree.leaves(state.cache)):
            self._session, state.cache = self._open_session(
                self._weights, self._config, state.cache, (state, self._held)
            )
        self._cache = state.cache
        self._slots = addresses([state.slots.last_tokens, state.slots.counts, state.slots.bias])

    def _inputs_of(self, shape: StepShape) -> StepInputs:
        """Return the inputs of steps of a shape, with what is the same for all of them."""
        T, R, S, _ = shape.key
        sizes = {"T": T, "R": R, "W": shape.max_blocks, "S": S}
        return StepInputs(**sizes, slots=shape.max_num_seqs, limit=self._vocab_limit, most=MAX_LOGPROBS)


class SampledLater:
    """What a step samples, [S, 3 + 2 * max_logprobs] int32 once it is done.

    abandoned: known when that was waited for; the array means nothing then.
    """

    def __init__(self, session: StepSession, sampled: npt.NDArray[np.int32]) -> None:
        self.abandoned = False
        self._session: StepSession | None = session
        self._sampled = sampled

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.int32]:
        """Return the array; works on the step until it is done."""
        self.block_until_ready()
        return self._sampled

    def block_until_ready(self) -> "SampledLater":
        """Work on the step until it is done; returns at once where it is."""
        if self._session is not None:
            self.abandoned = not self._session.finish()
            self._session = None
        return self

    def end(self) -> None:
        """Take note that the step is done, as the session has begun another one, which nobody is to wait for here."""
        self._session = None


def _address(array: npt.NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
