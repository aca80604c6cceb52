"""Calls in a process of their own: results, errors and memory come back."""

import operator
import os
from pathlib import Path

import pytest

from cappuccino.errors import CappuccinoError
from cappuccino.files import read_text
from cappuccino.library.isolation import ProcessError, run_isolated


def test_the_result_comes_back_with_its_memory():
    large, small = run_isolated(operator.mul, b"x", 200 * 2**20), run_isolated(operator.mul, 2, 3)
    assert (len(large[0]), small[0]) == (200 * 2**20, 6)
    assert large[1] - small[1] > 0.19
    assert small[1] < 0.2  # neither what this process has nor what the other one had


def test_a_users_error_keeps_its_message():
    with pytest.raises(CappuccinoError, match=r"absent\.json: file not found; check the path"):
        run_isolated(read_text, Path("absent.json"))


def test_any_other_error_is_named():
    with pytest.raises(ProcessError, match="truediv failed: ZeroDivisionError"):
        run_isolated(operator.truediv, 1, 0)


def test_a_process_that_dies_is_no_result():
    with pytest.raises(ProcessError, match=r"_exit ended without a result \(exit code 3\)"):
        run_isolated(os._exit, 3)
