"""Native kernels for CPUs: C++ behind `jax.ffi`, on XLA's own threads, chosen at run time by instruction set."""
