"""Every golden case, computed by llm-foundry's own code, through the full forward and through the paged cache."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from paged_run import PagedRun

from model.checkpoint.load import load_weights
from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.kernel_selection import select_kernels
from model.kernels.cpu.library import kernels_available
from model.layers.forward import forward
from model.params.weight_format import WeightFormat
from model.params.weights import Weights

GOLDEN = Path(__file__).parents[1] / "golden"
# Refused by name, with the key that the refusal must name.
REFUSED = {
    "rope-dail-xpos": "attn_config.rope_dail_config.type",
    "head-dim-24": "head_dim",
    "head-dim-24-rope-hf": "head_dim",
    "head-dim-24-rope-dail": "head_dim",
    "moe-torch-dmoe-mlp": "ffn_config.ffn_type",
    "moe-torch-dmoe-glu": "ffn_config.ffn_type",
    "override-reuse-kv": "block_overrides",
    "override-reuse-kv-alibi": "block_overrides",
    "override-reuse-kv-x": "block_overrides",
    "override-temperature-tuning": "block_overrides",
    "override-window-nope": "block_overrides",
}
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/golden.npz") if p.parent.name not in REFUSED)
# Its frequencies follow the length of each whole forward pass, so no cached run is equal to it.
CACHED = [case for case in CASES if case != "rope-hf-dynamic-beyond"]
TOLERANCE = 2e-4


@cache
def case(name: str) -> tuple[MptConfig, Weights, dict[str, np.ndarray]]:
    folder = GOLDEN / name
    config = MptConfig.from_file(folder)
    return config, load_weights(folder, config, dtype=np.float32), dict(np.load(folder / "golden.npz"))


def close(found: np.ndarray, golden: np.ndarray) -> None:
    assert np.abs(found - golden).max() <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_full_forward(name: str) -> None:
    config, weights, golden = case(name)
    logits = jax.jit(forward, static_argnums=1)(weights, config, golden["ids"][None])
    close(np.asarray(logits[0]), golden["logits"])


def representatives() -> set[str]:
    """Return one case of each kind of positions, and one of each kind of attention, as their configurations say."""
    kinds: dict[str, str] = {}
    for name in CACHED:
        config = json.loads((GOLDEN / name / "config.json").read_text(encoding="utf-8"))
        attention = config.get("attn_config", {})
        for key, value in [*attention.items(), ("learned_pos_emb", config.get("learned_pos_emb"))]:
            if isinstance(value, bool | str):
                kinds.setdefault(f"{key}: {value}", name)
    return set(kinds.values())


def with_kernels() -> Iterator[ParameterSet]:
    """Yield each case with the CPU kernels, which are shipped, and those of `representatives` with XLA as well."""
    chosen = representatives()
    for name in CACHED:
        yield pytest.param(name, "auto")
        yield pytest.param(name, "xla", marks=() if name in chosen else pytest.mark.exhaustive)


@pytest.mark.parametrize(("name", "kernels"), list(with_kernels()))
def test_paged_cache(name: str, kernels: str) -> None:
    """One program per case: prefill then decode, every chunk size, beside unrelated rows, and greedy ids."""
    config, weights, golden = case(name)
    if kernels == "auto":
        if not kernels_available():
            pytest.skip("kernels were not built")
        weights = pack_weights(weights, config, WeightFormat(packed=True))
    selected = select_kernels(weights, config, np.float32, kernels)
    ids, logits, prompt, greedy = golden["ids"], golden["logits"], golden["prompt"], golden["greedy"]
    T = max(len(ids), len(prompt) + len(greedy))
    run = PagedRun(weights, config, 3, T, T + 30, selected.attention, selected.whole_step)

    close(run.step([(0, 0, ids)])[0], logits[-1])
    for chunk in range(1, len(ids)):
        for first in range(0, len(ids), chunk):
            part = ids[first : first + chunk]
            close(run.step([(0, first, part)])[0], logits[first + len(part) - 1])
            if len(ids) > 64 and chunk > 1 and first:  # long cases: the first two chunks of each size tell all
                break

    other = np.random.default_rng(3).integers(0, config.vocab_size, T)
    found = _greedy_beside_others(run, list(prompt), list(other), len(greedy))
    assert found == list(greedy)


def _greedy_beside_others(run: PagedRun, prompt: list[int], other: list[int], new: int) -> list[int]:
    """Return greedy ids of row 1: prefilled in parts and decoded while row 2 prefills in chunks and row 0 decodes."""
    half = max(1, len(prompt) // 2)
    run.step([(1, 0, prompt[:half]), (0, 0, other[:5])])
    out = [int(run.step([(1, half, prompt[half:]), (0, 5, other[5:6])])[1].argmax())]
    for i in range(1, new):
        chunks = [(1, len(prompt) + i - 1, out[-1:]), (0, 5 + i, other[5 + i : 6 + i])]
        if 3 * i < len(other) - 3:
            chunks.append((2, 3 * (i - 1), other[3 * (i - 1) : 3 * i]))
        out.append(int(run.step([c for c in chunks if c[2]])[1].argmax()))
    return out


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        MptConfig.from_file(GOLDEN / name)
    assert f"'{REFUSED[name]}'" in str(refusal.value)
