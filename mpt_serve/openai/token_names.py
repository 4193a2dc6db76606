"""The names of single tokens in responses."""

from collections.abc import Callable, Iterable, Sequence

__all__ = ["TokenNames"]


class TokenNames:
    r"""Names ids.

    A token's name is its text, special tokens included. Bytes that are not UTF-8 by themselves become `bytes:` and the
    bytes, those outside printable ASCII as `\xf0`. An id without text becomes `token_id:` and the id, and so does
    every id when `as_ids` is set.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], as_ids: bool = False) -> None:
        self._token_bytes = token_bytes
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        """Return the id's name."""
        data = self._token_bytes(token_id)
        if self._as_ids or not data:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(map(_escaped, data))

    def utf8(self, token_id: int) -> list[int]:
        """Return the bytes that the token adds to a text."""
        return list(self._token_bytes(token_id))

    def distinct(self, token_ids: Iterable[int]) -> Sequence[str]:
        """Return the ids' names, all different: if two ids have the same text, the later one is named by its id."""
        names: dict[str, int] = {}
        for token_id in token_ids:
            name = self.name(token_id)
            names.setdefault(name if name not in names else f"token_id:{token_id}", token_id)
        return list(names)


def _escaped(byte: int) -> str:
    return chr(byte) if 0x20 <= byte < 0x7F and byte != ord("\\") else f"\\x{byte:02x}"
