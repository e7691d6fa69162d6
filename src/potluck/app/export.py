"""``potluck export``: a state of the run as a directory that transformers reads, with a model card."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.app.card import CARD, Facts, card, file_digest
from potluck.app.disk import copy_at
from potluck.app.hub import with_hub
from potluck.app.output import Output, figure
from potluck.app.work import quiet_libraries
from potluck.errors import CorruptData, EnvironmentProblem, StoreError, UsageError
from potluck.peer.place import BASE
from potluck.peer.replay import Survey, state_after, survey
from potluck.peer.state import PeerState
from potluck.protocol.history import History
from potluck.recipe import Recipe
from potluck.recipe.kinds import KINDS
from potluck.run import Run
from potluck.start import join
from potluck.store.blobs import read_blob
from potluck.store.copies import Copy, DiskCopy
from potluck.wire.invite import Invite, is_invite

ALONE_S = 10.0
"""How long a run without anybody who has its state is waited for, in seconds."""

LOOK_S = 0.2
"""How often the state is looked for, in seconds."""

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for: options of ``potluck export``, by their names."""

    source: str
    to: Path
    best: bool = False
    after: int | None = None
    push: str = ""
    merged: bool = False
    allow_code: str = ""

    def adapters(self, recipe: Recipe) -> bool:
        """Whether nothing but adapters is written."""
        return recipe.task.lora.rank > 0 and not self.merged

    def whole(self) -> str:
        """The command that writes the model whole instead of its adapters."""
        state = ["--best"] if self.best else [] if self.after is None else ["--round", str(self.after)]
        return shlex.join(["potluck", "export", *state, self.source, str(self.to), "--merged"])

    def options(self, recipe: Recipe) -> str:
        """Those that another export of the same needs."""
        merged = " --merged" if self.merged else ""
        return merged + ("" if recipe.task.kind in KINDS else f" --allow-code {recipe.task.kind}")


def export_model(out: Output, wanted: Wanted, home: Path, listen: str) -> None:
    """Replay a copy of the run up to a state, and write its model; with an invite, follow the run first.

    Raises:
        UsageError: the run is one of own code, the directory holds other files, or there is no such state, or
            nothing to merge.
        EnvironmentProblem: nobody who is there has the state.
        CorruptData, StoreError: what it follows from is damaged or missing.
        PotluckError: as ``potluck.join``.
    """
    if wanted.best and wanted.after is not None:
        raise UsageError("the best state is that of a round of its own: give --best or --round, not both")
    if wanted.push:
        from potluck.app.push import token_for

        token_for(wanted.push)  # before anything takes long
    copy, at = _copied(out, wanted, home, listen)
    found = survey(copy)
    recipe = Recipe.from_toml(found.genesis.recipe)
    _check_kind(recipe, wanted)
    round_ = _round(found, wanted, at)
    out.status(f"replaying up to round {round_}")
    state = state_after(copy, found, round_)
    _check_judged(out, found, state, wanted)
    facts = _write(out, copy, found, state, wanted)
    pushed = _push(out, wanted)
    more: dict[str, Any] = {"pushed": wanted.push} if wanted.push else {}
    out.summary(
        f"{_what(recipe, wanted)} of round {round_} (loss {figure(_loss(facts, round_), 3)}), "
        f"in {wanted.to}{pushed}",
        *_next(recipe, wanted),
        code=0,
        run=found.genesis.run,
        round=round_,
        state=facts.state,
        sha256=facts.sha256,
        directory=str(wanted.to),
        **more,
    )


def _copied(out: Output, wanted: Wanted, home: Path, listen: str) -> tuple[Copy, int | None]:
    """A copy of the run; and with an invite the round up to which it was followed, or the best one then."""
    if not is_invite(wanted.source):
        return copy_at(wanted.source), None
    parsed = Invite.parse(wanted.source)
    out.status(f"asking the hub of run {parsed.run} to let this machine in")

    def reach() -> Run:
        return join(wanted.source, name="export", directory=home, listen=listen, trains=False)

    with with_hub(out, parsed, home, listen, reach) as run:
        _check_kind(run.recipe, wanted)
        _wait_for_state(out, run)
        if wanted.adapters(run.recipe):
            run.task_files()
        else:
            run.bring_files()
        best = run.bring_best(ALONE_S) if wanted.best else None
    assert run.directory is not None, "this is no rank of several"
    return DiskCopy(run.directory), run.round if best is None else best


def _check_kind(recipe: Recipe, wanted: Wanted) -> None:
    if recipe.task.kind == "custom":
        raise UsageError(
            "this run trains its host's own code, so only that code can make its model: join in Python "
            "with potluck.join(invite, model, trains=False) and save the model there"
        )
    from potluck.tasks import permit

    permit(recipe, wanted.allow_code)
    if wanted.merged and not recipe.task.lora.rank:
        raise UsageError("this run trains the whole model, so there is nothing to merge: leave --merged out")


def _what(recipe: Recipe, wanted: Wanted) -> str:
    return "the adapters" if wanted.adapters(recipe) else "the model"


def _next(recipe: Recipe, wanted: Wanted) -> list[tuple[str, str]]:
    """What can be done with an export, and by which command."""
    if wanted.adapters(recipe):
        return [("write the whole model", wanted.whole())]
    return [("let it write", generate(wanted.to))] if recipe.task.kind == "causal-lm" else []


def _wait_for_state(out: Output, run: Run) -> None:
    doing, since = "", time.monotonic()
    while run.state.phase != "following":
        now, mine = time.monotonic(), run.state
        others = [p for p in run.peers if p.peer != mine.peer and p.phase != "joining"]
        if others or mine.activity != doing:
            doing, since = mine.activity, now
        elif now - since > ALONE_S:
            raise EnvironmentProblem(
                f"nobody who is there has the state of this run ({doing}): run this on a machine that took "
                "part in it, or while somebody does"
            )
        out.status(doing)
        time.sleep(LOOK_S)


def _round(found: Survey, wanted: Wanted, at: int | None) -> int:
    """Of which round the state is wanted."""
    if wanted.after is not None:
        return wanted.after
    if wanted.best:
        best = found.view.evaluations.best
        if best is None:
            raise UsageError("no state of this run is evaluated yet: take the last one, without --best")
        return best.round if at is None else at
    head = found.view.round if at is None else at
    starts = [found.reach(start) for start in found.whole if start <= head]
    return min(head, max(starts, default=head))


def _check_judged(out: Output, found: Survey, state: PeerState, wanted: Wanted) -> None:
    """That the evaluation of a state is of that state: said if it is not, and refused as the best."""
    assert state.plane is not None
    judged, plane = found.view.evaluations.of.get(state.plane.round), state.plane
    if judged is None or plane.digest == judged.state:
        return
    amiss = (
        f"the state after round {judged.round} is {plane.digest[:12]} when replayed, and its evaluation "
        f"is of {judged.state[:12]}: whoever measured it had another state"
    )
    if wanted.best:
        raise CorruptData(f"{amiss}; take another one with --round")
    out.say("note", amiss)


def _write(out: Output, copy: Copy, found: Survey, state: PeerState, wanted: Wanted) -> Facts:
    """The model, its tokenizer and its card; returns what the card says."""
    quiet_libraries()
    from potluck.peer.frozen import Frozen, restore
    from potluck.peer.handover import Handover
    from potluck.peer.trainer import Trainer
    from potluck.tasks import task

    assert state.plane is not None
    recipe = Recipe.from_toml(found.genesis.recipe)
    blobs = [blob for blob in found.genesis.assets if blob.name != BASE]
    work = task(recipe, {blob.name: bytes(read_blob(copy, blob)) for blob in blobs}, wanted.allow_code)
    model = work.model()
    if not wanted.adapters(recipe):
        restore(Frozen(model), found.genesis, copy)
    Trainer(model, Handover(lambda *_: None)).write(state.plane.theta)
    out.status("writing the model")
    to = wanted.to
    work.export(model, to, merged=wanted.merged)
    history = History()
    for entry, _ in copy.records():
        for _ in history.follow(entry):
            pass
    files = sorted(to.glob("*.safetensors"))
    facts = Facts(
        recipe, history, state.plane.round, state.plane.digest, file_digest(files), wanted.options(recipe)
    )
    try:
        draft = to / f".{CARD}"
        draft.write_text(card(facts), "utf-8")
        os.replace(draft, to / CARD)
    except OSError as error:
        raise StoreError(f"the model card can't be written to {to}: {error}") from error
    return facts


def _loss(facts: Facts, round_: int) -> float | None:
    """The loss that is told with a state: of its evaluation, or of training at the head."""
    judged = next((e for e in facts.history.evaluations if (e.round, e.state) == (round_, facts.state)), None)
    if judged is not None and not judged.rises:
        return judged.metrics[0][1]
    return facts.history.view.loss if round_ == facts.history.view.round else None


def _push(out: Output, wanted: Wanted) -> str:
    if not wanted.push:
        return ""
    from potluck.app.push import push

    out.status(f"putting it into {wanted.push}")
    return f", and at {push(wanted.to, wanted.push)}"


def generate(directory: Path) -> str:
    """The command by which transformers reads an export and goes on writing from a prompt."""
    code = (
        "from transformers import pipeline; "
        f'write = pipeline("text-generation", {json.dumps(str(directory), ensure_ascii=False)}); '
        'print(write("ROMEO.", max_new_tokens=60)[0]["generated_text"])'
    )
    return f"python -c {shlex.quote(code)}"
