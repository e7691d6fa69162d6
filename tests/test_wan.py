"""The emulated WAN: its links do what was asked, and nothing of it outlives its owner."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from bench import wan
from bench.wan import Link, Wan

from tests.test_bench import ROOT

MISSING = wan.missing()
pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

PING = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(float(sys.argv[3]))
took = []
for n in range(int(sys.argv[2])):
    began = time.monotonic()
    sock.sendto(b"%d" % n, (sys.argv[1], 7))
    try:
        while sock.recv(100) != b"%d" % n: pass
        took.append(time.monotonic() - began)
    except TimeoutError:
        pass
print(len(took), min(took, default=0))
"""

ECHO = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7))
print("up", flush=True)
while True: sock.sendto(*sock.recvfrom(100))
"""

OWNER = """
import sys
from bench.wan import Link, Wan
with Wan({"a": Link(), "b": Link()}) as wan:
    print(wan.start("a", ["sleep", "600"]).pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def two() -> Iterator[Wan]:
    with Wan({"a": Link(), "b": Link()}) as network:
        echo = network.start("b", [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        assert echo.stdout.readline() == "up\n"
        yield network
        echo.stdout.close()


def ping(network: Wan, count: int = 5, wait_s: float = 2.0) -> tuple[int, float]:
    """How many of so many datagrams came back, and the shortest round trip in seconds."""
    command = [sys.executable, "-c", PING, network.address("b"), str(count), str(wait_s)]
    asked = network.start("a", command, stdout=subprocess.PIPE, text=True)
    back, took_s = asked.communicate(timeout=60)[0].split()
    return int(back), float(took_s)


def test_delays_of_both_ends_add_up_and_can_be_changed(two: Wan) -> None:
    assert ping(two)[0] == 5
    two.link("a", Link(delay_s=0.03))
    two.link("b", Link(delay_s=0.02))
    back, took_s = ping(two)
    assert back == 5
    assert 0.1 <= took_s < 1.0


def test_loss(two: Wan) -> None:
    two.link("a", Link(loss=0.5))
    back, _ = ping(two, 60, 0.1)
    assert 2 <= back <= 40, "a quarter is expected: each datagram passes the lossy link twice"


def test_a_rate_bounds_what_gets_through(two: Wan) -> None:
    two.link("a", Link(up_mbit=1, queue_s=0.5))
    flood = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in range(500): sock.sendto(bytes(1000), (sys.argv[1], 9))"
    )
    two.traffic()
    assert two.start("a", [sys.executable, "-c", flood, two.address("b")]).wait(30) == 0
    back, took_s = ping(two, 1, 5.0)
    sent = two.traffic()["a"]
    # 1 Mbit/s carries 125 kB in a second; of 500 kB at once half a second's worth fits into the queue.
    assert sent.overflowed > 100
    assert sent.sent < 400_000
    assert (back, took_s > 0) in ((1, True), (0, False))


def test_a_cut_in_one_direction_and_its_mending(two: Wan) -> None:
    two.cut("b", "a", both=False)
    assert ping(two, 2, 0.2)[0] == 0
    two.mend("b", "a", both=False)
    assert ping(two)[0] == 5


def test_hosts_are_apart_from_this_machine(two: Wan) -> None:
    assert two.processes(), "the echo server"
    outside = subprocess.run(
        [sys.executable, "-c", PING, two.address("b"), "1", "0.3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outside.stdout.split()[:1] in ([], ["0"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_owner(number: int) -> None:
    """After SIGKILL the next one cleans up."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    child = int(owner.stdout.readline())
    mine = [name for name in wan._namespaces() if name.startswith(f"{wan.PREFIX}-{owner.pid}-")]
    assert len(mine) == 2
    watched = os.pidfd_open(child)
    owner.send_signal(number)
    owner.wait(30)
    if number == signal.SIGKILL:
        assert set(mine) <= set(wan.clean())
    assert not set(mine) & set(wan._namespaces())
    assert select.select([watched], [], [], 10)[0], "the process on the host has ended"
    os.close(watched)
    owner.stdin.close()
    owner.stdout.close()


def test_others_that_live_are_left_alone(two: Wan) -> None:
    assert not [name for name in wan.clean() if name.startswith(two._stem)]
    assert ping(two)[0] == 5


def test_nonsense_is_refused(two: Wan) -> None:
    with pytest.raises(RuntimeError, match="does not take"):
        two._tell("link 7 nonsense")
