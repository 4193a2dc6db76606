"""The training step in native code (`training/native/`): several times as fast as XLA's on one core.

It is compiled when it is first used, and needs a C++ compiler and a processor with AVX512-BF16. Products round their
factors to bfloat16 and sum in float32, as does Muon's iteration; weights, norms, softmax and optimisers are float32.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import weakref
from functools import cache
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from training import muon
from training.architecture import config_dict
from training.dialogue import ENDOFTEXT
from training.schedule import ADAM_RATE, MUON_RATE
from training.tokenizer import SPECIAL_TOKENS

_SOURCES = Path(__file__).parent / "native"
_BUILD = Path(__file__).parent.parent / "build" / "training"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
          "-shared", "-fPIC", "-pthread")  # fmt: skip
_NEEDED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
_MULTIPLE = 32  # of all sizes

_Floats = NDArray[np.float32]


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("d", "layers", "heads", "hidden", "vocabulary", "end_of_text")),
        *((name, ctypes.c_float) for name in ("bias_max", "epsilon")),
    )


def _processor_features() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in text.splitlines() if line.startswith("flags")), "").split())


@cache
def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) if _processor_features() >= _NEEDED else None


def usable(config: MptConfig, length: int) -> bool:
    """Return whether this machine can run the native step on rows of `length`, of a model of `config_dict`."""
    known = config_dict(config.d_model, config.n_layers, config.n_heads, config.vocab_size)
    if _compiler() is None or config != MptConfig.from_dict(known):
        return False
    sizes = (config.d_model, config.head_dim, config.vocab_size, length)
    # ALiBi's slopes have another rule where the number of heads is no power of two.
    return config.n_heads & (config.n_heads - 1) == 0 and all(size % _MULTIPLE == 0 for size in sizes)


@cache
def _library() -> ctypes.CDLL:
    """Return the library, compiled where these sources were not yet."""
    compiler = _compiler()
    assert compiler is not None
    sources = b"".join(path.read_bytes() for path in sorted(_SOURCES.glob("*.*")))
    features = " ".join(sorted(_processor_features())).encode()
    path = _BUILD / f"step-{sha256(sources + features).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        subprocess.run([compiler, *_FLAGS, str(_SOURCES / "step.cc"), "-o", str(partial)], check=True)
        partial.replace(path)
    library = ctypes.CDLL(str(path))
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for name, result, arguments in (
        ("trainer_open", pointer, [ctypes.POINTER(_Shape), number, number]),
        ("trainer_close", None, [pointer]),
        ("trainer_gradient", ctypes.c_double, [pointer, pointer, pointer, pointer, number]),
        ("trainer_gradient_of", ctypes.POINTER(real), [pointer, number]),
        ("trainer_update", None, [pointer, pointer, pointer, pointer, number, real, real]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _arrays(tree: Weights | muon.OptimizerState) -> list[_Floats]:
    """Return the leaves as arrays that may be changed: themselves, or copies where JAX owns them."""
    return [np.require(leaf, np.float32, ["C", "W"]) for leaf in jax.tree.leaves(tree)]


def _pointers(arrays: list[_Floats]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class NativeStep:
    """A `train_step.Step` for rows of one length."""

    def __init__(self, config: MptConfig, length: int, threads: int) -> None:
        assert usable(config, length)
        shape = _Shape(
            config.d_model,
            config.n_layers,
            config.n_heads,
            config.ffn_hidden_size,
            config.vocab_size,
            SPECIAL_TOKENS.index(ENDOFTEXT),
            config.alibi_bias_max,
            config.norm_eps,
        )
        self._length = length
        self._library = _library()
        self._trainer = self._library.trainer_open(ctypes.byref(shape), length, threads)
        weakref.finalize(self, self._library.trainer_close, self._trainer)

    def __call__(
        self,
        weights: Weights,
        state: muon.OptimizerState,
        tokens: ArrayLike,
        target_weights: ArrayLike,
        rate: ArrayLike,
    ) -> tuple[Weights, muon.OptimizerState, float]:
        """Take one step; the weights and the state are changed in place where they are arrays of numpy."""
        tree = jax.tree.structure(weights)
        now, first, second = (_arrays(part) for part in (weights, state.first, state.second))
        loss = self._loss(now, tokens, target_weights)
        step, factor = int(state.step) + 1, float(np.asarray(rate))
        self._library.trainer_update(
            self._trainer, *map(_pointers, (now, first, second)), step, MUON_RATE * factor, ADAM_RATE * factor
        )
        new, *moments = (jax.tree.unflatten(tree, arrays) for arrays in (now, first, second))
        return new, muon.OptimizerState(jnp.int32(step), *moments), loss

    def gradient(self, weights: Weights, tokens: ArrayLike, target_weights: ArrayLike) -> tuple[float, Weights]:
        """Return the mean loss and its gradient, without a step."""
        arrays = _arrays(weights)
        loss = self._loss(arrays, tokens, target_weights)
        gradients = [
            np.ctypeslib.as_array(self._library.trainer_gradient_of(self._trainer, i), array.shape).copy()
            for i, array in enumerate(arrays)
        ]
        return loss, jax.tree.unflatten(jax.tree.structure(weights), gradients)

    def _loss(self, arrays: list[_Floats], tokens: ArrayLike, target_weights: ArrayLike) -> float:
        ids, shares = np.require(tokens, np.int32, "C"), np.require(target_weights, np.float32, "C")
        assert ids.shape == (len(shares), self._length + 1)
        return float(
            self._library.trainer_gradient(
                self._trainer, _pointers(arrays), ids.ctypes.data, shares.ctypes.data, len(ids)
            )
        )
