"""Checkpoints in and out: formats, quantised weights, digests."""
