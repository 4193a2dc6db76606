"""Write the checkpoint in this folder: torch.distributed.checkpoint's, of three ranks, as Composer saves it with FSDP.

python tests/checkpoint/distcp/make.py    (with torch 2.13; the tests need none)
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

RANKS = 3
SHAPES = {
    "wte.weight": (40, 16),
    "blocks.0.norm_1.weight": (16,),
    "blocks.0.attn.Wqkv.weight": (48, 16),
    "blocks.0.attn.out_proj.weight": (16, 16),
    "blocks.0.norm_2.weight": (16,),
    "blocks.0.ffn.up_proj.weight": (64, 16),
    "blocks.0.ffn.down_proj.weight": (16, 64),
    "norm_f.weight": (16,),
}


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what tests/checkpoint/test_distcp.py expects: exact in bfloat16."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 37 + len(name)) % 101 - 50) / 64).reshape(shape).to(torch.bfloat16)


def save(rank: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    model = {}
    for name, shape in SHAPES.items():
        placement = Replicate() if name == "norm_f.weight" else Shard(0)
        full = f"transformer.{name}"
        model[f"model.{full}"] = distribute_tensor(numbers(full, shape), mesh, [placement])
    moments = {"model.transformer.norm_f.weight": {"exp_avg": torch.ones(16), "step": torch.tensor(3)}}
    optimizers = {"DecoupledAdamW": {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}}
    state = {"model": model, "optimizers": optimizers, "timestamp": {"batch": 1}, "callbacks": [("LRMonitor", {})]}
    dcp.save({"state": state, "rng": [("cpu", torch.arange(4))]}, checkpoint_id=Path(__file__).parent)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(save, nprocs=RANKS)
