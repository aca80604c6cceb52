"""Cappuccino plans and runs the fine-tuning of many LoRA adapters on one frozen backbone.

The names of `__all__` are stable. Each is imported when it is first used: planning needs no torch, and importing the
package needs nothing at all.

`plan` is the function. The module of the same name is reached as in `from cappuccino.plan import Replica`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cappuccino.api.checking import check, simulate
    from cappuccino.api.planning import plan
    from cappuccino.api.running import run
    from cappuccino.checker import CheckReport
    from cappuccino.errors import (
        CappuccinoError,
        CappuccinoWarning,
        InfeasibleError,
        InputError,
        InvalidPlanError,
        NoPlanFoundError,
    )
    from cappuccino.instance import Instance
    from cappuccino.plan import Plan
    from cappuccino.simulator import Simulation

__version__ = "0.1.0"

__all__ = [
    "CappuccinoError",
    "CappuccinoWarning",
    "CheckReport",
    "InfeasibleError",
    "InputError",
    "Instance",
    "InvalidPlanError",
    "NoPlanFoundError",
    "Plan",
    "Simulation",
    "__version__",
    "check",
    "plan",
    "run",
    "simulate",
]

_MODULES = {
    "Instance": "instance",
    "Plan": "plan",
    "CheckReport": "checker",
    "Simulation": "simulator",
    "plan": "api.planning",
    "check": "api.checking",
    "simulate": "api.checking",
    "run": "api.running",
}
"""Where the names are defined; all others in `errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose function `plan` the import of the module `cappuccino.plan` does not replace."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "plan" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
