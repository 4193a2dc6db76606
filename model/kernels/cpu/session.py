"""Steps of one model by the native kernels alone, from the ids of tokens to sampled ids.

The same computation as `layers.paged_forward` and `sampling.sampler` by the kernels, equal to the last bit, without an
XLA program around it: starting one takes as long as a small model's step. Arrays are handed over by their addresses, so
whoever opens a session keeps them, and knows when XLA may use them.
"""

import ctypes
import weakref
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import in_place
from model.kernels.cpu.library import kernel_call, kernel_library
from model.kernels.cpu.step import (
    computes_whole_step,
    linear_arguments,
    model_arguments,
    model_attributes,
)
from model.params.kv_cache import KvCache
from model.params.packed_matrix import PackedMatrix
from model.params.weights import Linear, Weights

__all__ = ["StepInputs", "StepSession", "addresses", "computes_sessions", "open_session"]


class StepInputs(ctypes.Structure):
    """The rows of a step and how they are sampled, by the addresses of dense arrays (src/session.h).

    T tokens, R rows with block tables of W blocks, S samples. slots: of the sampler's state; limit: ids are below it;
    most: the log probabilities that a row may list.
    forward: int32, one after the other: a number that is not read; token ids, positions and cache slots, each [T], -1 -
        slot in place of an id for the last one of a slot; query_start, query_len and context_len, each [R]; block
        tables [R, W]; the tokens to sample after [S].
    sampling: int32 [16, S]: slot, write_slot, top_k, choice_index, position, num_logprobs, biased, masked, the halves
        of seed; then float32 temperature, top_p, min_p, repetition, presence, frequency (`params.sampling_batch`).
    masks: uint32 [S, ceil(V / 32)], 0 where no row is masked.
    last_tokens, counts, bias: the sampler's state (`sampling.batch.SamplerState`), updated in place.
    sampled: int32 [S, 3 + 2 most], the result: of each row its id, log probability, rank, most likely ids and their log
        probabilities, as `sampling.logprobs.Logprobs`, floats by their bits.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("T", "R", "W", "S", "slots", "limit", "most")),
        *(
            (name, ctypes.c_void_p)
            for name in ("forward", "sampling", "masks", "last_tokens", "counts", "bias", "sampled")
        ),
    )


class StepSession:
    """An open session. One thread uses it at a time, but for `abandon`.

    caches: the addresses of the cache's arrays, which it uses as long as it lives.
    """

    def __init__(self, address: int, caches: Sequence[int], memory: object) -> None:
        library = kernel_library()
        assert library is not None
        self.caches = caches
        self._session = ctypes.c_void_p(address)
        self._start, self._finish, self._abandon = library.start_step, library.finish_step, library.abandon_step
        self.close: Callable[[], object] = weakref.finalize(self, _close, self._session, memory)
        """Wait for the step in flight, and free the session. Happens by itself when nothing refers to it."""

    def start(self, inputs: StepInputs, *, yields: bool = False) -> None:
        """Begin a step on other threads, once the one before is done.

        `forward` and `sampling` are read before this returns; everything else must stay until the step is done.
        yields: whether `abandon` may end it.
        """
        self._start(self._session, ctypes.byref(inputs), ctypes.c_bool(yields))

    def finish(self) -> bool:
        """Work on the step that was begun last, and return when it is done, or abandoned.

        Returns whether it is done. One that was abandoned has sampled nothing and left the sampler's state as it was;
        the cache is undefined where the step's own tokens are.
        """
        done: bool = self._finish(self._session)
        return done

    def abandon(self) -> None:
        """Have the step in flight end soon, if that yields and has not come to its samples. Any thread."""
        self._abandon(self._session)


def computes_sessions(weights: Weights, config: MptConfig) -> bool:
    """Return whether steps of this model need nothing but the kernels, its embedding and its logits included."""
    plain = config.logit_scale == 1 and config.final_logit_softcap is None and not config.learned_positions
    embeds = _format(weights.wte) is not None and _format(weights.wte) == _format(weights.head)
    return plain and embeds and computes_whole_step(weights, config)


def open_session(weights: Weights, config: MptConfig, cache: KvCache, memory: object) -> tuple[StepSession, KvCache]:
    """Open a session for a model that `computes_sessions`; the cache is donated and returned, in the same memory.

    The cache must stay where it is as long as the session lives. memory: owns the memory of the cache and of the
    inputs of steps, and lives as long as the session.
    """
    caches, treedef = jax.tree.flatten(cache)

    def opened(weights: Weights, caches: list[Array]) -> tuple[Array, list[Array]]:
        address, *updated = kernel_call(
            "mpt_open_session",
            [jax.ShapeDtypeStruct((2,), jnp.uint32), *in_place(caches)],
            input_output_aliases={i: 1 + i for i in range(len(caches))},
        )(
            *caches,
            *model_arguments(weights),
            *linear_arguments(Linear(weights.wte)),
            **model_attributes(weights, config, cache),
        )
        return address, updated

    address, caches = jax.jit(opened, donate_argnums=1)(weights, caches)
    words: npt.NDArray[np.uint32] = np.asarray(address)
    return StepSession(int(words.view(np.uint64)[0]), addresses(caches), (weights, memory)), jax.tree.unflatten(
        treedef, caches
    )


def addresses(arrays: Sequence[Array]) -> list[int]:
    """Return where arrays on a single device lie in memory."""
    return [array.unsafe_buffer_pointer() for array in arrays]


def _close(session: ctypes.c_void_p, memory: object) -> None:
    """Close a session while its memory is still there."""
    library = kernel_library()
    assert library is not None
    library.close_session(session)


def _format(matrix: Array | PackedMatrix) -> tuple[str, int] | None:
    return (matrix.format, matrix.group) if isinstance(matrix, PackedMatrix) else None
