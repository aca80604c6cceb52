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
    kept
        What the run leaves and how to go on, in words.
    """

    def __init__(
        self,
        replica: int,
        stage: int,
        reason: str,
        operation: int | None = None,
        *,
        log: Path | None = None,
        kept: str = "nothing was kept; run again",
    ) -> None:
        self.replica, self.stage, self.reason, self.operation, self.log = replica, stage, reason, operation, log
        lines = reason.strip().splitlines() or ["no reason given"]
        line = lines[0] if lines[0].startswith("the process ") else lines[-1]
        printed = "" if log is None else f"; what it printed is in {log}"
        super().__init__(f"replica {replica}, stage {stage} failed: {line.strip()}{printed}; {_remedy(reason)}; {kept}")


def _remedy(reason: str) -> str:
    if is_out_of_memory(reason):
        return "plan with less memory_gib per GPU, or more stages"
    return "correct the cause"


def is_out_of_memory(reason: str) -> bool:
    """Return whether the end of a traceback says that the GPU's or the host's memory did not suffice."""
    return any(words in reason.lower() for words in ("out of memory", "can't allocate memory", "memoryerror"))
