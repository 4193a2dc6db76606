"""Kernels for the operations that XLA alone runs below what a platform can do."""
