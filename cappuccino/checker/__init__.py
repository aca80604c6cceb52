"""The independent check of plans."""

from cappuccino.checker.checker import CheckReport, check
from cappuccino.checker.figures import RELATIVE_TOLERANCE
from cappuccino.checker.violation import Violation

__all__ = ["RELATIVE_TOLERANCE", "CheckReport", "Violation", "check"]
