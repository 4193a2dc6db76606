"""Options that several commands have."""

from typing import Annotated

import typer

__all__ = ["DEFAULT_URL", "AsJson", "Fields", "Key", "ServedModel", "Url"]

DEFAULT_URL = "http://127.0.0.1:8000/v1"

Url = Annotated[
    str,
    typer.Option(
        metavar="URL", envvar="OPENAI_BASE_URL", help="of an OpenAI-style API, or the variable OPENAI_BASE_URL"
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        envvar="OPENAI_API_KEY",
        show_envvar=False,
        help="an API key; better in the variable OPENAI_API_KEY, as other users see the arguments of processes",
    ),
]
ServedModel = Annotated[
    str | None, typer.Option("--model", "-m", metavar="ID", help="as the server names it; by default its first one")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=JSON", help="any other field of the request, such as top_k=20; may be repeated"
    ),
]
