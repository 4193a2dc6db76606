"""Loading needs the memory of the weights and little more: measured in a separate process."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import TINY
from torch_writer import FakeTensor, View, pickled_with_python, write_sparse_zip, write_zip

from model.config.mpt_config import MptConfig
from model.params.weights import weight_specs

BIG = TINY | {"d_model": 1024, "n_heads": 8, "n_layers": 10, "vocab_size": 50432}  # 178 million parameters
MEASURE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from model.checkpoint.load import load_weights
from model.config.mpt_config import MptConfig
from model.params.weight_format import WeightFormat
from model.params.weights import weight_bytes

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

jax.device_put(np.zeros(8)).block_until_ready()
before = status("VmRSS:")
format = WeightFormat(sys.argv[3], packed=sys.argv[3] != "none")
weights = load_weights(sys.argv[1], MptConfig.from_file(sys.argv[1]), sys.argv[2] or None, format=format)
print(status("VmHWM:") - before, weight_bytes(weights))
"""


def write_safetensors(folder: Path) -> None:
    header, offset = {}, 0
    for spec in weight_specs(MptConfig.from_dict(BIG)):
        size = 2 * spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1)
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + offset)  # zeros that take no disk


def write_bin(folder: Path) -> None:
    state, storages = {}, {}
    for spec in weight_specs(MptConfig.from_dict(BIG)):
        shape = (*spec.shape, 1)[:2]
        size = shape[0] * shape[1]
        strides = (shape[1], 1)[: len(spec.shape)]
        state[spec.name] = View(spec.path, "float16", size, 0, spec.shape, strides)
        storages[spec.path] = bytes(2 * size)
    write_zip(folder / "pytorch_model.bin", state, storages)


def write_composer(folder: Path) -> None:
    """Write a checkpoint of training in float32, whose optimizer has twice the weights' bytes."""
    shapes = {f"model.{spec.name}": spec.shape for spec in weight_specs(MptConfig.from_dict(BIG))}
    model = {name: FakeTensor(name, shape) for name, shape in shapes.items()}
    moments = {
        name: {kind: FakeTensor(f"{name}.{kind}", shape) for kind in ("exp_avg", "exp_avg_sq")}
        for name, shape in shapes.items()
    }
    state = {"state": {"optimizers": {"DecoupledAdamW": {"state": moments}}, "model": model}, "rng": list(range(5000))}
    keys = list(shapes.items())
    keys += [(f"{name}.{kind}", shape) for name, shape in shapes.items() for kind in moments[name]]
    sizes = {key: 4 * math.prod(shape) for key, shape in keys}
    write_sparse_zip(folder / "ep0-ba1-rank0.pt", pickled_with_python(state), sizes)


def peak_and_weights(folder: Path, dtype: str, quantization: str) -> tuple[int, int]:
    """Return the bytes of memory that loading takes at its peak, and that the weights take."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    (folder / "config.json").write_text(json.dumps(BIG))
    command = [sys.executable, "-c", MEASURE, str(folder), dtype, quantization]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    peak, loaded = map(int, run.stdout.split())
    return peak, loaded


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_peak_memory(tmp_path: Path, kind: str) -> None:
    (write_safetensors if kind == "safetensors" else write_bin)(tmp_path)
    for dtype, size in (("", 2), ("float32", 4)):
        peak, loaded = peak_and_weights(tmp_path, dtype, "none")
        assert loaded > size * 170_000_000
        assert 0.9 < peak / loaded < 1.1, f"{dtype or 'as stored'}: peak {peak}, weights {loaded}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
def test_peak_memory_of_a_checkpoint_of_training(tmp_path: Path) -> None:
    write_composer(tmp_path)
    peak, loaded = peak_and_weights(tmp_path, "bfloat16", "none")
    assert (tmp_path / "ep0-ba1-rank0.pt").stat().st_size > 6 * loaded
    assert peak < 1.1 * loaded, f"peak {peak}, weights in bfloat16 {loaded}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from Linux's /proc")
@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_peak_memory_while_quantising(tmp_path: Path, quantization: str, bits: int) -> None:
    write_safetensors(tmp_path)
    peak, loaded = peak_and_weights(tmp_path, "", quantization)
    assert loaded > bits / 8 * 170_000_000
    embedding = 2 * BIG["vocab_size"] * BIG["d_model"]  # bytes of the largest tensor, in memory beside its packed form
    assert peak < loaded + embedding + 60e6  # what the threads hold
