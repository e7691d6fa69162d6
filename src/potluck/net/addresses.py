"""Addresses as text: ``host:port``, with IPv6 hosts in brackets."""

from __future__ import annotations

import socket

from potluck.errors import UsageError

LOOPBACK = "127.0.0.1"

# One address in each range that people's networks use: the routing table tells which of ours would be the
# sender's. The first is reserved for documentation (RFC 5737), so it takes the default route.
_PROBES = ("192.0.2.1", "10.255.255.254", "172.31.255.254", "192.168.255.254", "100.127.255.254")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[ipv6]:port``.

    Raises:
        UsageError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    # Only ASCII digits: int() takes spaces, signs, underscores and other scripts' digits as well.
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    printable = bool(host) and host.isprintable() and not any(c in "[]/@ " for c in host)
    if not (colon and printable and 1 <= number <= 65535 and bracketed == (":" in host)):
        raise UsageError(f"{text[:80]!r} is no address: write host:port, or [host]:port for IPv6")
    return host, number


def format_address(host: str, port: int) -> str:
    """The text that ``parse_address`` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_addresses(port: int) -> tuple[str, ...]:
    """This machine's IPv4 addresses with ``port``, loopback last. Nothing is sent to find out."""
    hosts = dict.fromkeys(host for probe in _PROBES if (host := _source_for(probe)))
    hosts.pop(LOOPBACK, None)
    return tuple(format_address(host, port) for host in (*hosts, LOOPBACK))


def _source_for(target: str) -> str | None:
    # Connecting a datagram socket only asks the routing table.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return None
        host: str = probe.getsockname()[0]
        return host
