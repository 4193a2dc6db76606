"""The arrays of a model: weights, packed matrices, the KV cache, and how they are sharded."""
