"""How far Generators are with their start, by the lines that they log.

The lines are the only channel: people read them where there is no terminal, and they reach whoever collects logs.
"""

import re
from dataclasses import dataclass

__all__ = ["StartProgress"]

_READ = re.compile(r"Reading the checkpoint: (\d+) of (\d+) MiB")
_LOADED = re.compile(r"weights: (\d+) of (\d+) MiB read")
_WEIGHTS = re.compile(r"weights: (\d+) MiB")
_COMPILED = re.compile(r"programs: (\d+) of (\d+) compiled")
_ALL_READY = re.compile(r"(compiled|loaded) (\d+) programs in ([\d.]+) s")
_CACHE = re.compile(r"KV cache: (\d+) tokens in \d+ blocks of \d+ \((\d+) MiB\); .* requests of (\d+) tokens")


@dataclass
class StartProgress:
    """What one Generator has done. Sizes are in MiB; a total of 0 is not known yet."""

    read: int = 0  # of the checkpoint, to know what it holds: where it is the first time
    checkpoint: int = 0
    loaded: int = 0
    weights: int = 0
    compiled: int = 0
    programs: int = 0
    compile_s: float = 0.0
    made: str = "compiled"  # how there came to be programs: 'loaded' where they were stored
    cache_tokens: int = 0
    cache_size: int = 0
    context: int = 0

    def take(self, message: str) -> None:
        """Take note of a logged message; most say nothing of the start."""
        if match := _READ.fullmatch(message):
            self.read, self.checkpoint = int(match[1]), int(match[2])
        elif match := _LOADED.fullmatch(message):
            self.loaded, self.weights = int(match[1]), int(match[2])
        elif match := _WEIGHTS.fullmatch(message):
            self.loaded = self.weights = int(match[1])
        elif match := _COMPILED.fullmatch(message):
            self.compiled, self.programs = int(match[1]), int(match[2])
        elif match := _ALL_READY.fullmatch(message):
            self.made = match[1]
            self.compiled = self.programs = int(match[2])
            self.compile_s = float(match[3])
        elif match := _CACHE.fullmatch(message):
            self.cache_tokens, self.cache_size, self.context = int(match[1]), int(match[2]), int(match[3])

    def summary(self) -> str:
        """Return what was found, as one line."""
        parts = [f"weights {self.weights} MiB"] if self.weights else []
        if self.cache_tokens:
            parts.append(f"KV cache {self.cache_tokens} tokens ({self.cache_size} MiB)")
            parts.append(f"context {self.context} tokens")
        if self.programs:
            parts.append(f"{self.programs} programs {self.made} in {self.compile_s:.1f} s")
        return ", ".join(parts)
