"""What can go wrong while a plan runs."""

from pathlib import Path

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
    operation
        Position in the stage's program of what failed, where it is known.
    log
        File of what the process printed, where that is kept.
    """

    def __init__(
        self, replica: int, stage: int, reason: str, operation: int | None = None, log: Path | None = None
    ) -> None:
        self.replica, self.stage, self.reason, self.operation = replica, stage, reason, operation
        lines = reason.strip().splitlines() or ["no reason given"]
        line = lines[0] if lines[0].startswith("the process ") else lines[-1]
        printed = "" if log is None else f"; what it printed is in {log}"
        super().__init__(f"replica {replica}, stage {stage} failed: {line.strip()}{printed}; {_remedy(reason)}")


def _remedy(reason: str) -> str:
    if is_out_of_memory(reason):
        return "plan with less memory_gib per GPU, or more stages"
    return "no adapter was written; correct the cause and run again"


def is_out_of_memory(reason: str) -> bool:
    """Return whether the end of a traceback says that the GPU's or the host's memory did not suffice."""
    return any(words in reason.lower() for words in ("out of memory", "can't allocate memory", "memoryerror"))
