"""Keys, certificates, and processes that must not share a key."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from potluck.errors import PotluckError, ProtocolError, StoreError, UsageError
from potluck.identity import Identity, claim, data_directory, peer_of_certificate


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_a_peer_is_its_public_key() -> None:
    identity = Identity.generate()
    assert bytes.fromhex(identity.peer) == identity.key.public_key().public_bytes_raw()
    assert Identity.generate().peer != identity.peer
    assert repr(identity) == f"Identity({identity.peer})"


def test_signatures() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"hello")
    assert Identity.verify(identity.peer, b"hello", signature)
    assert not Identity.verify(identity.peer, b"hellO", signature)
    assert not Identity.verify(other.peer, b"hello", signature)
    assert not Identity.verify(identity.peer, b"hello", signature[:-1])
    assert not Identity.verify("not a key", b"hello", signature)


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "key.pem"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer == first.peer
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["key.pem"]


def test_a_key_cut_at_any_byte_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    Identity.load_or_create(path)
    # The last byte is a line end, without which the key is whole.
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="damaged"):
            Identity.load_or_create(path)
        assert path.read_bytes() == whole[:length]


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(StoreError, match="damaged"):
        Identity.load_or_create(path)
    path.write_bytes(Identity.generate().private_pem(b"a password"))
    with pytest.raises(StoreError, match="damaged"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        Identity.load_or_create(path)


def test_a_place_where_no_key_can_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't be read or written"):
        Identity.load_or_create(tmp_path / "file" / "key.pem")
    with pytest.raises(StoreError, match="can't be read or written"):
        Identity.load_or_create(tmp_path)


def test_who_comes_second_takes_the_first_ones_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    generate, first = Identity.generate, []

    def slowly() -> Identity:
        monkeypatch.setattr(Identity, "generate", generate)
        first.append(Identity.load_or_create(path))
        return generate()

    monkeypatch.setattr(Identity, "generate", slowly)
    assert Identity.load_or_create(path).peer == first[0].peer
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


def test_certificates_name_their_keys() -> None:
    hub, peer = Identity.generate(), Identity.generate()
    authority = hub.authority()
    leaf = hub.issue(authority, peer.peer)
    assert authority == hub.authority()
    assert leaf == hub.issue(authority, peer.peer)
    assert peer_of_certificate(der(authority)) == hub.peer
    assert peer_of_certificate(der(leaf)) == peer.peer
    root, child = x509.load_pem_x509_certificate(authority), x509.load_pem_x509_certificate(leaf)
    root.verify_directly_issued_by(root)
    child.verify_directly_issued_by(root)
    assert root.serial_number != child.serial_number
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not child.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    for certificate in (root, child):
        assert certificate.not_valid_before_utc.year == 2020
        assert certificate.not_valid_after_utc.year == 2100


def test_the_authoritys_own_leaf_is_no_authority() -> None:
    hub = Identity.generate()
    root = x509.load_pem_x509_certificate(hub.authority())
    own = x509.load_pem_x509_certificate(hub.issue(hub.authority(), hub.peer))
    assert own.subject != root.subject
    own.verify_directly_issued_by(root)


def test_certificates_are_issued_for_ones_own_authority_and_for_keys_only() -> None:
    hub, other = Identity.generate(), Identity.generate()
    with pytest.raises(UsageError, match="another key"):
        hub.issue(other.authority(), other.peer)
    for nobody in ("", "ab", "x" * 64, other.peer + "00", other.peer.upper(), f" {other.peer}"):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            hub.issue(hub.authority(), nobody)


def test_certificates_of_other_kinds_are_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    template = x509.load_pem_x509_certificate(Identity.generate().authority())
    foreign = (
        x509.CertificateBuilder(template.issuer, template.subject, key.public_key(), 1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(ProtocolError, match="Ed25519"):
        peer_of_certificate(foreign.public_bytes(Encoding.DER))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_cut_or_flipped_never_breaks_the_reader() -> None:
    identity = Identity.generate()
    whole = der(identity.authority())
    for length in range(len(whole)):
        with pytest.raises(ProtocolError, match="certificate"):
            peer_of_certificate(whole[:length])
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        with contextlib.suppress(PotluckError):
            assert len(peer_of_certificate(bytes(flipped))) == 64


def test_each_claim_has_a_key_of_its_own(tmp_path: Path) -> None:
    with claim(tmp_path) as first, claim(tmp_path) as second:
        assert (first.directory.name, second.directory.name) == ("peer-1", "peer-2")
        assert first.identity.peer != second.identity.peer
    with claim(tmp_path) as again:
        assert again.identity.peer == first.identity.peer
        again.release()
        with claim(tmp_path) as taken:
            assert taken.directory == first.directory
    assert stat.S_IMODE((tmp_path / "peer-1").stat().st_mode) == 0o700


def test_a_damaged_key_is_told_and_its_slot_freed(tmp_path: Path) -> None:
    with claim(tmp_path) as first:
        key = first.directory / "key.pem"
    whole = key.read_bytes()
    key.write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        claim(tmp_path)
    key.write_bytes(whole)
    with claim(tmp_path) as again:
        assert again.identity.peer == first.identity.peer


def test_a_full_directory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.identity.MAX_SLOTS", 1)
    with claim(tmp_path), pytest.raises(UsageError, match="in use"):
        claim(tmp_path)


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="claimed"):
        claim(tmp_path / "file")


HOLDER = """
import sys
from pathlib import Path
from potluck.identity import claim
held = claim(Path(sys.argv[1]))
print(held.directory.name, held.identity.peer, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_frees_its_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        slot, peer = holder.stdout.readline().split()
        with claim(tmp_path) as other:
            assert slot == "peer-1"
            assert other.directory.name == "peer-2"
        holder.kill()
        holder.wait(10)
        with claim(tmp_path) as heir:
            assert heir.identity.peer == peer


def test_the_data_directory_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_directory() == tmp_path / "potluck"
    assert not os.listdir(tmp_path)
