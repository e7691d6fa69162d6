"""What the emulator carries on this machine: every host sends to the next one as fast as its link goes.

    python -m bench.wan.measure [--hosts 4] [--mbit 100] [--delay-ms 20] [--seconds 5]

Prints one JSON object: what was asked for, what got through, round-trip times, the emulator's own CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench.wan import Link, Wan

ECHO = """
import socket, sys, threading
server = socket.create_server(("", 5000))
print("up", flush=True)
def serve(conn):
    kind = conn.recv(1)
    if kind == b"e":
        while data := conn.recv(100): conn.sendall(data)
    else:
        n = 0
        while data := conn.recv(1 << 20): n += len(data)
        conn.close()
while True:
    conn, _ = server.accept()
    threading.Thread(target=serve, args=(conn,), daemon=True).start()
"""

SEND = """
import json, socket, sys, time
host, seconds = sys.argv[1], float(sys.argv[2])
echo = socket.create_connection((host, 5000)); echo.sendall(b"e")
echo.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
rtt = []
for _ in range(10):
    t = time.monotonic(); echo.sendall(b"x"); echo.recv(1); rtt.append(time.monotonic() - t)
bulk = socket.create_connection((host, 5000)); bulk.sendall(b"b")
t, n, block = time.monotonic(), 0, bytes(1 << 16)
while time.monotonic() - t < seconds: bulk.sendall(block); n += len(block)
bulk.shutdown(socket.SHUT_WR); bulk.recv(1)
print(json.dumps({"rtt_ms": [1e3 * r for r in rtt], "bytes": n, "s": time.monotonic() - t}), flush=True)
"""


def measure(hosts: int, link: Link, seconds: float) -> dict[str, object]:
    """All at once, in a ring."""
    names = [f"h{number}" for number in range(hosts)]
    with Wan(dict.fromkeys(names, link)) as wan:
        for name in names:
            server = wan.start(name, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            assert server.stdout.readline().strip() == "up"
        assert wan._emulator is not None
        before, loops = _cpu_s(wan._emulator.pid), []
        for number, name in enumerate(names):
            to = wan.address(names[(number + 1) % hosts])
            command = [sys.executable, "-c", SEND, to, str(seconds)]
            loops.append(wan.start(name, command, stdout=subprocess.PIPE, text=True))
        said = [json.loads(loop.communicate(timeout=seconds + 30)[0]) for loop in loops]
        cpu_s = _cpu_s(wan._emulator.pid) - before
        traffic = wan.traffic()
    took_s = max(one["s"] for one in said)
    return {
        "hosts": hosts,
        "asked_mbit": link.up_mbit,
        "carried_mbit": [round(8e-6 * one["bytes"] / one["s"], 1) for one in said],
        "rtt_ms": round(statistics.median(r for one in said for r in one["rtt_ms"]), 2),
        "emulator_cores": round(cpu_s / took_s, 3),
        "packets_dropped": sum(t.overflowed for t in traffic.values()),
        "late_ms": next(iter(traffic.values())).late_ms,
        "load": os.getloadavg()[0],
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    link = Link(args.mbit, args.mbit, args.delay_ms / 2000)
    print(json.dumps(measure(args.hosts, link, args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
