"""A site's own NATS, as its keepers would run it: a real nats-server with a configuration of its own."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from potluck.hub import server
from potluck.hub.nkey import SEED, USER, with_checksum

START_S = 30.0
OPERATOR, ACCOUNT = 14 << 3, 0


class SiteServer:
    """One nats-server; started again it has the same port and the same store."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory, self.port = directory, -1
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "site.conf"
        store = {"jetstream": {"store_dir": str(self.directory / "store")}}
        config.write_text(json.dumps(store | self._settings | {"listen": f"127.0.0.1:{self.port}"}))
        self._process = process = subprocess.Popen(
            [str(server._candidates()[0]), "-c", str(config)], stderr=subprocess.PIPE, text=True
        )
        lines: queue.Queue[str] = queue.Queue()
        assert process.stderr is not None
        self._reader = threading.Thread(target=lambda: [*map(lines.put, process.stderr)], daemon=True)
        self._reader.start()
        self._until_ready(lines)

    def _until_ready(self, lines: queue.Queue[str]) -> None:
        said, deadline = "", time.monotonic() + START_S
        while "Server is ready" not in said:
            try:
                said += lines.get(timeout=deadline - time.monotonic())
            except (queue.Empty, ValueError):
                self.end()
                raise AssertionError(f"the site's NATS does not start:\n{said}") from None
            if found := re.search(r"client connections on 127\.0\.0\.1:(\d+)", said):
                self.port = int(found[1])

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def end(self) -> None:
        if self._process is None:
            return
        self.kill()
        assert self._reader is not None
        assert self._process.stderr is not None
        self._reader.join(10)
        self._process.stderr.close()
        self._process = None


@contextlib.contextmanager
def site(directory: Path, **settings: Any) -> Iterator[SiteServer]:
    running = SiteServer(directory, **settings)
    running.start()
    try:
        yield running
    finally:
        running.end()


USERS = {
    "accounts": {
        "LAB": {"jetstream": "enabled", "users": [{"user": "lab", "password": "s:e/c@ret"}]},
        "POOR": {"users": [{"user": "poor", "password": "p"}]},
    }
}
"""Two accounts, one without JetStream."""

LAB = "lab:s%3Ae%2Fc%40ret"


def named(running: SiteServer, who: str = LAB, scheme: str = "nats") -> str:
    """Its URL with a user and password."""
    return f"{scheme}://{who}@{running.address}"


# -- keys and credentials ------------------------------------------------------------------------


def public(key: Ed25519PrivateKey, prefix: int) -> str:
    return with_checksum(bytes([prefix]) + key.public_key().public_bytes_raw())


def seed(key: Ed25519PrivateKey, prefix: int = USER) -> str:
    return with_checksum(bytes([SEED | prefix >> 5, (prefix & 31) << 3]) + key.private_bytes_raw())


def jwt(issuer: Ed25519PrivateKey, issuer_kind: int, subject: str, **claims: Any) -> str:
    """As nsc makes them (nats-io/jwt, version 2)."""
    body = {"iss": public(issuer, issuer_kind), "sub": subject, "iat": int(time.time()), "name": "test"}
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body | {"nats": {"version": 2, **claims}}]
    text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def operator(directory: Path) -> tuple[dict[str, Any], Path]:
    """The settings of a server run by an operator, and the credentials file of a user of one account."""
    boss, lab, system, user = (Ed25519PrivateKey.generate() for _ in range(4))
    unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    accounts = {
        public(lab, ACCOUNT): {"limits": {**unlimited, **storage, "wildcards": True}},
        public(system, ACCOUNT): {"limits": {**unlimited, "wildcards": True}},
    }
    settings = {
        "operator": jwt(boss, OPERATOR, public(boss, OPERATOR), type="operator"),
        "system_account": public(system, ACCOUNT),
        "resolver": "MEMORY",
        "resolver_preload": {
            name: jwt(boss, OPERATOR, name, type="account", **claims) for name, claims in accounts.items()
        },
    }
    token = jwt(lab, ACCOUNT, public(user, USER), type="user", subs=-1, data=-1, payload=-1)
    path = directory / "lab.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed(user)}\n------END USER NKEY SEED------\n"
    )
    return settings, path


class Authority:
    """A site's own certificates, as PEM files."""

    def __init__(self, directory: Path, name: str = "site") -> None:
        self._directory = directory
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), name
        self._self = self._signed(self._key, name, ca=True)
        self.ca = self._write(f"{name}-ca.pem", self._self)

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate and its key, for a server on loopback and for its clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._directory / f"{self._name}-{name}-key.pem"
        path.write_bytes(pem)
        return self._write(f"{self._name}-{name}.pem", self._signed(key, name, ca=False)), path

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._directory / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _signed(self, key: ec.EllipticCurvePrivateKey, name: str, *, ca: bool) -> x509.Certificate:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([here]), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self._key, hashes.SHA256())
