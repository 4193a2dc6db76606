"""`mpt-serve models`: what a server offers."""

import json
from typing import Any

from mpt_serve.commands.options import DEFAULT_URL, AsJson, Key, Url

__all__ = ["models"]


def models(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the models of a server, with their context lengths where it names them."""
    from mpt_serve.commands.server_client import ServerClient

    with ServerClient(url, key) as client:
        found = client.models()
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [(str(model["id"]), _context(model), str(model.get("root") or "")) for model in found]
    width = max((len(row[0]) for row in rows), default=0)
    for name, context, root in rows:
        print("  ".join(filter(None, [name.ljust(width), context, root if root != name else ""])).rstrip())


def _context(model: dict[str, Any]) -> str:
    length = model.get("max_model_len")
    return f"{length} tokens" if isinstance(length, int) else ""
