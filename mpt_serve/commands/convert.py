"""`mpt-serve convert`: a checkpoint in another format."""

from typing import Annotated, Literal

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        str, typer.Argument(help="a checkpoint folder, an adapter's folder, a GGUF file or a Hugging Face id")
    ],
    target: Annotated[str, typer.Argument(help="the folder to write, or the GGUF file")],
    to: Annotated[
        Literal["llm-foundry", "transformers", "gguf"] | None,
        typer.Option(help="the format; gguf for a target that ends in .gguf, else llm-foundry"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="of the numbers: bfloat16, float16, float32; for GGUF f32, f16, bf16, q8_0, q4_0."
            " By default as they are; for GGUF f16",
        ),
    ] = None,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="leave the tokenizer out")] = False,
) -> None:
    """Write a checkpoint in another format."""
    from mpt_serve.convert import convert as convert_checkpoint

    print(f"wrote {convert_checkpoint(source, target, to, kind, not no_tokenizer)}")
