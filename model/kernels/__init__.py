"""Kernels for the operations that XLA runs slower than the platform could."""
