"""What logs, metrics and traces call a path: its route in the API, without what a client has put into it."""

import re
from collections.abc import Iterable

from starlette.routing import compile_path

__all__ = ["OTHER_PATH", "RouteNames"]

OTHER_PATH = "(other path)"  # stands for a path that is no route: the client's text
_CONVERTER = re.compile(r":\w+(?=})")


class RouteNames:
    """Names paths: `/v1/files/{id}` for `/v1/files/file-12`.

    paths: of the routes, as Starlette writes them; of two that fit, the earlier one names a path, as in the router.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        own = list(paths)
        self._exact = frozenset(path for path in own if "{" not in path)
        self._templates = [(compile_path(path)[0], _CONVERTER.sub("", path)) for path in own if "{" in path]

    def of(self, path: str) -> str | None:
        """Return the name of a path, None if it is no route."""
        if path in self._exact:
            return path
        return next((name for pattern, name in self._templates if pattern.match(path)), None)
