"""What the launcher and the process of a stage say to each other over two pipes."""

import os
from datetime import timedelta

OPERATION, PART = b".", b"w"
"""What a stage writes on standard output: an operation is finished, a part of a checkpoint is written."""
CHECKPOINTS = b"c"
"""What it reads on standard input: write checkpoints after every step. The end of the input ends it."""
PATIENCE = timedelta(days=7)
"""How long stages wait for each other: the launcher ends the others when one fails, so none needs to give up."""


class StageProgress:
    """How far a stage has come.

    Parameters
    ----------
    descriptor
        Of the file that gets one byte per operation, and one per part of a checkpoint.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.done: int | None = None
        """Operations finished; None before the program's begin."""

    def begin(self) -> None:
        """Note that the program begins."""
        self.done = 0

    def advance(self) -> None:
        """Note that an operation is finished."""
        self.done = (self.done or 0) + 1
        os.write(self._descriptor, OPERATION)

    def wrote_part(self) -> None:
        """Note that a part of a checkpoint is written; any thread may."""
        os.write(self._descriptor, PART)
