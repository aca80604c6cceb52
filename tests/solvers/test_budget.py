import os
import signal

import pytest
from helpers.builders import make_costs, make_instance
from helpers.spaces import context_of

from cappuccino.solvers.allocation.allocator import Allocator
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Incumbent
from cappuccino.solvers.budget import Clock, InterruptedSearchError, interrupted, interruptible


def test_parts_of_a_clock_end_before_it():
    whole = Clock(1000.0)
    assert whole.part(0.25).left <= 250.0
    assert not whole.over
    assert Clock(0.0).over
    assert Clock(None).part(0.5).left is None


def test_the_first_interrupt_ends_all_clocks_and_the_second_interrupts():
    said: list[bool] = []
    clock = Clock(1000.0)
    with pytest.raises(KeyboardInterrupt), interruptible(lambda: said.append(interrupted())):
        assert not clock.over
        os.kill(os.getpid(), signal.SIGINT)
        assert said == [True]
        assert clock.over
        assert (clock.left, Clock(None).left) == (0.0, 0.0)
        os.kill(os.getpid(), signal.SIGINT)
    assert said == [True]
    assert not interrupted()
    assert not clock.over
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_before_there_is_a_plan_is_said(monkeypatch):
    monkeypatch.setattr(Incumbent, "offer", lambda self, replicas: False)  # nothing meets the deadline
    space = ReplicaSpace.of(make_instance(([4], 1), gpus=1), {"x": make_costs(stages=(1,))})
    allocator = Allocator(context_of(space, deadline_s=100.0, clock=Clock(1000.0)), Clock(1000.0))
    with interruptible(lambda: None), pytest.raises(InterruptedSearchError, match="nothing was written"):
        os.kill(os.getpid(), signal.SIGINT)
        allocator.run()
