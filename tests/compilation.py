"""How XLA compiles in tests.

Most programs of the tests run a few times only, and most of the time would go into making them fast. Servers that tests
start, and whoever sets XLA_FLAGS (`XLA_FLAGS= scripts/test` will do), compile as users do.
"""

import os
from importlib.metadata import version

# jaxlib 0.10 has the option; 0.12 refuses to begin with one that it does not know.
_HAS_EMITTERS_OPTION = tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10)
_FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# jax.jit's options for the programs that run so often that making them fast pays.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if _HAS_EMITTERS_OPTION:
    _FAST["xla_cpu_use_fusion_emitters"] = False  # half of the time that is left without the optimisations above
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True


def compile_fast() -> None:
    """Have XLA compile fast in this process and its children, unless XLA_FLAGS is set. Before JAX begins to work."""
    os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={str(value).lower()}" for name, value in _FAST.items()))


def with_devices(count: int) -> dict[str, str]:
    """Return the environment of a child process whose JAX has `count` virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def as_users_do() -> dict[str, str]:
    """Return the environment without `compile_fast`."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
