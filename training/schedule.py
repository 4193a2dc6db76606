"""The settings that change over a run, as functions of its progress from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

MUON_RATE = 0.02
ADAM_RATE = 3e-3
WARMUP_STEPS = 50
DECAY_FROM = 0.55
COPY_UNTIL = 0.4

# Tokens of a step: few, because on a small budget more updates are worth more than larger ones. A conversation with
# tools has up to 500 tokens, most of them the tools.
ROWS, LENGTH = 4, 512


@dataclass(frozen=True)
class Stage:
    """Settings of one step: the learning rate as a factor of both rates, and whether the mix is the copying one."""

    rate: float
    copy_phase: bool


def stage_at(progress: float, step: int, copy_until: float = COPY_UNTIL) -> Stage:
    """Return a constant rate after a short warm-up, then linear decay to zero over the last 45 %.

    copy_until: where the copying mix ends; 0 for a run that begins with weights that copy already.
    """
    decay = min(1.0, (1.0 - progress) / (1.0 - DECAY_FROM))
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return Stage(max(0.0, decay) * warmup, progress < copy_until)
