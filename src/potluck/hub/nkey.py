"""NATS' own kind of key, and the files that hold one: what a site's NATS knows its users by.

An nkey is an Ed25519 key whose seed and public half are written in base32, with a byte or two that say what
it is for and a checksum (nats-io/nkeys, ``strkey.go``). The server sends a nonce, the user signs it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from potluck.errors import UsageError

MAX_FILE_BYTES = 1 << 16
"""Of a credentials file."""

SEED = 18 << 3
USER = 20 << 3
"""What a seed's and a user's public key begin with: S and U in base32."""

_SEED_BYTES = 2 + 32 + 2


@dataclass(frozen=True, repr=False)
class Credentials:
    """A user's key and, unless the server knows the key itself, the JWT that vouches for it."""

    key: Ed25519PrivateKey
    jwt: str = ""

    @property
    def public(self) -> str:
        """The user's public key, as servers are told it."""
        raw = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return with_checksum(bytes([USER]) + raw)

    def sign(self, nonce: str) -> bytes:
        """The answer to a server's nonce, in base64."""
        return base64.b64encode(self.key.sign(nonce.encode()))


def read_credentials(path: Path) -> Credentials:
    """What a credentials file (``.creds``: JWT and seed), or one with only a seed, says.

    Raises:
        UsageError: it can't be read, or is neither.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES).decode("ascii")
    except OSError as error:
        raise UsageError(f"the NATS credentials {path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        text = ""
    lines = [line.strip() for line in text.splitlines()]
    seed = next((line for line in lines if line.startswith("SU")), "")
    key = parse_seed(seed)
    if key is None:
        raise UsageError(
            f"{path} is no credentials file of NATS: it has no user's seed (nsc writes one with "
            "`nsc generate creds`)"
        )
    return Credentials(key, _section(lines, "NATS USER JWT"))


def parse_seed(seed: str) -> Ed25519PrivateKey | None:
    """The key of a user's seed; ``None`` when it is none, or mistyped."""
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except (binascii.Error, ValueError):
        return None
    is_whole = len(raw) == _SEED_BYTES and binascii.crc_hqx(raw[:-2], 0) == int.from_bytes(raw[-2:], "little")
    if not is_whole or raw[0] & 0xF8 != SEED or (raw[0] & 7) << 5 | raw[1] >> 3 != USER:
        return None
    return Ed25519PrivateKey.from_private_bytes(raw[2:34])


def with_checksum(raw: bytes) -> str:
    """A key with its prefix, as it is written."""
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def _section(lines: list[str], name: str) -> str:
    """The line between a section's marks; empty when there is none."""
    for line, following in pairwise(lines):
        if f"BEGIN {name}" in line:
            return following
    return ""
