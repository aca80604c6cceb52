"""The examples in the documentation of the calls."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(("module", "examples"), [("api.planning", 6), ("api.checking", 15), ("plan", 6)])
@pytest.mark.filterwarnings("ignore::cappuccino.errors.CappuccinoWarning")
def test_examples_do_as_they_say(module: str, examples: int) -> None:
    done = doctest.testmod(importlib.import_module(f"cappuccino.{module}"))
    assert (done.failed, done.attempted) == (0, examples)
