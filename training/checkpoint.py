"""Save and restore the whole state of a run, so that a resumed run continues exactly where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.params.weights import Weights
from training.muon import OptimizerState


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimiser steps, tokens seen (padding left out), seconds of training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save(path: Path, weights: Weights, state: OptimizerState, progress: Progress) -> None:
    """Write one .npz file; an interrupted write leaves the previous file in place."""
    leaves = jax.tree.leaves((weights, state))
    arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    partial = path.with_suffix(".partial.npz")
    arrays |= {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
    np.savez(partial, **arrays)
    partial.replace(path)


def restore(path: Path, weights: Weights, state: OptimizerState) -> tuple[Weights, OptimizerState, Progress]:
    """Read what `save` wrote into trees shaped like the given ones. Raises ValueError for another model's file."""
    like, tree = jax.tree.flatten((weights, state))
    with np.load(path) as file:
        leaves = [file[f"leaf_{i}"] for i in range(len(like))]
        progress = Progress(int(file["step"]), int(file["tokens"]), float(file["seconds"]))
    for leaf, expected in zip(leaves, like, strict=True):
        if leaf.shape != expected.shape:
            raise ValueError(f"{path.name} holds an array {leaf.shape} where the model has {expected.shape}")
    weights, state = jax.tree.unflatten(tree, leaves)
    return weights, state, progress
