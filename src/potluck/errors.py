"""Every error that Potluck raises.

    PotluckError
    ├── UsageError            ours to say, yours to mend: a wrong argument, recipe or command
    │   ├── RecipeError       the recipe does not make sense
    │   ├── InviteError       mistyped, truncated, expired, or for another run
    │   └── ModelMismatch     your model is not the run's model
    ├── RemoteError           another machine's doing
    │   ├── ProtocolError     it sent what no version of us would send
    │   ├── VersionMismatch   it speaks another wire version
    │   ├── Refused           it said no (not admitted, late, unknown)
    │   └── CorruptData       bytes that are not what their digest says
    └── EnvironmentProblem    the machine's or the network's
        ├── Unreachable       nobody answers there
        ├── ConnectionLost    somebody did, and stopped
        ├── LedgerConflict    another record took that sequence (try again on top of it)
        ├── LedgerUnavailable the hub is away (training goes on; commits wait)
        └── StoreError        disk full, no permission, torn file

``RunOver`` is no error: like ``StopIteration`` it ends the training loop when the run has reached
its goal, and the ``with`` block of a run swallows it.

A message says what happened, to whom, and what to do next.
"""


class PotluckError(Exception):
    """Base of all errors here."""


class UsageError(PotluckError):
    """The caller can mend it."""


class RecipeError(UsageError):
    """The recipe does not make sense."""


class InviteError(UsageError):
    """The invite is mistyped, truncated, expired, or for another run."""


class ModelMismatch(UsageError):
    """The model given is not the model of the run."""


class RemoteError(PotluckError):
    """Another machine did something that we can't accept."""


class ProtocolError(RemoteError):
    """A message that no version of this protocol sends: malformed, oversize, out of place."""


class VersionMismatch(RemoteError):
    """The other side speaks another wire version."""


class Refused(RemoteError):
    """The other side said no, and why."""


class CorruptData(RemoteError):
    """Bytes that are not what their digest, size or type says."""


class EnvironmentProblem(PotluckError):
    """The machine or the network is at fault."""


class Unreachable(EnvironmentProblem):
    """Nobody answers at any of the addresses."""


class ConnectionLost(EnvironmentProblem):
    """The other side closed, died, or went silent."""


class LedgerConflict(EnvironmentProblem):
    """Another record already stands at the sequence that was asked for."""


class LedgerUnavailable(EnvironmentProblem):
    """The ledger can't be reached right now."""


class StoreError(EnvironmentProblem):
    """The disk is full, refuses, or returned something else than was written."""


class RunOver(Exception):
    """The run has reached its goal; the loop ends here."""
