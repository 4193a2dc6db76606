"""Native kernels for CPUs: C++ called through `jax.ffi` on XLA's threads, selected by instruction set at run time."""
