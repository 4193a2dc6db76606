"""Checkpoints in other formats, with their tokenizers, and the comparison of what came out with what went in."""
