"""``potluck status``: one look at a run, by somebody who is no peer of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from potluck.app.hub import away
from potluck.app.output import Output, count, figure, printable
from potluck.errors import LedgerUnavailable, Unreachable
from potluck.hub.client import HubClient
from potluck.identity import Identity
from potluck.protocol.evaluations import told
from potluck.protocol.leases import count as blocks
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.recipe import Recipe
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress
from potluck.wire.records import Chain, Entry, Evaluation, Genesis, Grant

LISTEN_S = 1.5
"""How long peers are listened to, in seconds; each says something once a second."""

SILENCE_S = 4.0
"""How long it takes to be sure that nobody is there, in seconds."""

EVENTS = 8
"""Records of the ledger that are shown, the newest last."""


@dataclass
class Look:
    """What was seen: the ledger's account, the peers and when they were heard, and the last records."""

    view: RunView = field(default_factory=RunView)
    swarm: Swarm = field(default_factory=Swarm)
    heard: dict[str, float] = field(default_factory=dict)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    somebody: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 0.0

    def hear(self, progress: Progress, now: float) -> None:
        """A peer said something."""
        if self.swarm.hear(progress, now):
            self.heard[progress.peer] = now
            self.somebody.set()

    def follow(self, entry: Entry) -> None:
        """The next record."""
        skipped = self.view.follow(entry)
        body = entry.record.body
        if isinstance(body, Genesis) or (isinstance(body, Grant) and not body.released and not skipped):
            return
        reason = f"skipped: {skipped}" if skipped else body.reason
        kind = type(body).__name__.lower()
        self.events.append(
            {
                "sequence": entry.sequence,
                "record": kind,
                "round": getattr(body, "round", None),
                "reason": reason,
            }
        )

    @property
    def peers(self) -> list[Progress]:
        """Who is there, the longest present first."""
        return self.swarm.alive(self.now)

    @property
    def waiting(self) -> str:
        """What is being done or waited for, in the words of the peer that is there longest."""
        if self.view.genesis is None:
            return "the run has not begun: its host starts it with `potluck host --hub INVITE`"
        if self.view.finished is not None:
            return f"the run is over: {self.view.finished.reason}"
        words = [p.activity for p in self.peers if p.phase == "training" and p.activity]
        words += [p.activity for p in self.peers if p.activity]
        return words[0] if words else "no peer is there: the run goes on when one joins"


def show_status(out: Output, invite: str) -> None:
    """Look at the run and show it.

    Raises:
        InviteError: it is none, or the hub does not take it.
        Unreachable: the hub is away.
    """
    parsed = Invite.parse(invite)
    out.status(f"asking the hub of run {parsed.run}")
    try:
        look = asyncio.run(_look(parsed))
    except (Unreachable, LedgerUnavailable) as error:
        raise away(error, parsed.run) from error
    out.restore()
    out.show("summary", _screen(parsed.run, look), **_facts(parsed.run, look))
    if not out.json:
        over = look.view.finished is not None
        what = f"export {invite} model" if over else f"join {invite}"
        out.next("write the model for transformers" if over else "take part", f"potluck {what}")


async def _look(invite: Invite) -> Look:
    look, loop = Look(), asyncio.get_running_loop()
    client = await HubClient.join(invite, Identity.generate())
    try:
        client.on_progress(lambda progress: look.hear(progress, loop.time()))
        started = loop.time()
        chain = Chain()
        while batch := await client.ledger.read(chain.sequence + 1):
            for sequence, raw in batch:
                look.follow(chain.follow(sequence, raw))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await look.somebody.wait()
        await asyncio.sleep(max(0.0, started + LISTEN_S - loop.time()))
    finally:
        await client.close()
    look.now = loop.time()
    return look


def _facts(run: str, look: Look) -> dict[str, Any]:
    view, genesis = look.view, look.view.genesis
    recipe = Recipe.from_toml(genesis.recipe) if genesis is not None else Recipe()
    return {
        "run": run,
        "recipe": recipe.name if genesis is not None else None,
        "round": view.round,
        "open": view.open.round if view.open is not None else None,
        "waiting": look.waiting,
        "tokens": view.tokens,
        "end": {"tokens": recipe.end.tokens, "rounds": recipe.end.rounds, "epochs": recipe.end.epochs},
        "data": _data(view),
        "loss": view.loss,
        "evaluated": _evaluated(view.evaluations.of.get(view.evaluations.last)),
        "best": _evaluated(view.evaluations.best),
        "tokens_per_s": round(sum(p.tokens_per_s for p in look.peers), 1),
        "rounds_reopened": view.reopened,
        "over": view.finished.reason if view.finished is not None else None,
        "peers": [_peer(p, look.now - look.heard[p.peer]) for p in look.peers],
        "events": list(look.events),
    }


def _evaluated(body: Evaluation | None) -> dict[str, Any] | None:
    """What an evaluation says."""
    return {"round": body.round, "metrics": dict(body.metrics)} if body is not None else None


def _data(view: RunView) -> dict[str, Any] | None:
    """How far the run has gone through its data, if that is shared out."""
    if view.leases is None or view.genesis is None:
        return None
    done = blocks(view.leases.included)
    return {
        "blocks": view.genesis.blocks,
        "included": done,
        "epochs": round(done / view.genesis.blocks, 3),
        "complete": view.leases.done,
    }


def _peer(progress: Progress, ago_s: float) -> dict[str, Any]:
    """What a peer said of itself; its addresses are nobody's business."""
    told = (
        "peer",
        "name",
        "version",
        "phase",
        "round",
        "state",
        "tokens",
        "tokens_per_s",
        "loss",
        "activity",
    )
    return {name: getattr(progress, name) for name in told} | {"seen_s_ago": round(ago_s, 2)}


def _screen(run: str, look: Look) -> Group:
    view, facts = look.view, _facts(run, look)
    ends = " or ".join(f"{limit:,} {what}" for what, limit in facts["end"].items() if limit)
    head = Text()
    head.append(f"run {run}", style="bold")
    head.append(f"  {printable(facts['recipe'] or 'not begun')}\n")
    head.append(f"round {view.round}   loss {figure(view.loss, 3)}   {view.tokens:,} tokens")
    head.append(f" (ends at {ends})" if ends else "")
    head.append(f"   {facts['tokens_per_s']:,.0f} tokens/s   {count(len(look.peers), 'peer')}\n")
    if data := facts["data"]:
        head.append(f"data {data['epochs']:.2f} epochs in the model, each block once\n")
    best, last = view.evaluations.best, view.evaluations.last
    if best is not None:
        head.append(f"round {last} evaluated: {told(view.evaluations.of[last])}")
        head.append("\n" if best.round == last else f"   best: round {best.round}, {told(best)}\n")
    head.append(f"{printable(look.waiting)}\n", style="cyan")
    return Group(head, _table(look), _events(look))


def _table(look: Look) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("peer", "phase", "round", "tokens/s", "loss", "state", "seen"):
        table.add_column(name, justify="right" if name in ("round", "tokens/s", "loss") else "left")
    for p in look.peers:
        table.add_row(
            Text(printable(p.name or p.peer[:8])),
            p.phase,
            str(p.round) if p.round >= 0 else "–",
            figure(p.tokens_per_s),
            figure(p.loss, 3),
            Text(printable(p.state[:12]) or "–"),
            f"{look.now - look.heard[p.peer]:.1f} s ago",
        )
    return table


def _events(look: Look) -> Text:
    text = Text("\nlast records of the ledger:", style="bold")
    for event in look.events:
        what = "data" if event["record"] == "grant" else event["record"]
        number = "" if event["round"] is None else f" {event['round']}"
        line = f"{what}{number}: {event['reason']}"
        text.append(f"\n  {printable(line)}", style="not bold")
    return text
