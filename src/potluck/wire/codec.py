"""Messages to bytes and back, with every size bounded before memory is taken.

Messages are msgspec structs in MessagePack, tagged by type name. Unknown fields are skipped, so that
peers of one wire version may differ in release; a change that old peers would misread raises ``WIRE``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import blake3
import msgspec

from potluck.errors import ProtocolError

WIRE = 3
"""Version of everything that travels. Peers refuse another one in words."""

MAX_MESSAGE_BYTES = 1 << 20
"""Upper bound of one control message (JetStream's own limit for a record)."""

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(message: msgspec.Struct) -> bytes:
    """Bytes of one message.

    Raises:
        ProtocolError: it would exceed ``MAX_MESSAGE_BYTES``.
    """
    raw = _encoder.encode(message)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"{type(message).__name__} of {len(raw)} bytes is over {MAX_MESSAGE_BYTES}")
    return raw


def decode(raw: bytes, kind: type[T] | Any, limit: int = MAX_MESSAGE_BYTES) -> T:
    """One message of the given type (or union of types), the whole of ``raw`` and nothing more.

    Raises:
        ProtocolError: oversize, malformed, truncated, trailing data, or of another type.
    """
    if len(raw) > limit:
        raise ProtocolError(f"message of {len(raw)} bytes is over the limit of {limit}")
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message: T = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"message can't be read: {error}") from error
    return message


def digest(raw: bytes | bytearray | memoryview) -> str:
    """BLAKE3 of the bytes, as 64 hexadecimal digits."""
    return blake3.blake3(raw).hexdigest()
