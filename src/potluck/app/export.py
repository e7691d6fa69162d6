"""``potluck export``: the run's model as a directory that transformers reads."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from potluck.app.hub import with_hub
from potluck.app.output import Output, figure
from potluck.app.work import quiet_libraries
from potluck.errors import EnvironmentProblem, UsageError
from potluck.run import Run
from potluck.start import join
from potluck.wire.invite import Invite

ALONE_S = 10.0
"""How long a run without anybody who has its state is waited for, in seconds."""

LOOK_S = 0.2
"""How often the state is looked for, in seconds."""


@dataclass(frozen=True)
class Wanted:
    """What is written, and where: the model, or its adapters unless they are ``merged`` into it; by own code
    only if that is allowed here.
    """

    directory: Path
    merged: bool = False
    allow_code: str = ""


def export(out: Output, invite: str, wanted: Wanted, home: Path, listen: str) -> None:
    """Follow the run to its head, and write its model.

    Raises:
        UsageError: the run is one of own code, the directory holds other files, or nothing is to be merged.
        EnvironmentProblem: nobody who is there has the run's state.
        PotluckError: as ``potluck.join``.
    """
    parsed = Invite.parse(invite)
    out.status(f"asking the hub of run {parsed.run} to let this machine in")

    def reach() -> Run:
        return join(invite, name="export", directory=home, listen=listen, trains=False)

    run = with_hub(out, parsed, home, listen, reach)
    with run:
        if run.recipe.task.kind == "custom":
            raise UsageError(
                "this run trains its host's own code, so only that code can make its model: join in Python "
                "with potluck.join(invite, model, trains=False) and save the model there"
            )
        from potluck.tasks import permit, task

        permit(run.recipe, wanted.allow_code)
        lora = run.recipe.task.lora.rank > 0
        if wanted.merged and not lora:
            raise UsageError(
                "this run trains the whole model, so there is nothing to merge: leave --merged out"
            )
        _wait_for_state(out, run)
        quiet_libraries()
        work = task(run.recipe, run.task_files(), wanted.allow_code)
        model = work.model()
        run.adopt(model)
    # Leaving has put the shared state into the model.
    out.status("writing the model")
    work.export(model, wanted.directory, merged=wanted.merged)
    what = "the adapters" if lora and not wanted.merged else "the model"
    out.summary(
        f"{what} of round {run.round} (loss {figure(run.view.loss, 3)}), in {wanted.directory}",
        *_next(run, invite, wanted),
        code=0,
        run=parsed.run,
        round=run.round,
        state=run.state.state,
        directory=str(wanted.directory),
    )


def _next(run: Run, invite: str, wanted: Wanted) -> list[tuple[str, str]]:
    """What can be done with an export, and by which command."""
    task = run.recipe.task
    if task.lora.rank and not wanted.merged:
        return [("write the whole model", f"potluck export {invite} {wanted.directory} --merged")]
    return [("let it write", generate(wanted.directory))] if task.kind == "causal-lm" else []


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


def generate(directory: Path) -> str:
    """The command by which transformers reads an export and goes on writing from a prompt."""
    code = (
        "from transformers import pipeline; "
        f'write = pipeline("text-generation", {json.dumps(str(directory), ensure_ascii=False)}); '
        'print(write("ROMEO.", max_new_tokens=60)[0]["generated_text"])'
    )
    return f"python -c {shlex.quote(code)}"
