"""Facts of the machine that a peer runs on."""

from __future__ import annotations

import functools
import os
import platform
import uuid

from potluck.wire.codec import digest


@functools.cache
def machine_id() -> str:
    """The same for all processes of one machine, and nothing that names it to others."""
    return digest(f"{platform.node()}/{uuid.getnode()}".encode())[:16]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(peers: int) -> int:
    """Threads for each of so many peers on this machine: together no more than it has cores."""
    return max(1, cores() // max(1, peers))
