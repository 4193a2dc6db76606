"""The settings and the vocabulary of the small engine that these tests run."""

import string

from mpt_serve.engine import EngineConfig

CHARACTERS = string.digits + string.ascii_lowercase + string.ascii_uppercase + '{}[]:,". \\+-#!?é=<>()/*&_@€~'
END = 89
VOCAB_LIMIT = 90  # of 96 ids: the rest is padding, as in published checkpoints

# Without drafts from past outputs: tests act on requests that run, and equal ones would end in a few steps.
SETTINGS = EngineConfig(max_num_seqs=4, max_num_batched_tokens=16, block_size=4, num_blocks=64, past_output_tokens=None)
