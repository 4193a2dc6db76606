"""Write an MPT checkpoint that copies: hand-made weights, for measurements of speculative decoding.

    python benchmarks/make_copying_checkpoint.py FOLDER [--size L] [--seed 0]

Random weights do not repeat what they read, and speculation by prompt lookup gains only where models do. These weights
are a model of the same size and shape as `make_checkpoints.py` makes, in which five layers are an induction circuit
(Olsson et al. 2022): at every position it looks for an earlier occurrence of the last three tokens and continues as the
text continued there. Every matrix is full and every product is computed, so that a step takes the time of a step; the
other layers are random and too small to affect the output.

Copies are not always exact: each id that is a multiple of 8 is rewritten, as names are in an edited program or words in
a summary; what follows it is copied again. The share of such ids in a prompt is the share of wrong drafts.

How it works. A token's row of the embedding holds its code (random signs) and the code of what it is rewritten to. With
ALiBi alone there are no positions, so layer 0 first makes one: two heads that compare nothing weight the codes before a
position by distance, w r^d, into a bag of tokens. A position knows the bag of the previous position, (bag - w code) /
r, so that layers 1 to 3 find exactly that position by its bag, and fetch from it the second code of the token 1, then
2, then 3 positions before. Layer 4 compares these codes of the last three tokens with those before every position, and
writes that of the token there over the token's first code, where the output head, tied to the embedding, reads it. As
an id and what it is rewritten to have the same second code, a copy stays aligned where it differs.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_checkpoints import SIZES, config_of

Matrix = npt.NDArray[np.float32]

REWRITTEN = 8  # ids that are multiples of it are rewritten to the id after
COMPARED = 3  # tokens
PLACE_SCORE, TOKEN_SCORE = 60.0, 25.0  # logits that the right place, and each right token, give in attention
STRENGTH = 6.0  # of the code that is written, over the token's own
QUIET = 0.01  # what the other layers add, beside a layer of random weights


class Circuit:
    """The induction circuit's matrices. d: width; hd: of a head. A code has 2 hd signs: two heads carry its halves."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        from model.ops.alibi import alibi_slopes

        self.d, self.n_heads = config["d_model"], config["n_heads"]
        self.hd = hd = self.d // self.n_heads
        names = ("code", "rewritten", "bag", *(f"before_{i + 1}" for i in range(COMPARED)))
        if 2 * len(names) > self.n_heads:
            raise ValueError(f"the circuit takes {2 * len(names)} heads' width, this model has {self.n_heads} heads")
        self.part = {name: 2 * hd * i for i, name in enumerate(names)}  # where it begins in the stream
        self._vocab = config["vocab_size"]
        self._source = np.random.default_rng(seed)
        self._decay = np.exp(-alibi_slopes(self.n_heads)[:2].astype(np.float64))  # r of the steepest heads, by half
        self._bag_square = (1 - self._decay) / (1 + self._decay)  # mean square of a bag's elements, by half

    def wte(self) -> Matrix:
        """Return the embedding [V, d]."""
        codes = self._source.choice(np.array([-1, 1], np.float32), (self._vocab, 2 * self.hd))
        ids = np.arange(self._vocab)
        rows = np.zeros((self._vocab, self.d), np.float32)
        rows[:, self._columns("code")] = codes
        rows[:, self._columns("rewritten")] = codes[np.where(ids % REWRITTEN == 0, ids + 1, ids) % self._vocab]
        return rows

    def write(self, leaves: dict[str, Matrix]) -> None:
        """Put the circuit into the layers that it takes, in place of what their heads did."""
        for layer in range(2 + COMPARED):
            wqkv, out_proj = (leaves[f"blocks/{layer}/attn/{name}/weight"] for name in ("wqkv", "out_proj"))
            for half in range(2):
                if layer == 0:
                    self._gather_bag(wqkv, out_proj, half)
                elif layer <= COMPARED:
                    self._fetch_from_place_before(wqkv, out_proj, half, layer)
            if layer == 1 + COMPARED:
                self._continue_match(wqkv, out_proj)

    def _gather_bag(self, wqkv: Matrix, out_proj: Matrix, half: int) -> None:
        """Compute the mean of the codes so far, weighted by ALiBi alone."""
        q, k, _ = self._rows(half)
        wqkv[q], wqkv[k] = 0, 0
        self._carry(wqkv, out_proj, half, half, "code", "bag", self._deviation(0))

    def _fetch_from_place_before(self, wqkv: Matrix, out_proj: Matrix, half: int, layer: int) -> None:
        """Fetch, from the position whose bag is that of the previous position, its token or the one it has fetched."""
        hd, r, deviation = self.hd, self._decay[half], self._deviation(layer)
        gain = np.sqrt(PLACE_SCORE * deviation**2 / (np.sqrt(hd) * self._bag_square[half]))
        q, k, _ = self._rows(half)
        wqkv[q], wqkv[k] = 0, 0
        wqkv[q, self._columns("bag", half)] = gain / r * np.eye(hd)
        wqkv[q, self._columns("code", half)] = -gain * (1 - r) / r * np.eye(hd)
        wqkv[k, self._columns("bag", half)] = gain * np.eye(hd)
        source = "rewritten" if layer == 1 else f"before_{layer - 1}"
        self._carry(wqkv, out_proj, half, half, source, f"before_{layer}", deviation)

    def _continue_match(self, wqkv: Matrix, out_proj: Matrix) -> None:
        """Attend with two heads of flat slopes to what followed the last tokens before; fetch its rewritten code."""
        hd, deviation = self.hd, self._deviation(1 + COMPARED)
        gain = np.sqrt(TOKEN_SCORE * deviation**2 / np.sqrt(hd))
        # Each token's code in its own order and with its own signs, so that one head can compare all at once.
        mixers = [self._signed_permutation() for _ in range(COMPARED)]
        for half in range(2):
            head = self.n_heads - 2 + half
            q, k, _ = self._rows(head)
            wqkv[q], wqkv[k] = 0, 0
            for i, mixer in enumerate(mixers):
                wqkv[q, self._columns(f"before_{i}" if i else "rewritten", 0)] = gain * mixer
                wqkv[k, self._columns(f"before_{i + 1}", 0)] = gain * mixer
            self._carry(wqkv, out_proj, head, half, "rewritten", "code", STRENGTH * deviation)

    def _signed_permutation(self) -> Matrix:
        """Return the rotation [hd, hd]."""
        signs = self._source.choice(np.array([-1, 1], np.float32), self.hd)
        return np.eye(self.hd, dtype=np.float32)[self._source.permutation(self.hd)] * signs

    def _carry(
        self, wqkv: Matrix, out_proj: Matrix, head: int, half: int, source: str, target: str, gain: float
    ) -> None:
        """Copy one half of a part of the stream to the same half of another with one head."""
        _, _, v = self._rows(head)
        own = slice(head * self.hd, (head + 1) * self.hd)
        wqkv[v], out_proj[:, own] = 0, 0
        wqkv[v, self._columns(source, half)] = np.eye(self.hd)
        out_proj[self._columns(target, half), own] = gain * np.eye(self.hd)

    def _deviation(self, layer: int) -> float:
        """Return the standard deviation of the stream before a layer, by which its norm divides: nearly constant."""
        squares = 4 + (self._bag_square.sum() if layer else 0) + 2 * max(0, layer - 1)
        return float(np.sqrt(squares * self.hd / self.d))

    def _columns(self, name: str, half: int | None = None) -> slice:
        begin = self.part[name] + (half or 0) * self.hd
        return slice(begin, begin + (2 if half is None else 1) * self.hd)

    def _rows(self, head: int) -> tuple[slice, slice, slice]:
        """Return the rows of the fused projection for a head's query, key and value."""
        begins = (head * self.hd + part * self.d for part in range(3))
        q, k, v = (slice(begin, begin + self.hd) for begin in begins)
        return q, k, v


def copying_leaves(config: dict[str, Any], seed: int) -> dict[str, Matrix]:
    """Return every parameter by its path in `model.params.weights.Weights`, float32."""
    from model.config.mpt_config import MptConfig
    from model.params.weights import weight_specs

    circuit = Circuit(config, seed)
    source = np.random.default_rng(seed + 1)
    leaves: dict[str, Matrix] = {}
    for spec in weight_specs(MptConfig.from_dict(config)):
        if spec.initial == "ones":
            leaves[spec.path] = np.ones(spec.shape, np.float32)
        elif spec.path != "wte":
            adds = spec.path.endswith(("out_proj/weight", "down_proj/weight"))
            leaves[spec.path] = source.standard_normal(spec.shape, np.float32) * 0.02 * (QUIET if adds else 1)
    leaves["wte"] = circuit.wte()
    circuit.write(leaves)
    return leaves


def make(size: str, folder: Path, seed: int) -> None:
    import jax.numpy as jnp

    from model.checkpoint.save import save_checkpoint
    from model.config.mpt_config import MptConfig
    from model.params.weights import assemble_weights

    config = config_of(size)
    leaves = {path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in copying_leaves(config, seed).items()}
    save_checkpoint(assemble_weights(MptConfig.from_dict(config), leaves), config, folder, max_shard_bytes=2 * 10**9)
    print(f"{folder}: {sum(leaf.size for leaf in leaves.values()) / 1e6:.1f} million parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="L")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.size, options.folder, options.seed)


if __name__ == "__main__":
    main()
