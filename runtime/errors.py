"""What can go wrong while a plan runs."""

from cappuccino.errors import CappuccinoError


class RunError(CappuccinoError):
    """A process of a replica ended before its program did.

    Parameters
    ----------
    replica
        Id of the replica.
    stage
        Pipeline stage whose process failed first.
    reason
        The last lines that the process wrote, or how it ended.
    """

    def __init__(self, replica: int, stage: int, reason: str) -> None:
        self.replica, self.stage, self.reason = replica, stage, reason
        super().__init__(f"replica {replica}, stage {stage} failed: {reason}")
