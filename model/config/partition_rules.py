"""The rules that lay every parameter of an MPT over a mesh of axes `fsdp` and `tensor`.

They depend on the paths of the parameters alone (`model.params.weights`), not on any size, so they are plain data and
belong below the parameters: `MptConfig.get_partition_rules` can return them without importing upward.
"""

from jax.sharding import PartitionSpec

PartitionRules = tuple[tuple[str, PartitionSpec], ...]


def get_partition_rules(fsdp: bool = True) -> PartitionRules:
    """Return rules (regular expression, PartitionSpec) on paths such as blocks/0/attn/wqkv/weight.

    The first rule that matches a path applies. Weights are [out, in]. With `fsdp` False that axis stays unused, and
    each of its replicas holds whole weights.
    """
    shard = "fsdp" if fsdp else None
    columns, rows = PartitionSpec("tensor", shard), PartitionSpec(shard, "tensor")
    return (
        (r"(^|/)(wte|lm_head)$", columns),  # [V, d]: vocabulary over tensor
        (r"(^|/)wpe$", PartitionSpec(None, shard)),
        (r"(wqkv|up_proj|gate_proj)/weight$", columns),
        (r"(wqkv|up_proj|gate_proj)/bias$", PartitionSpec("tensor")),
        (r"(out_proj|down_proj)/weight$", rows),
        (r"(out_proj|down_proj)/bias$", PartitionSpec()),
        (r"(norm_1|norm_2|norm_f|q_norm|k_norm)/(weight|bias)$", PartitionSpec()),
    )
