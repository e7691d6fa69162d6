"""The command line: ``potluck`` and ``python -m potluck``.

What each command needs is imported when it runs, so that ``potluck --help`` costs nothing. Environment
variables are read here and nowhere else; the order is argument, environment, default.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from potluck.app.interrupts import Interrupts, Leaving
from potluck.app.output import Output
from potluck.errors import PotluckError, UsageError

EXIT_CODES = (
    "Exit codes: 0 done, or the run is over; 1 something failed; 2 a wrong argument, recipe or invite; "
    "130 ended by Ctrl-C; 143 ended by SIGTERM (a preempted peer: start it again)."
)

TRAINING_PACKAGES = ("torch", "transformers", "tokenizers", "huggingface_hub")

app = typer.Typer(
    help="Train one neural network together, on computers that nobody has to own all of.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Home = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        metavar="DIR",
        envvar="POTLUCK_DIRECTORY",
        help="Where keys and runs are kept (default: this user's data directory).",
    ),
]
Listen = Annotated[
    str, typer.Option(metavar="HOST", help="Address of this machine to listen on; 127.0.0.1 stays on it.")
]
Name = Annotated[str, typer.Option(help="What others see (default: this machine's name).")]
Threads = Annotated[
    int, typer.Option(min=0, help="Threads to compute with; 0 is this peer's share of the machine's cores.")
]
InviteText = Annotated[
    str, typer.Argument(metavar="INVITE", help="What `potluck host` printed: potluck:…", show_default=False)
]
AllowCode = Annotated[
    str,
    typer.Option(
        metavar="MODULE:FUNCTION",
        envvar="POTLUCK_ALLOW_CODE",
        help="A task of your own that may run here, if the recipe names it.",
    ),
]
EVERYWHERE = "0.0.0.0"  # noqa: S104 – friends' machines are elsewhere; admission is by invite
SHAKESPEARE = "shakespeare"


@dataclass(frozen=True)
class Machine:
    """Options: what this machine gives to a run and runs of it, and keeps."""

    listen: Listen = EVERYWHERE
    threads: Threads = 0
    keep_snapshots: Annotated[
        int, typer.Option(min=2, help="How many recorded snapshots stay on this disk, and all rounds since.")
    ] = 2
    keep_best: Annotated[
        bool,
        typer.Option(help="What the best evaluated state follows from stays on this disk as well."),
    ] = True
    archive: Annotated[
        str,
        typer.Option(metavar="URL", help="Copy snapshots and journal there too: any URL that fsspec writes."),
    ] = ""
    allow_code: AllowCode = ""


def _file(what: str) -> Any:
    return typer.Option(metavar="FILE", help=f"With --nats: {what}.")


@dataclass(frozen=True)
class Site:
    """Options: the NATS that a site runs already."""

    nats: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="POTLUCK_NATS",
            show_envvar=True,
            help="Your site's own NATS keeps the ledger: nats:// or tls://, with commas between several.",
        ),
    ] = ""
    nats_creds: Annotated[str, _file("credentials, as nsc writes them, or an nkey's seed")] = ""
    nats_ca: Annotated[str, _file("the authority of its certificates, PEM")] = ""
    nats_cert: Annotated[str, _file("the certificate that we show, PEM")] = ""
    nats_key: Annotated[str, _file("the key of that, PEM")] = ""

    def named(self) -> Any:
        """As ``potluck.Nats``; ``None`` when none is named.

        Raises:
            UsageError: it does not make sense.
        """
        from potluck.hub.site import Nats

        if self.nats:
            return Nats(self.nats, self.nats_creds, self.nats_ca, self.nats_cert, self.nats_key)
        if self != Site():
            raise UsageError("whose credentials and certificates are these? Name the NATS with --nats URL")
        return None


Source = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="A peer's directory, or the data directory it is in.", show_default=False
    ),
]


AnySource = Annotated[
    str,
    typer.Argument(
        metavar="INVITE|DIR", help="An invite; or as for verify, or an archive's URL.", show_default=False
    ),
]


@dataclass(frozen=True)
class Which:
    """Options: which of a run's states, and how it is written."""

    best: Annotated[bool, typer.Option("--best", help="The best evaluated state, not the last one.")] = False
    after: Annotated[
        int | None,
        typer.Option("--round", min=0, metavar="N", show_default=False, help="The state after a round."),
    ] = None
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a run with task.lora: the whole model, not its adapters.")
    ] = False


COMMON = {
    "json": Annotated[bool, typer.Option("--json", help="One JSON object a line; the last is the summary.")],
    "plain": Annotated[bool, typer.Option("--plain", help="No colours and no live line.")],
    "verbose": Annotated[bool, typer.Option("--verbose", help="Logs, and an error's traceback.")],
}


def command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Make a command of a function whose first parameter is where its words go; it returns the exit code.

    Every command has the options of ``COMMON`` besides its own, and shows each error in one line. A parameter
    of a dataclass stands for its fields, as options.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    own: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in list(inspect.signature(function, eval_str=True).parameters.values())[1:]:
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            own += _options(parameter.annotation)
        else:
            own.append(parameter.replace(kind=keyword))

    def run(*, json: bool, plain: bool, verbose: bool, **given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{entry.name: given.pop(entry.name) for entry in fields(group)})
        out = Output(json=json, plain=plain, verbose=verbose)
        raise typer.Exit(_guarded(out, functools.partial(function, out, **given)))

    common = [inspect.Parameter(n, keyword, default=False, annotation=kind) for n, kind in COMMON.items()]
    parameters = own + common
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(function.__name__, help=function.__doc__, epilog=EXIT_CODES)(run)
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass of options, as parameters."""
    kinds, keyword = get_type_hints(group, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(entry.name, keyword, default=entry.default, annotation=kinds[entry.name])
        for entry in fields(group)
    ]


def _guarded(out: Output, work: Callable[[], int | None]) -> int:
    """The exit code of a command; whatever went wrong is said in words."""
    _log(out.verbose)
    try:
        with Interrupts(out):
            return work() or 0
    except Leaving as leaving:
        return leaving.code
    except PotluckError as error:
        return _failed(out, error, str(error), 2 if isinstance(error, UsageError) else 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_PACKAGES:
            raise
        return _failed(out, error, f"this needs the package {package}: pip install 'potluck[train]'", 2)
    finally:
        out.restore()


def _failed(out: Output, error: Exception, text: str, code: int) -> int:
    if out.verbose:
        logging.getLogger("potluck").error("%s", text, exc_info=error)
    out.error(text, code)
    return code


def _log(verbose: bool) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    else:
        # All that a user needs to know is told by events and errors, in words; without a handler of its own
        # Python would print warnings besides.
        logging.getLogger("potluck").addHandler(logging.NullHandler())


def _home(directory: Path | None) -> Path:
    from potluck.identity import data_directory

    return directory if directory is not None else data_directory()


def _part(home: Path, name: str, machine: Machine, *, trains: bool, nats: Any = None) -> Any:
    from potluck.app.work import Part
    from potluck.store.keep import Keep

    keep = Keep(machine.keep_snapshots, machine.archive, machine.keep_best)
    return Part(home, name, machine.listen, machine.threads, trains, keep, nats, machine.allow_code)


@command
def hub(
    out: Output,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[add|token]",
            show_default=False,
            help="add TOKEN: help the hub of a run as one of three. token: show a hub's token.",
        ),
    ] = "",
    token: Annotated[
        str, typer.Argument(metavar="[TOKEN]", show_default=False, help="potluck-hub:… Keep it to yourself.")
    ] = "",
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The hub's own directory (default: hubs/main in the data directory)."
        ),
    ] = None,
    listen: Listen = EVERYWHERE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is that of last time, or any.")] = 0,
    valid: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="How long the invite holds; 0: for ever.")
    ] = 30,
    replace: Annotated[
        int, typer.Option(min=0, max=3, metavar="SEAT", help="With add: of the hub that is lost for good.")
    ] = 0,
    site: Site = Site(),
) -> None:
    """Run a hub in the foreground. On the directory of an earlier one it goes on where that was."""
    from potluck.app.hub import enlistment, run_hub, show_token

    home = os.environ.get("POTLUCK_DIRECTORY")
    directory = directory or _home(Path(home) if home else None) / "hubs" / "main"
    if what == "token" and not token:
        show_token(out, directory)
    else:
        run_hub(out, directory, listen, port, valid, enlistment(what, token, replace), site.named())


@command
def host(
    out: Output,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A file, or a recipe's name.")
    ] = SHAKESPEARE,
    name: Name = "",
    directory: Home = None,
    hub: Annotated[
        str, typer.Option(metavar="INVITE", help="Of a hub that is up (default: start one).")
    ] = "",
    resume: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Go on with the run on a peer's disk or in an archive, when all else is lost.",
        ),
    ] = "",
    site: Site = Site(),
    machine: Machine = Machine(),
) -> int:
    """Start a run, or bring one back from a peer's disk, and train in it as its first peer."""
    from potluck.app.work import host_run, resume_run
    from potluck.peer.resume import home_for

    if resume and (hub or recipe != SHAKESPEARE):
        raise UsageError(
            "--resume goes on with the run on that disk, on a new hub: give no recipe and no --hub"
        )
    if hub and site.nats:
        raise UsageError(
            "the hub of --hub has its ledger already: leave --nats out, and unset POTLUCK_NATS if that is set"
        )
    home = home_for(resume, directory) if resume else _home(directory)
    part = _part(home, name, machine, trains=True, nats=site.named())
    return resume_run(out, resume, part) if resume else host_run(out, recipe, hub, part)


@command
def join(
    out: Output,
    invite: InviteText,
    name: Name = "",
    directory: Home = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep the state, but train nothing.")] = False,
    machine: Machine = Machine(),
) -> int:
    """Join a run with nothing but its invite, and train in it."""
    from potluck.app.work import join_run

    return join_run(out, invite, _part(_home(directory), name, machine, trains=not follow))


@command
def leave(
    out: Output,
    run: Annotated[str, typer.Option(metavar="RUN", help="Of this run only (default: of all).")] = "",
    directory: Home = None,
) -> int:
    """Ask this machine's peers to leave, and wait until they have."""
    from potluck.app.leave import leave_runs

    return leave_runs(out, _home(directory), run)


@command
def status(out: Output, invite: InviteText) -> None:
    """What a run is doing, and who is in it."""
    from potluck.app.status import show_status

    show_status(out, invite)


@command
def log(
    out: Output,
    source: AnySource,
    last: Annotated[int, typer.Option("-n", min=0, metavar="N", help="The last N events only (0: all).")] = 0,
) -> None:
    """What happened in a run, an event a line, as its ledger has it."""
    from potluck.app.log import show_log

    show_log(out, source, last)


@command
def export(
    out: Output,
    source: AnySource,
    to: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Made by this.", show_default=False)],
    which: Which = Which(),
    push: Annotated[
        str, typer.Option(metavar="REPO", help="Put it into this repository on the Hugging Face Hub too.")
    ] = "",
    directory: Home = None,
    listen: Listen = EVERYWHERE,
    allow_code: AllowCode = "",
) -> None:
    """Write the run's model, with a model card, into a directory that transformers reads."""
    from potluck.app.export import Wanted, export_model

    wanted = Wanted(source, to, which.best, which.after, push, which.merged, allow_code)
    export_model(out, wanted, _home(directory), listen)


@command
def verify(out: Output, source: Source) -> None:
    """Replay a peer's copy of a run from its disk, and check every digest in it."""
    from potluck.app.disk import verify_disk

    verify_disk(out, source)


@command
def fork(
    out: Output,
    source: Source,
    to: Annotated[Path, typer.Argument(metavar="NEWDIR", help="Made by this.", show_default=False)],
    after: Annotated[
        int, typer.Option("--round", min=0, metavar="N", show_default=False, help="Of that run.")
    ],
) -> None:
    """Begin a new run with the state that a run on a peer's disk had after a round."""
    from potluck.app.disk import fork_run

    fork_run(out, source, after, to)


@command
def demo(
    out: Output,
    seconds: Annotated[float, typer.Option(min=10, help="About how long to train.")] = 90,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep everything here, the model too.")
    ] = None,
) -> int:
    """A whole run on this machine, with deaths and a joiner."""
    run_demo = import_module("potluck.app.demo").run_demo
    code: int = run_demo(seconds=seconds, json=out.json, plain=out.plain, keep=keep)
    return code


@command
def sim(
    out: Output,
    seed: Annotated[int, typer.Option(min=0, help="What all chance follows from.")] = 0,
    peers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="6, unless told otherwise.", show_default=False)
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Virtual time with faults; a calm one follows.")
    ] = 5,
    faults: Annotated[str, typer.Option(help="none, light or heavy.")] = "light",
    scenario: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What goes wrong, as text, instead of all that.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Instead, the worlds of so many seeds from this one on: small ones, or of --peers each.",
        ),
    ] = 0,
    within: Annotated[
        float | None,
        typer.Option(min=0, metavar="MINUTES", show_default=False, help="Of many seeds those until then."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes for many seeds.")] = 2,
    shrink: Annotated[bool, typer.Option(help="Look for the smallest scenario that still fails.")] = True,
    show: Annotated[bool, typer.Option("--print", help="Only print the scenario, to be edited.")] = False,
) -> int:
    """A swarm in virtual time, with faults made up from a seed: is every invariant kept?"""
    from potluck.app.sim import Wanted, simulate

    return simulate(out, Wanted(seed, peers, minutes, faults, scenario, seeds, within, jobs, shrink, show))


def main() -> None:
    """Run the command that the process's arguments name, and end the process with its exit code."""
    try:
        app(prog_name="potluck")
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int):
            # All is closed by now, and PyTorch takes seconds to be torn down: a preempted peer has few.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(end.code)
        raise
