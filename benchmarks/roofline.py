"""Measure what this machine's memory and arithmetic units deliver: roofline.cc, compiled at first use.

    python benchmarks/roofline.py [--threads 2]

prints JSON: read_gb_s in GB/s, and billions of operations per second (a multiply and an add are two) of register-only
loops, one per precision and instruction set; median and best of the repetitions.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("roofline.cc")
COMPILE = ("-std=c++20", "-O2", "-march=native", "-pthread")


@dataclass(frozen=True)
class Limits:
    """The best rates seen: reading in bytes per second, and arithmetic in operations per second by precision."""

    read: float
    float32: float
    bfloat16: float
    int8: float

    @classmethod
    def of(cls, rates: dict[str, float]) -> Self:
        """Return the limits from the result of `measure`; a precision without instructions uses the next wider one."""

        def best(kind: str) -> float:
            return max((1e9 * rate for name, rate in rates.items() if name.startswith(kind)), default=0.0)

        float32 = best("float32_fma")
        bfloat16 = max(float32, best("bfloat16_dot"))
        return cls(best("read_gb_s"), float32, bfloat16, max(bfloat16, best("int8_dot")))

    def shortest(self, nbytes: float, operations: float, precision: str) -> tuple[float, str]:
        """Return the least seconds of a step that reads `nbytes` and does `operations`, and which one bounds it."""
        reading, computing = nbytes / self.read, operations / getattr(self, precision)
        return (reading, "memory") if reading >= computing else (computing, "arithmetic")


def measure(threads: int, mebibytes: int = 1024, repetitions: int = 7) -> dict[str, float]:
    """Run the loops on the first `threads` cores that this process may use; return the best rates by loop name."""
    return {name: rate["best"] for name, rate in run(threads, mebibytes, repetitions).items()}


def run(threads: int, mebibytes: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Return the median and the best of several runs of `measure`."""
    command = [str(_binary()), str(threads), str(mebibytes), str(repetitions)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=lambda: _bind(threads))
    figures: dict[str, dict[str, float]] = json.loads(result.stdout)
    del figures["threads"]
    return figures


def _bind(threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _binary() -> Path:
    """Return the compiled loops, cached in the user's cache folder by hash of source and machine features."""
    compiler = os.environ.get("CXX", "c++")
    target = subprocess.run(
        [compiler, *COMPILE, "-E", "-dM", "-x", "c++", os.devnull], check=True, capture_output=True
    ).stdout
    name = hashlib.sha256(SOURCE.read_bytes() + target).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpt-serve" / "roofline"
    binary = folder / name
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / name
            subprocess.run([compiler, *COMPILE, str(SOURCE), "-o", str(fresh)], check=True)
            fresh.replace(binary)
    return binary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mebibytes", type=int, default=1024, help="read at once (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    print(json.dumps(run(options.threads, options.mebibytes, options.repetitions), indent=2))


if __name__ == "__main__":
    main()
