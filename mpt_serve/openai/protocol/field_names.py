"""Errors of a request of another API in that API's own words, where chat's code has found them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mpt_serve.errors import RequestError
from mpt_serve.openai.errors import ApiError, as_api_error

__all__ = ["OF_CHAT", "FieldNames"]

_MESSAGE = re.compile(r"messages\[(\d+)\]")


@dataclass(frozen=True)
class FieldNames:
    """How an API names the fields that chat has for them.

    messages: the path of what each of chat's messages was made of. paths: patterns of paths, with what replaces them.
    words: what stands in the texts of errors, with what replaces it.
    """

    messages: Sequence[str] = ()
    paths: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Raise the errors of the context with these names."""
        try:
            yield
        except (ApiError, RequestError) as error:
            own = as_api_error(error)
            path = None if own.param is None else self._path(own.param)
            own.rename(self._text(own.message.replace(f"'{own.param}'", f"'{path}'")), path)
            if own is error:
                raise
            raise own from error

    def _path(self, path: str) -> str:
        if self.messages and (found := _MESSAGE.match(path)):
            path = self.messages[int(found[1])] + path[found.end() :]
        for pattern, replacement in self.paths.items():
            path = re.sub(pattern, replacement, path)
        return path

    def _text(self, text: str) -> str:
        for word, own in self.words.items():
            text = re.sub(rf"(?<![\w.]){word}(?!\w)", own, text)
        return text


OF_CHAT = FieldNames()  # and of completions and scores
