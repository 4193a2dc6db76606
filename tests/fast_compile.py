"""How tests have XLA compile what they run a few times only: most of their time would go into making it fast."""

FAST_COMPILE = {  # jax.jit's options
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,  # half of the time that is left without the optimisations above
    "xla_cpu_parallel_codegen_split_count": 1,
}
FAST_COMPILE_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in FAST_COMPILE.items())  # in XLA_FLAGS
