"""The kernels on a processor that this machine does not have: built by a cross compiler, run by an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from model.kernels.cpu import library

SOURCES = Path(library.__file__).parent / "src"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_arm_computes_what_plain_loops_compute(tmp_path: Path) -> None:
    program = tmp_path / "selftest"
    flags = ["-std=c++17", "-O2", "-ffp-contract=fast", "-static", "-DMPT_ISA=portable", "-DMPT_CPU_FEATURES="]
    sources = [Path(__file__).with_name("selftest.cc"), SOURCES / "parallel.cc"]
    subprocess.run([COMPILER, *flags, f"-I{SOURCES}", *sources, "-o", program, "-lpthread"], check=True)
    result = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
