"""Run by test_weight_sharding.py on eight virtual CPU devices: loads a checkpoint over a mesh and compares numbers.

Arguments: for each run a checkpoint folder and the mesh's fsdp and tensor sizes. Prints a JSON object for each run.
"""

import json
import sys

import jax
import numpy as np

from model.layers.forward import forward
from model.layers.paged_forward import forward_step, lm_logits
from model.params.kv_cache import init_kv_cache
from model.params.sharding import cache_sharding, make_mesh
from model.params.step_batch import StepBatch
from model.params.weights import leaf_paths
from model.pretrained import mpt_from_pretrained

TOKENS = np.arange(1, 25, dtype=np.int32)


def step_logits(weights, config, cache) -> np.ndarray:
    """Return logits of the last token: a prefill of all others, then one decode step, through the paged cache."""
    step = jax.jit(forward_step, static_argnums=1)
    for begin, end in ((0, len(TOKENS) - 1), (len(TOKENS) - 1, len(TOKENS))):
        positions = np.arange(begin, end, dtype=np.int32)
        batch = StepBatch(
            tokens=TOKENS[begin:end],
            positions=positions,
            slots=positions,
            block_tables=np.arange(4, dtype=np.int32)[None],
            query_start=np.zeros(1, np.int32),
            query_len=np.array([end - begin], np.int32),
            context_len=np.array([end], np.int32),
            num_decode=np.array(end - begin == 1, np.int32),
        )
        hidden_states, cache = step(weights, config, cache, batch)
    return np.asarray(lm_logits(weights, config, hidden_states[-1:]))[0]


def main(folder: str, fsdp: int, tensor: int) -> None:
    mesh = make_mesh(tensor=tensor, fsdp=fsdp)
    alone, config = mpt_from_pretrained(folder, device="cpu")
    shared, _ = mpt_from_pretrained(folder, mesh=mesh)
    run = jax.jit(forward, static_argnums=1)
    expected = np.asarray(run(alone, config, TOKENS[None]))[0]
    got = np.asarray(run(shared, config, TOKENS[None]))[0]
    cache = init_kv_cache(config, 4, 8, "float32", cache_sharding(config, mesh))
    local_shapes = {path: leaf.addressable_shards[0].data.shape for path, leaf in leaf_paths(shared).items()}
    report = {
        "scale": float(np.abs(expected).max()),
        "forward": float(np.abs(got - expected).max()),
        "step": float(np.abs(step_logits(shared, config, cache) - expected[-1]).max()),
        "cache": cache.layers[0].keys.addressable_shards[0].data.shape,
        "local_shapes": local_shapes,
    }
    print(json.dumps(report))


arguments = iter(sys.argv[1:])
for folder, fsdp, tensor in zip(arguments, arguments, arguments, strict=True):
    main(folder, int(fsdp), int(tensor))
