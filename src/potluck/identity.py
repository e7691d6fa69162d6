"""Who a peer is: an Ed25519 key, and the certificates that let it into a run.

A peer's name is its public key in hexadecimal. The hub's key is the authority of its run: it issues one
certificate per admitted peer, and whoever shows one of them is a member. Certificates say nothing but
"this key is in", so they outlast every clock, and the same key always writes the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.errors import ProtocolError, StoreError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.x509 import CertificateBuilder, Name
    from filelock import BaseFileLock

MAX_SLOTS = 256
"""Upper bound of the processes that share one directory of keys."""

MAX_KEY_BYTES = 4096
"""A key file is a tenth of this; more is something else."""


@dataclass(frozen=True)
class Identity:
    """An Ed25519 private key and what can be done with it. Its printed form shows the public half only."""

    key: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"Identity({self.peer})"

    @cached_property
    def peer(self) -> str:
        """The public key, as 64 hexadecimal digits: the peer's name everywhere."""
        return self.key.public_key().public_bytes_raw().hex()

    @staticmethod
    def generate() -> Identity:
        """A new key from the system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Identity(Ed25519PrivateKey.generate())

    @staticmethod
    def load_or_create(path: Path) -> Identity:
        """The key kept at ``path``; a new one is written there when there is none.

        The file is PEM (PKCS #8), readable by its owner only. What stands there is never overwritten.

        Raises:
            UsageError: other users can read the file.
            StoreError: it is damaged, or the disk refuses.
        """
        try:
            try:
                return _load(path)
            except FileNotFoundError:
                _create(path, Identity.generate().private_pem())
            return _load(path)
        except OSError as error:
            raise StoreError(f"the key {path} can't be read or written: {error.strerror or error}") from error

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (64 bytes)."""
        return self.key.sign(message)

    @staticmethod
    def verify(peer: str, message: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed ``message``; false also when ``peer`` is no key at all."""
        from cryptography.exceptions import InvalidSignature

        try:
            _public_key(peer).verify(signature, message)
        except (InvalidSignature, UsageError):
            return False
        return True

    def private_pem(self, password: bytes | None = None) -> bytes:
        """The private key in PEM (PKCS #8), encrypted when a password is given."""
        from cryptography.hazmat.primitives.serialization import (
            BestAvailableEncryption,
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        lock = NoEncryption() if password is None else BestAvailableEncryption(password)
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)

    def authority(self) -> bytes:
        """This key's certificate as the authority of a run, signed by itself, in PEM.

        It serves as a server's certificate too, for those who pin the key.
        """
        from cryptography import x509

        # The organisation tells the authority's name from that of its own leaf, which has the same key.
        name = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "potluck"),
                x509.NameAttribute(x509.NameOID.COMMON_NAME, self.peer),
            ]
        )
        builder = _certificate(name, name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return self._signed(builder.add_extension(_usage(authority=True), critical=True))

    def issue(self, authority_pem: bytes, peer: str) -> bytes:
        """A certificate that lets ``peer`` into the run of this authority, in PEM.

        Raises:
            UsageError: ``authority_pem`` belongs to another key, or ``peer`` is no public key.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        authority = x509.load_pem_x509_certificate(authority_pem)
        if authority.public_key() != self.key.public_key():
            raise UsageError(
                f"{self.peer[:12]} can't issue certificates for an authority that is another key's"
            )
        key = _public_key(peer)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, peer)])
        builder = _certificate(name, authority.subject, key)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(issuer, critical=False).add_extension(both_ends, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return self._signed(builder.add_extension(_usage(authority=False), critical=True))

    def _signed(self, builder: CertificateBuilder) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return builder.sign(self.key, None).public_bytes(Encoding.PEM)


def peer_of_certificate(der: bytes) -> str:
    """The peer whose key a certificate (DER) holds.

    Raises:
        ProtocolError: it is no certificate, or its key is not Ed25519.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ProtocolError(f"the other side's certificate can't be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ProtocolError(f"the other side's key is {type(key).__name__}; peers have Ed25519 keys")
    return key.public_bytes_raw().hex()


def data_directory() -> Path:
    """Where this user's keys and runs are kept unless told otherwise."""
    import platformdirs

    return Path(platformdirs.user_data_dir("potluck", appauthor=False))


@dataclass(frozen=True)
class Claim:
    """One key out of a directory of them, this process's alone until released (or until it dies)."""

    identity: Identity
    directory: Path
    lock: BaseFileLock

    def release(self) -> None:
        """Let another process have this key. Safe to call twice."""
        self.lock.release(force=True)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(directory: Path, number: int = 0) -> Claim:
    """The first key in ``directory`` that no other process holds: ``peer-1``, ``peer-2`` and so on; or only
    that of this ``number``.

    The operating system ends a claim with its process, however that ends.

    Raises:
        UsageError: all of ``MAX_SLOTS`` (or the one) are held, or other users can read the key.
        StoreError: the key is damaged, or the disk refuses.
    """
    from filelock import FileLock, Timeout

    for each in [number] if number else range(1, MAX_SLOTS + 1):
        slot = directory / f"peer-{each}"
        # A soft lock would outlive its process, so a file system without real ones is refused.
        lock = FileLock(slot / "lock", mode=0o600, thread_local=False, fallback_to_soft=False)
        try:
            slot.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            continue
        except OSError as error:
            raise StoreError(f"no key can be claimed in {slot}: {error.strerror or error}") from error
        try:
            return Claim(Identity.load_or_create(slot / "key.pem"), slot, lock)
        except BaseException:
            lock.release(force=True)
            raise
    if number:
        raise UsageError(f"{directory / f'peer-{number}'} is in use: its peer is running")
    raise UsageError(
        f"all {MAX_SLOTS} keys in {directory} are in use; give this process a directory of its own"
    )


def _load(path: Path) -> Identity:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise UsageError(f"other users can read the key {path}: if none did, run chmod 600 {path}")
        pem = file.read(MAX_KEY_BYTES)
    damaged = f"the key {path} is damaged: restore it from a backup, or move it away to get a new one"
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreError(damaged) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(damaged)
    return Identity(key)


def _create(path: Path, pem: bytes) -> None:
    """Write a new file whole or not at all; one that somebody else made meanwhile stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
            # A link, unlike a rename, never replaces what is there.
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()


def _public_key(peer: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = bytes.fromhex(peer)
        if raw.hex() == peer:  # one name per key: no capitals, no spaces
            return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        pass
    raise UsageError(f"{peer[:80]!r} is no peer: a peer is named by 64 hexadecimal digits in lower case")


def _certificate(subject: Name, issuer: Name, key: Ed25519PublicKey) -> CertificateBuilder:
    import datetime

    from cryptography import x509

    # Whoever compares notes compares keys: the serial number only has to be unique under one authority.
    serial = int.from_bytes(b"\x01" + key.public_bytes_raw()[:15])
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(serial if subject != issuer else 1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(authority: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
