"""Addresses as text, and this machine's own."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.net.addresses import format_address, own_addresses, parse_address

GOOD = [
    ("127.0.0.1:80", "127.0.0.1", 80),
    ("example.org:65535", "example.org", 65535),
    ("[::1]:4000", "::1", 4000),
    ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
]


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_good_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host: 80",
        "host:8_0",
        "host:٣",
        "host:123456",
        "::1:80",
        "[::1]",
        "[]:80",
        "[host]:80",
        "[::1:80",
        "a b:80",
        "a\n:80",
        "a\x00b:80",
        "user@host:80",
        "https://host:80",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        parse_address(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except UsageError:
        return
    assert parse_address(format_address(host, port)) == (host, port)


def test_own_addresses_are_this_machines() -> None:
    addresses = own_addresses(4000)
    assert addresses[-1] == "127.0.0.1:4000"
    assert len(set(addresses)) == len(addresses)
    for address in addresses:
        host, port = parse_address(address)
        assert port == 4000
        with socket.socket() as own:
            own.bind((host, 0))  # only an address of this machine can be bound


def test_without_a_network_there_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unrouted(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "socket", Unrouted)
    assert own_addresses(1) == ("127.0.0.1:1",)
