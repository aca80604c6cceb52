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
        How the process ended, on the first line, or the end of its traceback; the message has one line of it.
    """

    def __init__(self, replica: int, stage: int, reason: str) -> None:
        self.replica, self.stage, self.reason = replica, stage, reason
        lines = reason.strip().splitlines() or ["no reason given"]
        line = lines[0] if lines[0].startswith("the process ") else lines[-1]
        super().__init__(f"replica {replica}, stage {stage} failed: {line.strip()}; {_remedy(reason)}")


def _remedy(reason: str) -> str:
    if "out of memory" in reason.lower():
        return "plan with less memory_gib per GPU, or more stages"
    return "nothing was written; correct the cause and run again"
