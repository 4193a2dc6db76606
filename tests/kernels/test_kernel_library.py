"""Which kernels are used, and what happens without them."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import model.kernels.cpu
from model.kernels.cpu import library as module
from model.kernels.cpu.library import VARIABLE, kernel_library

PROGRAM = """
import jax, logging
logging.basicConfig()
from model import MptConfig
from model.kernel_selection import weight_format
from model.kernels.cpu.library import kernel_library
from model.layers.forward import forward
from model.checkpoint.pack import pack_weights
from model.params.weights import init_weights

config = MptConfig(d_model=32, n_heads=2, n_layers=1, vocab_size=50)
weights = init_weights(config, jax.random.key(0))
packed = pack_weights(weights, config, weight_format(weights.wte.devices(), "int8"))
logits = forward(packed, config, jax.numpy.arange(6)[None])
library = kernel_library()
print(library and library.instruction_set, *logits[0, -1, :4].tolist())
"""


def run(kernels: str) -> tuple[str, list[float]]:
    environment = {**os.environ, VARIABLE: kernels, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    name, *logits = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    return name, [float(x) for x in logits]


@pytest.mark.slow
def test_an_instruction_set_can_be_chosen_and_all_agree():
    library = kernel_library()
    if library is None:
        pytest.skip("kernels were not built")
    without = run("none")
    assert without[0] == "None"
    for name in (library.instruction_sets[0], library.instruction_sets[-1]):
        chosen, logits = run(name)
        assert chosen == name
        assert logits == pytest.approx(without[1], abs=1e-4)


def test_an_unknown_instruction_set_is_refused(library):
    with pytest.raises(ValueError, match=f"no CPU kernels for 'mmx'; it has {library.instruction_sets[0]}"):
        library.use("mmx")


@pytest.fixture
def fresh():
    """Search for the library again, and once more after the test."""
    kernel_library.cache_clear()
    yield
    kernel_library.cache_clear()


def test_missing_kernels_are_reported_once(fresh, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(model.kernels.cpu, "__path__", [str(tmp_path)])
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        assert kernel_library() is None
        assert kernel_library() is None
    assert [r.message for r in caplog.records if "Without its native CPU kernels" in r.message] == [
        "Without its native CPU kernels mpt_serve computes through XLA, several times slower: they were not built; "
        "install mpt-serve again with a C++17 compiler"
    ]


def test_a_library_that_does_not_load_is_reported(fresh, monkeypatch, caplog, tmp_path):
    (tmp_path / module.FILE_NAME).write_bytes(b"not a library")
    monkeypatch.setattr(model.kernels.cpu, "__path__", [str(tmp_path)])
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING):
        assert kernel_library() is None
    assert "does not load" in caplog.text
    assert "install mpt-serve again" in caplog.text


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump reads the library")
def test_every_instruction_set_keeps_to_its_own_functions(library):
    """A function shared by several instruction sets must run on all of them: the linker keeps but one.

    Clones of a function for instruction sets are for them alone: the loader chooses.
    """
    path = next(p for folder in model.kernels.cpu.__path__ if (p := Path(folder, module.FILE_NAME)).is_file())
    code = subprocess.run(["objdump", "-d", "-C", path], capture_output=True, text=True, check=True).stdout
    functions = re.split(r"\n\n(?=[0-9a-f]+ <)", code)
    assert len(functions) > 100
    wide = [f.split(">:")[0] for f in functions if re.search(r"%[zy]mm", f)]
    assert [name for name in wide if not re.search(r"mpt::avx(512|2)|\[clone \.avx(512f|2)\]", name)] == []
