"""The independent check of plans."""

from cappuccino.checker.certificate import BoundReport, bound_report
from cappuccino.checker.checker import CheckReport, check
from cappuccino.checker.figures import RELATIVE_TOLERANCE
from cappuccino.checker.violation import Violation

__all__ = ["RELATIVE_TOLERANCE", "BoundReport", "CheckReport", "Violation", "bound_report", "check"]
