"""Run by test_engine.py in a process with two host devices: an engine on a mesh of both, and one on the first."""

import tempfile

import jax
from jax.sharding import Mesh

from model.checkpoint.save import save_checkpoint
from model.config.mpt_config import MptConfig
from model.params.sharding import make_mesh
from model.params.weights import init_weights
from mpt_serve.engine import EngineConfig, SamplingParams
from mpt_serve.llm import LLM, Completion

CONFIG = {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64}
SETTINGS = EngineConfig(max_num_seqs=2, max_num_batched_tokens=16, block_size=8, pre_compile=False)


def completions(folder: str, mesh: Mesh | None) -> list[Completion]:
    with LLM.from_pretrained(folder, SETTINGS, mesh=mesh) as llm:
        return llm.generate([[1, 2, 3], [5] * 20], SamplingParams(max_tokens=10, seed=1))


def main() -> None:
    assert len(jax.devices()) == 2
    with tempfile.TemporaryDirectory() as folder:
        weights = init_weights(MptConfig.from_dict(CONFIG), jax.random.key(0), scale=0.3)
        save_checkpoint(weights, CONFIG, folder)
        alone, together = completions(folder, None), completions(folder, make_mesh(tensor=2))
    assert alone == together, (alone, together)


if __name__ == "__main__":
    main()
