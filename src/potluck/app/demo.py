"""``potluck demo``: a whole run on one machine, with real processes, deaths and a joiner.

A hub and four peers, each a process of its own, train a small Llama on Shakespeare. One peer is killed in
the middle of an exchange, one joins from nothing, and the first peer is killed as well. This process only
follows the run as one more peer, so what it shows and checks is what any peer can know.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potluck.app.demo_view import View
from potluck.errors import EnvironmentProblem
from potluck.hub.launch import Launched, launch_hub
from potluck.recipe import DEMO, End, Recipe
from potluck.run import Run
from potluck.start import join
from potluck.wire.messages import Progress

PEERS = 4
LISTEN = "127.0.0.1"

KILL_AT = 0.25
"""Share of the run's tokens at which the first victim dies, in the middle of an exchange."""

JOIN_AT = 0.35
"""Share at which a new peer joins from nothing."""

FOUNDER_DIES_AT = 0.6
"""Share at which the first peer is killed as well."""

START_S = 180.0
"""How long all peers may take to train, in seconds; five programs import PyTorch on one machine."""

PATIENCE = 6
"""The demo gives up after so many times the seconds that it was to take."""


@dataclass
class Player:
    """One peer's process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """SIGKILL: no good-bye."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Figures:
    """What the demo ends with."""

    loss_first: float = 0.0
    loss_last: float = 0.0
    bits_per_byte: float = 0.0
    sample: str = ""
    joined: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    last: dict[tuple[str, str], Progress] = field(default_factory=dict)


class Demo:
    """The stage: hub, players, and this process as a follower."""

    def __init__(self, directory: Path, seconds: float, view: View) -> None:
        self.directory, self.seconds, self.view = directory, seconds, view
        self.players: list[Player] = []
        self.figures = Figures()
        self.hub: Launched | None = None
        self.run: Run | None = None
        self.task: Any = None

    # -- the cast --------------------------------------------------------------------------------

    def start(self, recipe: Recipe) -> None:
        """Hub, first peer, follower, and the other peers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "recipe.toml"
        path.write_text(recipe.to_toml(), "utf-8")
        self.hub = launch_hub(self.directory / "hub", host=LISTEN, until_idle_s=30.0)
        self.view.event(f"hub up, process {self.hub.pid}; it outlives every peer")
        self._play("peer-1", "host", str(path), "--hub", self.hub.invite)
        for number in range(2, PEERS + 1):
            self._join(f"peer-{number}")
        self.run = join(
            self.hub.invite,
            name="demo",
            directory=self.directory / "demo",
            listen=LISTEN,
            trains=False,
            watch=self.view.event,
        )

    def _join(self, name: str) -> None:
        assert self.hub is not None
        self._play(name, "join", self.hub.invite)

    def _play(self, name: str, *arguments: str) -> None:
        log = self.directory / f"{name}.log"
        options = ["--json", "--name", name, "--listen", LISTEN, "--directory", str(self.directory / name)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "potluck", *arguments, *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.players.append(Player(name, process, log))

    def stop(self) -> None:
        """Leave nothing behind: every process that was started here is ended."""
        if self.run is not None:
            self.run.leave()
        for player in self.players:
            if player.process.poll() is None:
                player.kill()
        if self.hub is not None:
            _end(self.hub.pid)

    # -- the play --------------------------------------------------------------------------------

    def play(self) -> None:
        """Everything that happens, until the run is over on every machine that is left."""
        run = self.following
        target = run.recipe.end.tokens
        self._wait("all peers to train", START_S, lambda: len(self._training()) == PEERS)
        self.view.event(f"{PEERS} peers train; {target:,} tokens to go")
        limit_s = PATIENCE * self.seconds
        self._wait("a quarter of the way", limit_s, lambda: run.view.tokens >= KILL_AT * target)
        self._kill_in_exchange(self.players[2])
        self._wait("the next act", limit_s, lambda: run.view.tokens >= JOIN_AT * target)
        self._join(f"peer-{PEERS + 1}")
        self.view.event(f"peer-{PEERS + 1} joins from nothing, with the invite only")
        self._wait("the last act", limit_s, lambda: run.view.tokens >= FOUNDER_DIES_AT * target)
        self._wait("the joiner", START_S, lambda: self.players[-1].name in self._members())
        self.figures.joined += 1
        self.view.event(f"{self.players[-1].name} is a member: it has all that was learnt before it came")
        self._kill_in_exchange(self.players[0])
        self._wait("the end of the run", limit_s, lambda: run.over is not None)
        for player in self.players:
            if not player.killed:
                self._wait(f"{player.name} to end", 30.0, lambda p=player: p.process.poll() is not None)  # type: ignore[misc]

    @property
    def following(self) -> Run:
        """This process's part in the run."""
        assert self.run is not None
        return self.run

    def _training(self) -> set[str]:
        return {p.name for p in self.following.peers if p.phase == "training"}

    def _members(self) -> set[str]:
        """Names of the members of the last rounds."""
        swarm = {p.member: p.name for p in self.following.peers}
        rounds = sorted(self.following.view.members)[-3:]
        return {swarm.get(m, "") for r in rounds for m in self.following.view.members.get(r, ())}

    def _kill_in_exchange(self, player: Player) -> None:
        """SIGKILL a peer while a round with it as a member is open."""
        run = self.following

        def exchanging() -> bool:
            open_ = run.view.open
            return open_ is not None and player.name in {
                p.name for p in run.peers if p.member in open_.members
            }

        self._wait(f"an exchange with {player.name}", PATIENCE * self.seconds, exchanging, poll_s=0.005)
        open_ = run.view.open
        player.kill()
        where = f"in the exchange of round {open_.round}" if open_ else "just after an exchange"
        self.view.event(f"{player.name} is killed (SIGKILL) {where}")

    def _wait(self, what: str, limit_s: float, happened: Callable[[], bool], poll_s: float = 0.05) -> None:
        """Go on showing and recording until something has happened."""
        deadline = time.monotonic() + limit_s
        seen_at = 0.0
        while not happened():
            now = time.monotonic()
            if now > deadline:
                raise EnvironmentProblem(f"the demo waited {limit_s:.0f} s for {what} in vain")
            for player in self.players:
                if not player.killed and player.process.poll() not in (None, 0):
                    raise EnvironmentProblem(
                        f"{player.name} ended with code {player.process.returncode}:\n{_tail(player.log)}"
                    )
            if now - seen_at > 0.5:
                seen_at = now
                self._look()
            time.sleep(poll_s)

    def _look(self) -> None:
        """Record what every peer says, and show it."""
        peers = self.following.peers
        for progress in peers:
            self.figures.last[progress.peer, progress.session] = progress
        self.view.show(self.following.view, peers, self.following.recipe.end.tokens)

    # -- the figures -----------------------------------------------------------------------------

    def judge(self) -> None:
        """Digests of all that are left, and the held-out loss at the end."""
        self._look()
        state = self.following.state
        self.figures.digests["demo"] = state.state
        for player in self.players:
            if not player.killed:
                self.figures.digests[player.name] = _summary(player.log).get("state", "")
        self._evaluate()

    def prepare(self) -> None:
        """The task, and the held-out loss of the initial parameters, which every peer starts from."""
        import torch

        from potluck.tasks import task

        torch.set_num_threads(1)
        run = self.following
        self.task = task(run.recipe, run.task_files())
        self.figures.loss_first, _ = self.task.evaluate(self.task.model(base=Path()))
        run.wait_ready()

    def _evaluate(self) -> None:
        from potluck.peer.handover import Handover
        from potluck.peer.trainer import Trainer

        model = self.task.model()
        Trainer(model, Handover(lambda *_: None)).write(self.following.theta)
        self.figures.loss_last, self.figures.bits_per_byte = self.task.evaluate(model)
        self.figures.sample = self.task.sample(model, "ROMEO.", 80, seed=1)

    def summary(self) -> dict[str, Any]:
        """The one line that ``--json`` ends with."""
        view, figures = self.following.view, self.figures
        digests = set(figures.digests.values())
        return {
            "rounds": view.round,
            "peers": len(self.players),
            "killed": sum(player.killed for player in self.players),
            "joined": figures.joined,
            "digests_equal": len(digests) == 1 and digests != {""} and len(figures.digests) > 1,
            "rounds_lost": view.reopened,
            "loss_first": round(figures.loss_first, 4),
            "loss_last": round(figures.loss_last, 4),
            "bits_per_byte": round(figures.bits_per_byte, 4),
            "tokens": view.tokens,
            "bytes_sent": sum(p.bytes_sent for p in figures.last.values()),
            "bytes_received": sum(p.bytes_received for p in figures.last.values()),
            "sample": figures.sample,
        }


def run_demo(
    *, seconds: float = 90.0, json: bool = False, plain: bool = False, keep: Path | None = None
) -> int:
    """Run the demo; 0 if every machine that is left has the same bits and the model has learnt.

    Args:
        seconds: about how long to train.
        json: events as JSON lines, the summary as the last one.
        plain: lines instead of a live view.
        keep: keep everything in this directory, the trained model too.
    """
    view = View(json=json, plain=plain)
    recipe = _recipe(seconds)
    with tempfile.TemporaryDirectory(prefix="potluck-demo-") as scratch:
        demo = Demo(keep if keep is not None else Path(scratch), seconds, view)
        try:
            with view:
                demo.start(recipe)
                demo.prepare()
                demo.play()
                demo.judge()
            summary = demo.summary()
            if keep is not None:
                _export(demo, keep / "model")
        finally:
            demo.stop()
    view.finish(summary, demo.figures.digests, keep)
    fell = summary["loss_last"] < 0.65 * summary["loss_first"]
    return 0 if summary["digests_equal"] and fell and not summary["rounds_lost"] else 1


def _recipe(seconds: float) -> Recipe:
    """The demo's recipe, with as many tokens as this machine trains in about that time."""
    speed = _tokens_per_s()
    tokens = int(min(4_000_000, max(900_000, 0.7 * seconds * speed)))
    return dataclasses.replace(DEMO, end=End(tokens=tokens))


def _tokens_per_s() -> float:
    """What this machine's cores train together, from two seconds of one thread."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from potluck.peer.machine import cores

    torch.set_num_threads(1)
    config = {key: value for key, value in DEMO.task.config.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, **config))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 1024, (DEMO.task.batch, DEMO.task.context))
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 2.0:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return min(PEERS, cores()) * steps * ids.numel() / (time.perf_counter() - started)


def _export(demo: Demo, directory: Path) -> None:
    from potluck.peer.handover import Handover
    from potluck.peer.trainer import Trainer

    model = demo.task.model()
    Trainer(model, Handover(lambda *_: None)).write(demo.following.theta)
    demo.task.export(model, directory)


def _summary(log: Path) -> dict[str, Any]:
    """The last JSON object that a player printed."""
    for line in reversed(log.read_text("utf-8", "replace").splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])


def _end(pid: int) -> None:
    """End the hub that we started, and wait for it."""
    try:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
