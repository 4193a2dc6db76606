"""The encoding of protocol buffers, as far as the bytes of a SentencePiece model need it."""

from collections.abc import Iterator

__all__ = ["BYTES", "fields", "message_field", "number_field"]

_VARINT, _FIXED_64, BYTES, _FIXED_32 = 0, 1, 2, 5  # wire types
_SIZES = {_FIXED_64: 8, _FIXED_32: 4}


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield a message's fields: key (number and wire type), all bytes, and the content of a run of bytes."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at)
        content = at
        if key & 7 == BYTES:
            length, content = _varint(message, at)
            at = content + length
        elif key & 7 == _VARINT:
            _, at = _varint(message, at)
        else:
            at += _SIZES[key & 7]
        yield key, message[begin:at], message[content:at]


def message_field(number: int, content: bytes) -> bytes:
    """Return a field that is a run of bytes: a text or a message."""
    return _as_varint(number << 3 | BYTES) + _as_varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """Return a field that is an integer of at least 0."""
    return _as_varint(number << 3 | _VARINT) + _as_varint(value)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the integer at a position, seven bits to a byte, and the position behind it."""
    value, shift = 0, 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
