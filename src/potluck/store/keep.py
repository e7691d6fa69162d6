"""What one machine keeps of a run besides what all peers must: its own choice."""

from __future__ import annotations

from dataclasses import dataclass

from potluck.errors import UsageError

LEAST_SNAPSHOTS = 2
"""All peers keep so many, with the parts of the rounds since the older one: joiners are served from them."""


@dataclass(frozen=True)
class Keep:
    """How much of a run this machine keeps, and where else.

    ``snapshots`` is how many of the run's recorded snapshots stay on the disk, with the parts of all rounds
    since the oldest of them; ``best``: so does what the best evaluated state follows from; ``archive`` is an
    fsspec URL to which each snapshot and the journal are copied, or empty.

    Raises:
        UsageError: fewer snapshots than all peers must keep.
    """

    snapshots: int = LEAST_SNAPSHOTS
    archive: str = ""
    best: bool = True

    def __post_init__(self) -> None:
        if self.snapshots < LEAST_SNAPSHOTS:
            raise UsageError(
                f"keeping {self.snapshots} snapshots is too few: joiners need the last {LEAST_SNAPSHOTS}"
            )


USUAL = Keep()
"""What every peer keeps, and nothing more."""
