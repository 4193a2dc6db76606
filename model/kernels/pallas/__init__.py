"""Paged attention with ALiBi as Pallas kernels: `tpu_attention` (Mosaic) and `gpu_attention` (Triton).

Both implement `model.layers.attention.paged_attention`, the readable reference. JAX's own kernels (paged, ragged
paged, splash attention) take no bias that depends on positions; its flash attention takes a whole [T, S] matrix of it.
"""
