"""A progress bar for a batch of prompts."""

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing

from tqdm import tqdm

from mpt_serve.llm.completion import Piece


def with_progress(pieces: Generator[Piece], choices: Sequence[int]) -> Generator[Piece]:
    """Yield the pieces, with a bar on stderr that shows finished prompts, and generated tokens per second.

    choices: number of choices of each prompt.
    """
    unfinished, tokens, begin = list(choices), 0, time.monotonic()
    # miniters: the bar is also updated while no prompt is finished.
    bar = tqdm(total=len(choices), desc="Generating", unit=" prompts", miniters=0, file=sys.stderr)
    with closing(pieces), bar:
        for piece in pieces:
            tokens += len(piece.token_ids)
            ends = piece.finish_reason is not None
            unfinished[piece.prompt_index] -= ends
            bar.set_postfix_str(f"{tokens / max(time.monotonic() - begin, 1e-9):.1f} tokens/s", refresh=False)
            bar.update(int(ends and unfinished[piece.prompt_index] == 0))
            yield piece
