"""A run on its site's own NATS: real processes, and what the loss of the NATS or of a door costs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from potluck.hub.nats_ledger import stream_name
from potluck.hub.service import TOKEN_FILE
from potluck.hub.site import SETTINGS_FILE, Nats
from potluck.hub.site_engine import site_client
from tests.app.shells import LISTEN, Shell, Shells, end_hubs, hubs, potluck, write_recipe
from tests.hub.sites import USERS, Authority, SiteServer, operator, site

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PASSWORD = "s%3Ae%2Fc%40ret"


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Shells]:
    opened = Shells(tmp_path)
    yield opened
    opened.end()


def reached(*peers: Shell) -> int:
    """The last round that any of them has told of."""
    return max(said["round"] for peer in peers for said in peer.said if said["event"] == "round")


def test_rounds_go_on_after_the_sites_nats_and_after_a_door_is_lost(shells: Shells, tmp_path: Path) -> None:
    with site(tmp_path / "site", **USERS) as running:
        play(shells, tmp_path, running)


def play(shells: Shells, tmp_path: Path, running: SiteServer) -> None:
    nats = ("--nats", f"nats://lab:{PASSWORD}@{running.address}")
    anna = shells.peer("anna", "host", str(write_recipe(tmp_path)), *nats)
    invite = anna.wait("invite")["invite"]
    bert = shells.peer("bert", "join", invite)
    bert.wait("round", peers=2)

    [first] = hubs(tmp_path)
    assert PASSWORD.encode() not in Path(f"/proc/{first}/cmdline").read_bytes()
    [settings] = shells.home("anna").glob(f"hubs/*/{SETTINGS_FILE}")
    place = settings.parent
    assert not (place / "ledger").exists(), "no nats-server of the hub's own"
    told = " ".join(path.read_text(errors="replace") for path in shells.home("bert").rglob("*.json"))
    assert PASSWORD not in told
    assert str(running.port) not in told

    running.kill()
    for peer in (anna, bert):
        peer.wait("note", containing="training goes on, rounds wait")
    last = reached(anna, bert)
    running.end()
    running.start()
    for peer in (anna, bert):
        peer.wait("round", round=last + 2, peers=2)

    token = (place / TOKEN_FILE).read_text().strip()
    second = ("--directory", str(tmp_path / "second"), "--listen", LISTEN)
    refused = potluck("hub", "add", token, *second)
    assert refused.exit_code == 2
    assert "name that, with --nats URL" in refused.stderr
    other = shells.open("hub", "add", token, *second, *nats)
    other_invite = other.wait("invite")["invite"]
    carl = shells.peer("carl", "join", other_invite)
    carl.wait("round", peers=3)

    os.kill(first, signal.SIGKILL)
    last = reached(anna, bert, carl)
    for peer in (anna, bert, carl):
        peer.wait("round", round=last + 2, peers=3)


def test_a_lost_hub_is_replaced_from_a_peers_disk(shells: Shells, tmp_path: Path) -> None:
    with site(tmp_path / "site", **USERS) as running:
        url = f"nats://lab:{PASSWORD}@{running.address}"
        anna = shells.peer("anna", "host", str(write_recipe(tmp_path)), "--nats", url)
        run = anna.wait("invite")["run"]
        last = anna.wait("round", round=3)["round"]
        anna.signal(signal.SIGTERM)
        assert anna.ended() == 143
        end_hubs(tmp_path)
        shutil.rmtree(shells.home("anna") / "hubs")

        resume = ("host", "--resume", str(shells.home("anna")), "--nats", url, "--listen", LISTEN)
        refused = potluck(*resume)
        assert "have it removed (`nats stream rm`)" in refused.stderr
        asyncio.run(remove(url, run))
        again = shells.open(*resume, "--threads", "1")
        again.wait("round", round=last + 2)


async def remove(url: str, run: str) -> None:
    async with site_client(Nats(url)) as client:
        await client.request(f"$JS.API.STREAM.DELETE.{stream_name(run)}", b"", timeout=10)


def test_with_credentials_and_tls_named_in_python(tmp_path: Path) -> None:
    """As a user would, in a process of its own, and a joiner that knows the invite only."""
    import torch

    import potluck as library
    from tests.integration.peer_program import model, recipe
    from tests.integration.swarm import Peer

    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    settings, creds = operator(tmp_path)
    tls = {"cert_file": str(cert), "key_file": str(key)}
    joiner = None
    with site(tmp_path / "site", tls=tls, **settings) as running:
        nats = library.Nats(f"tls://{running.address}", credentials=creds, ca=authority.ca)
        trained, options = model(), {"directory": tmp_path / "p1", "listen": LISTEN}
        try:
            with library.host(recipe(0, 0), trained, nats=nats, **options) as run:
                joiner = Peer("join", str(tmp_path / "p2"), "p2", run.invite)
                optimizer = run.optimizer(torch.optim.AdamW(trained.parameters(), lr=1e-3))
                while not any(len(members) > 1 for members in list(run.view.members.values())[-1:]):
                    trained(torch.randn(32, 64)).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                joiner.wait("event", 60, "committed")
        finally:
            if joiner is not None:
                joiner.end()
            Shells(tmp_path).end()
