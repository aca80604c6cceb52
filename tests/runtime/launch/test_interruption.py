"""Signals are counted while a run looks for them, and end the program elsewhere."""

import os
import signal

import pytest

from cappuccino.runtime.launch.interruption import InterruptedRunError, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_counted_and_the_first_is_told(number: int) -> None:
    told: list[int] = []
    before = signal.getsignal(number)
    with interruptible(lambda: told.append(1)) as interruption:
        with interruption.heeded():
            for count in (1, 2):
                os.kill(os.getpid(), number)
                assert interruption.signals == count
        assert told == [1]
        with pytest.raises(InterruptedRunError, match="training was not under way; run again"):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
