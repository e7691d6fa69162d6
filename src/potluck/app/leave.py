"""``potluck leave``: ask this machine's peers to go, and wait until they have."""

from __future__ import annotations

from pathlib import Path

from potluck.app.output import Output, count
from potluck.app.processes import leave_all, processes
from potluck.errors import UsageError

PATIENCE_S = 20.0
"""How long leaving may take, in seconds: a peer stays up to ten for others once its run is over."""


def leave_runs(out: Output, home: Path, run: str) -> int:
    """Ask the peers of a run (of all runs, if none is named) to leave; returns the exit code.

    Raises:
        UsageError: this machine has no peer in that run, or it is another user's.
    """
    here = processes(home)
    wanted = [process for process in here if not run or process.run == run]
    if run and not wanted:
        runs = ", ".join(sorted({process.run for process in here})) or "none"
        raise UsageError(f"no peer of run {run!r} runs on this machine with {home}; runs with peers: {runs}")
    out.status(f"asking {count(len(wanted), 'peer')} to leave")
    stayed = 0
    for process, ended, took_s in leave_all(wanted, PATIENCE_S):
        stayed += not ended
        what = (
            f"left after {took_s:.1f} s"
            if ended
            else f"is still leaving: kill -9 {process.pid} ends it at once"
        )
        out.say(
            "left" if ended else "staying",
            f"{process.name} (process {process.pid}, run {process.run}) {what}",
            name=process.name,
            pid=process.pid,
            run=process.run,
            took_s=round(took_s, 2),
        )
    code = 1 if stayed else 0
    out.summary(
        f"{count(len(wanted) - stayed, 'peer')} left" if wanted else f"no peer runs here with {home}",
        code=code,
        left=len(wanted) - stayed,
        staying=stayed,
    )
    return code
