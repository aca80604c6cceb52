"""Adapters to begin with: settings that mostly work, each with its reason, and sweeps of them."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cappuccino.adapter import MOST_NAME_LENGTH
from cappuccino.errors import InputError
from cappuccino.files import parse_model
from cappuccino.sweep import SHORT_NAMES, Sweep

ENOUGH_STEPS = 100
"""Optimizer steps that the default batch leaves to an adapter, where its data allow."""
BATCHES = (16, 8, 4)
"""Default batches, the largest that leaves enough steps; else the last."""
EPOCHS = ((10_000, 1), (1_000, 2), (0, 3))
"""Samples from which on there are so many default passes."""
EVALUATIONS = 4
"""In the training of an adapter with data for them."""
_STOPPING = "early_stopping_patience: 2 would end it after two that are no better"
_OPTION = "--sweep"


@dataclass(frozen=True)
class Setting:
    """A setting of an adapter with its reason."""

    name: str
    value: Any
    why: str
    general: bool = True
    """Whether the reason is the same for every adapter."""


@dataclass(frozen=True)
class NewAdapter:
    """An adapter, or a sweep of adapters, of one dataset."""

    name: str
    dataset: str
    settings: tuple[Setting, ...]
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try by setting."""

    def document(self) -> dict[str, Any]:
        """Return the entry in an instance file."""
        found = {"name": self.name, "dataset": self.dataset} | {s.name: s.value for s in self.settings}
        return found | ({"sweep": {k: list(v) for k, v in self.sweep.items()}} if self.sweep else {})


def new_adapter(
    name: str,
    dataset: str,
    samples: int,
    epochs: float | None,
    sweep: Mapping[str, tuple[Any, ...]],
    eval_dataset: str | None = None,
) -> NewAdapter:
    """Return the adapter of a dataset.

    Parameters
    ----------
    samples
        Of the dataset.
    epochs
        Passes over it; None: the fewer the more samples there are.
    sweep
        Values to try; their settings are left out otherwise.
    eval_dataset
        What it is evaluated on, if on anything.
    """
    whole = int(epochs) if epochs and epochs == int(epochs) else epochs
    passes = whole or next(number for least, number in EPOCHS if samples >= least)
    fewest = min(sweep.get("epochs", (passes,)))
    batch = next((b for b in BATCHES if samples * fewest >= ENOUGH_STEPS * b), BATCHES[-1])
    by_size = ", ".join(f"{number} from {least} samples on" for least, number in reversed(EPOCHS[:-1]))
    why_passes = "passes over the data" + ("" if epochs else f": {EPOCHS[-1][1]}, {by_size}")
    why_batch = f"samples a step: of {', '.join(map(str, BATCHES))} the largest that leaves {ENOUGH_STEPS} steps"
    steps = max(1, int(samples * fewest / batch))
    if "num_steps" not in sweep:
        why_batch += f"; here {steps} steps"
    settings = [
        Setting("target_modules", "all-linear", "or a list, such as [q_proj, k_proj, v_proj, o_proj]: faster, weaker"),
        Setting("rank", 16, "enough for most data; larger learns and costs more"),
        Setting("alpha", 32, "what is learnt counts alpha / rank; twice the rank is usual"),
        Setting("learning_rate", 2e-4, "usual for LoRA, some ten times that of training all weights"),
        Setting("lr_scheduler", "cosine", "falls to 0 at the last step; or linear, constant"),
        Setting("epochs", passes, why_passes, general=False),
        Setting("global_batch_size", batch, why_batch, general=False),
    ]
    if eval_dataset is not None:
        fewest_steps = min(sweep.get("num_steps", (samples * fewest / max(sweep.get("global_batch_size", (batch,))),)))
        every = max(1, math.ceil(fewest_steps / EVALUATIONS))
        why = f"steps from one evaluation to the next; {_STOPPING}"
        settings.append(Setting("eval_dataset", eval_dataset, "held out: its loss is told on the way", general=False))
        settings.append(Setting("eval_every", every, why))
    gone = {*sweep} | ({"epochs"} if "num_steps" in sweep else set())
    return NewAdapter(name, dataset, tuple(s for s in settings if s.name not in gone), sweep)


def adapter_name(dataset: str, taken: Collection[str]) -> str:
    """Return the name of a dataset's adapter: letters, digits, _ and -, and none that is taken."""
    plain = re.sub(r"[^A-Za-z0-9_\-]+", "-", dataset)[: MOST_NAME_LENGTH // 2].strip("-_") or "adapter"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def parse_sweeps(options: Sequence[str], epochs: float | None) -> dict[str, tuple[Any, ...]]:
    """Return the values to try by setting, of options such as `rank=8,16`; modules of one value are joined by +.

    Parameters
    ----------
    epochs
        What is given besides, for all adapters.

    Raises
    ------
    InputError
        When an option has another form, or names an unknown setting, one twice, or a value that is not allowed.
    """
    lists: dict[str, list[Any]] = {}
    for option in options:
        name, _, text = option.partition("=")
        if name not in SHORT_NAMES or not text:
            problem = f'"{option}" is not SETTING=VALUE,...'
            raise InputError(_OPTION, "", problem, f"give e.g. rank=8,16; settings: {', '.join(SHORT_NAMES)}")
        if name in lists:
            raise InputError(_OPTION, "", f'"{name}" is given twice', "give all values at once, with commas between")
        lists[name] = [_value(name, part.strip()) for part in text.split(",")]
    both = [name for name in ("epochs", "num_steps") if name in lists]
    if len(both) > 1 or (both and epochs is not None):
        problem = f"{both[0]} is swept, and {'num_steps' if len(both) > 1 else '--epochs'} given besides"
        raise InputError(_OPTION, "", problem, "keep one of the two")
    return parse_model(Sweep, lists, _OPTION).lists() if lists else {}


def _value(setting: str, text: str) -> Any:
    """Return a value as an instance file has it; the schema says whether it is allowed."""
    if setting == "target_modules":
        return text if text == "all-linear" else text.split("+")
    if text in ("null", "none"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
