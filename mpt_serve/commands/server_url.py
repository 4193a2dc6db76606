"""The addresses of an OpenAI-style server."""

from urllib.parse import urlsplit

from mpt_serve.commands.failure import CommandError

__all__ = ["ServerUrl"]

_VERSION = "/v1"


class ServerUrl:
    """A server by the URL that users give: that of its API, or of the host alone.

    api: where `/models` and `/chat/completions` are. root: where a server of several APIs has `/tokenize`.
    Raises CommandError for what is no URL of a server.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:  # a port that is no number
            valid = False
        if not valid or parts.query or parts.fragment:
            raise CommandError("--url must be a URL such as http://127.0.0.1:8000/v1", status=2)
        self.is_tls = parts.scheme == "https"
        self.host = str(parts.hostname)
        self.port = parts.port or (443 if self.is_tls else 80)
        self.authority = parts.netloc.rpartition("@")[2]
        self.path = parts.path.rstrip("/") or _VERSION
        self.root = f"{parts.scheme}://{self.authority}{self.path.removesuffix(_VERSION)}"
        self.api = f"{parts.scheme}://{self.authority}{self.path}"

    def __str__(self) -> str:
        return self.api
