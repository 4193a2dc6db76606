"""How tests have XLA compile what they run a few times only: most of their time would go into making it fast."""

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # jax.jit's options
FAST_COMPILE_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # in XLA_FLAGS
