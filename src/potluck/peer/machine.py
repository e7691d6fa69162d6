"""Facts of the machine that a peer runs on."""

from __future__ import annotations

import functools
import os
import platform
import uuid
from pathlib import Path

from potluck.wire.codec import digest


@functools.cache
def machine_id() -> str:
    """The same for all processes of one machine until it starts again, and nothing that names it to others.

    Where the kernel says which boot this is, that counts: containers and network namespaces of one machine
    share its cores, though each may have a name and a network card of its own, or none.
    """
    try:
        this = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        this = f"{platform.node()}/{uuid.getnode()}"
    return digest(this.encode())[:16]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(peers: int) -> int:
    """Threads for each of so many peers on this machine: together no more than it has cores."""
    return max(1, cores() // max(1, peers))
