"""`mpt-serve convert`: a checkpoint in another format."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(help="a checkpoint folder, an adapter's folder, a GGUF or Composer file or a Hugging Face id"),
    ],
    target: Annotated[str, typer.Argument(help="the folder to write, or the GGUF file")],
    to: Annotated[
        Literal["llm-foundry", "transformers", "orbax", "gguf"] | None,
        typer.Option(help="the format; gguf for a target that ends in .gguf, else llm-foundry"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="of the numbers: bfloat16, float16, float32; for GGUF f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0."
            " By default as they are; for GGUF f16",
        ),
    ] = None,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="leave the tokenizer out")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the checkpoint that the target holds already")
    ] = False,
    max_divergence: Annotated[
        float | None,
        typer.Option(
            min=0, help="how far the logits may be from the source's: mean KL in nats. By default by the type"
        ),
    ] = None,
) -> None:
    """Write a checkpoint in another format, and compare its logits with the source's.

    What was interrupted goes on where it ended.
    """
    from mpt_serve.conversion.convert import convert as convert_checkpoint

    with contextlib.nullcontext() if sys.stderr.isatty() else _progress_lines():
        done = convert_checkpoint(source, target, to, kind, not no_tokenizer, overwrite, max_divergence)
    found = done.comparison
    same = "equal in every bit" if found.same else f"mean KL {found.divergence:.2g} nats"
    print(f"wrote {done.path}; logits: {same}, the same most likely token at {found.same_token:.1%} of the positions")


@contextlib.contextmanager
def _progress_lines() -> Iterator[None]:
    """Write to stderr what is logged of the progress, as there is no terminal for bars."""
    logger, handler = logging.getLogger("model.checkpoint.load_progress"), logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
