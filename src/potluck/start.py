"""How a run begins here: hosted, joined, or brought back from one disk."""

from __future__ import annotations

import contextlib
import logging
import platform
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.errors import UsageError
from potluck.hub.launch import launch_hub
from potluck.hub.site import Nats
from potluck.identity import Claim, data_directory
from potluck.peer.disks import claim_for
from potluck.peer.elsewhere import Elsewhere
from potluck.peer.place import Founding, Place
from potluck.peer.resume import prepare
from potluck.peer.speaker import Listener
from potluck.peer.told import Read
from potluck.recipe import Recipe
from potluck.run import Run
from potluck.store.keep import USUAL, Keep
from potluck.wire.invite import Invite

if TYPE_CHECKING:
    import torch

    from potluck.peer.ranks import Ranks

log = logging.getLogger("potluck")

_here: dict[Run, Path] = {}
"""Runs that this process takes part in, and the data directory of each. It has to know them: a notebook's
cell that is run again would make a second peer beside the first, which trains no more and is waited for.
"""


def host(
    recipe: Recipe,
    model: torch.nn.Module | None = None,
    *,
    name: str = "",
    directory: Path | str | None = None,
    listen: str = "0.0.0.0",  # noqa: S104 – friends' machines are elsewhere; admission is by invite
    hub: str = "",
    nats: Nats | None = None,
    base: Path | None = None,
    allow_code: str = "",
    keep: Keep = USUAL,
    watch: Callable[[str], None] | None = None,
) -> Run:
    """Start a run: a hub in a process of its own, and this process as the first peer.

    Called again in one process with the same recipe, kind of model and directory, while that run goes on (a
    notebook's cell is run once more), it goes on in the same run, with the model given now.

    Args:
        recipe: what all peers will agree on.
        model: what is trained. Without one, the recipe's task makes it (see ``Run.adopt``).
        name: what others see; the machine's name by default.
        directory: where keys and runs are kept; the user's data directory by default.
        listen: the address of this machine to listen on; 127.0.0.1 keeps the run on it.
        hub: the invite of a hub that runs already (``potluck hub``) and has no run yet.
        nats: the NATS that your site runs already, to keep the run's ledger instead of the hub itself. Peers
            still need nothing but the invite.
        base: the directory that the recipe's paths are relative to; the working directory by default.
        allow_code: the recipe's ``task.kind``, if that is a ``module:function`` of your own: it may run here.
        keep: what this machine keeps of the run besides what every peer does.
        watch: called from the network thread with each event in words.

    Raises:
        PotluckError: the recipe, the model, the disk or the network is not as it must be, and why.
    """
    ranks = _ranks(model)
    if ranks is not None and model is not None and not ranks.speaks:
        return _beside(ranks, model)
    with _speaking(ranks):
        recipe.validate()
        if hub and nats:
            raise UsageError(
                "the hub that runs already has its ledger: name a NATS for it, or the hub, not both"
            )
        home = Path(directory) if directory is not None else data_directory()
        founding = _founding(recipe, model, base or Path(), allow_code, ranks)
        again = _hosted_again(home, founding, hub) if ranks is None else None
        if again is not None:
            again.leave()
            return join(again.invite, model, name=name, directory=home, listen=listen, keep=keep, watch=watch)
        if not hub:
            place = home / "hubs" / f"{recipe.name}-{secrets.token_hex(4)}"
            hub = launch_hub(place, host=listen, nats=nats).invite
        run = _start(hub, home, name, listen, watch, trains=True, keep=keep)
        return _begun(run, founding, model, home, ranks)


def join(
    invite: str,
    model: torch.nn.Module | None = None,
    *,
    name: str = "",
    directory: Path | str | None = None,
    listen: str = "0.0.0.0",  # noqa: S104 – as in host
    trains: bool = True,
    keep: Keep = USUAL,
    watch: Callable[[str], None] | None = None,
) -> Run:
    """Join a run. With a model: returns once it holds the run's parameters. Arguments as in ``host``.

    Called again in one process, for a run that it takes part in from the same directory, the peer that is
    there to do the same leaves first, and comes back with the model given now.

    Where ``torch.distributed`` is initialised with several ranks, all of them call this with their model (in
    ``DistributedDataParallel``, or given to ``fully_shard``) and are one peer; rank 0 alone speaks with
    others. So it is with ``host`` and ``resume``.

    Args:
        invite: what the host's ``potluck host`` printed.
        trains: False only follows: the state is kept up to date, nothing is contributed.

    Raises:
        InviteError: mistyped, truncated, expired, or for another run.
        ModelMismatch: the model is not the run's.
        PotluckError: the hub can't be reached, or the disk or the network fails.
    """
    ranks = _ranks(model)
    if ranks is not None and model is not None and not ranks.speaks:
        return _beside(ranks, model)
    with _speaking(ranks):
        home = Path(directory) if directory is not None else data_directory()
        if ranks is None:
            _leave_first(home, Invite.parse(invite).run, trains)
        run = _start(invite, home, name, listen, watch, trains=trains, keep=keep)
        return _begun(run, None, model, home, ranks)


def resume(
    source: Path | str,
    model: torch.nn.Module | None = None,
    *,
    name: str = "",
    directory: Path | str | None = None,
    listen: str = "0.0.0.0",  # noqa: S104 – as in host
    nats: Nats | None = None,
    keep: Keep = USUAL,
    watch: Callable[[str], None] | None = None,
) -> Run:
    """Go on with a run from one peer's disk, or an archive, when its hub and all other peers are lost.

    A new hub is started and gets the same records in the same order; others join with its invite, with
    their own disks if they have them. Arguments as in ``host``.

    Args:
        source: a peer's directory, or the data directory that holds it, or an archive's URL.
        directory: where keys and runs are kept; by default where ``source`` stands, if it stands in one. Else
            what is needed of ``source`` is copied there.

    Raises:
        UsageError: there is no copy of a run, or its peer or its hub is up.
        StoreError: ``source`` does not hold enough, and what is missing.
        CorruptData: its journal is damaged or altered, and where.
        PotluckError: as ``host``.
    """
    ranks = _ranks(model)
    if ranks is not None and model is not None and not ranks.speaks:
        return _beside(ranks, model)
    with _speaking(ranks):
        prepared = prepare(source, Path(directory) if directory is not None else None)
        with _released(prepared.claimed):
            if prepared.warning:
                (watch or log.warning)(prepared.warning)
            hubs, recipe = prepared.home / "hubs", Recipe.from_toml(prepared.genesis.recipe)
            launched = launch_hub(
                hubs / f"{recipe.name}-{secrets.token_hex(4)}",
                host=listen,
                run=prepared.genesis.run,
                nats=nats,
            )
            place = _place(prepared.claimed, prepared.directory, name, listen, keep)
            run = Run(Invite.parse(launched.invite), prepared.claimed, place, watch)
        return _begun(run, None, model, prepared.home, ranks)


def _begun(
    run: Run, founding: Founding | None, model: torch.nn.Module | None, home: Path, ranks: Ranks | None
) -> Run:
    run._begin(founding)
    if model is not None:
        try:
            with _speaking(ranks):
                run._adopt(model, ranks)
        except BaseException:
            run.leave()
            raise
    _here[run] = home.absolute()
    run._gone = lambda: _forget(run)
    return run


def _forget(run: Run) -> None:
    _here.pop(run, None)


def _ranks(model: torch.nn.Module | None) -> Ranks | None:
    """The ranks of this peer, if there are several and they train a model."""
    if model is None:
        return None
    from potluck.peer.ranks import Ranks, spread_over_ranks
    from potluck.peer.values import signed

    return Ranks(signed(model)) if spread_over_ranks() else None


def _speaking(ranks: Ranks | None) -> contextlib.AbstractContextManager[None]:
    """What fails inside is told to the other ranks."""
    return contextlib.nullcontext() if ranks is None else ranks.speaking()


def _beside(ranks: Ranks, model: torch.nn.Module) -> Run:
    """This is not rank 0: join, host or resume with it."""
    from potluck.peer.trainer import Trainer

    listener = Listener(ranks)
    try:
        trainer = Trainer(model, listener, ranks)
        joined = listener.obey(trainer)
    except BaseException:
        ranks.close()
        raise
    return Run(Invite.parse(joined.invite), None, Elsewhere(listener, joined), None)._beside(trainer)


def _there(home: Path) -> list[Run]:
    """Runs that this process takes part in from a directory."""
    return [run for run, place in _here.items() if place == home.absolute()]


def _hosted_again(home: Path, founding: Founding, hub: str) -> Run | None:
    """The run that this process takes part in already, if what it hosts now would be the same once more."""
    for run in _there(home):
        genesis = run._node.genesis
        same = (genesis.recipe, genesis.tensors) == (founding.recipe.to_toml(), founding.tensors)
        if same and run.over is None and (not hub or Invite.parse(hub).run == genesis.run):
            log.warning("this process hosts this run already: it goes on in it, with the model given now")
            return run
        log.warning("this process still takes part in run %s: run.leave() ends that", genesis.run)
    return None


def _leave_first(home: Path, run_id: str, trains: bool) -> None:
    """One that trains may have another beside it that only follows."""
    for run in _there(home):
        if run._node.genesis.run == run_id and run._place.trains == trains:
            log.warning("this process takes part in this run already: it leaves, and comes back")
            run.leave()


def _start(
    text: str,
    home: Path,
    name: str,
    listen: str,
    watch: Callable[[str], None] | None,
    *,
    trains: bool,
    keep: Keep,
) -> Run:
    invite = Invite.parse(text)
    claimed = claim_for(home, invite.run)
    with _released(claimed):
        place = _place(claimed, home / "runs" / invite.run / claimed.directory.name, name, listen, keep)
        return Run(invite, claimed, replace(place, trains=trains), watch)


def _place(claimed: Claim, directory: Path, name: str, listen: str, keep: Keep) -> Place:
    who = name or f"{platform.node()}-{claimed.directory.name.rpartition('-')[2]}"
    return Place(claimed.identity, directory, who, listen, keep=keep)


@contextlib.contextmanager
def _released(claimed: Claim) -> Iterator[None]:
    """Released if something fails inside; else it is the run's."""
    try:
        yield
    except BaseException:
        claimed.release()
        raise


def _founding(
    recipe: Recipe, model: torch.nn.Module | None, base: Path, allow_code: str, ranks: Ranks | None
) -> Founding:
    """What the first peer brings: of its own model, or of the recipe's task."""
    from potluck.data.blocks import blocks_of
    from potluck.peer.frozen import Frozen
    from potluck.peer.handover import Handover
    from potluck.peer.trainer import Trainer
    from potluck.tasks import prepare, task

    assets: dict[str, bytes] = {}
    blocks = blocks_of(recipe.data.samples, recipe.data.block) if recipe.data.samples else 0
    if model is None:
        assets = prepare(recipe, base, allow_code)
        work = task(recipe, assets, allow_code)
        model, blocks = work.model(base=base), work.blocks
    trainer = Trainer(model, Handover(lambda *_: None), ranks)
    if ranks is not None:
        ranks.tell(Read())
    frozen = Frozen(model) if ranks is None else None
    return Founding(recipe, trainer.tensors, trainer.read(), assets, blocks, frozen)
