"""Sweeps: an adapter of an instance file that stands for one adapter per combination of its settings."""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from cappuccino.adapter import (
    Adapter,
    Dropout,
    LearningRateShape,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TargetModules,
)
from cappuccino.errors import InputError
from cappuccino.files import Record, parse_model

T = TypeVar("T")
Values = Annotated[tuple[T, ...], Field(min_length=1)]
SHORT_NAMES: Mapping[str, str] = {
    "rank": "r",
    "alpha": "a",
    "dropout": "do",
    "target_modules": "",
    "learning_rate": "lr",
    "weight_decay": "wd",
    "lr_scheduler": "",
    "warmup_steps": "wu",
    "max_grad_norm": "gn",
    "global_batch_size": "bs",
    "num_steps": "st",
    "epochs": "ep",
    "seed": "seed",
}
"""What stands before a value in the names of a sweep's adapters, by setting, in the order of docs/formats.md."""
_MODULE_GROUPS = {
    frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}): "attn",
    frozenset({"gate_proj", "up_proj", "down_proj"}): "mlp",
    frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}): "attn-mlp",
}
_LEAST_PLAIN, _MOST_PLAIN = Decimal("0.01"), Decimal(10**6)
"""Numbers outside of these are written with an exponent."""


class Sweep(Record):
    """Values to try of every setting, each list with one value or more."""

    rank: Values[PositiveInt] | None = None
    alpha: Values[PositiveFloat] | None = None
    dropout: Values[Dropout] | None = None
    target_modules: Values[TargetModules] | None = None
    learning_rate: Values[PositiveFloat] | None = None
    weight_decay: Values[NonNegativeFloat] | None = None
    lr_scheduler: Values[LearningRateShape] | None = None
    warmup_steps: Values[NonNegativeInt] | None = None
    max_grad_norm: Values[PositiveFloat | None] | None = None
    global_batch_size: Values[PositiveInt] | None = None
    num_steps: Values[PositiveInt] | None = None
    epochs: Values[PositiveFloat] | None = None
    seed: Values[NonNegativeInt] | None = None

    @model_validator(mode="after")
    def _values_to_tell_apart(self) -> "Sweep":
        if not self.lists():
            raise ValueError("Give a list of values for at least one setting")
        for name, values in self.lists().items():
            labels = [label(name, value) for value in values]
            for i, text in enumerate(labels):
                if text in labels[:i]:
                    raise ValueError(f"Give every value of {name} once: two of them would be called {text}")
        return self

    def lists(self) -> dict[str, tuple[Any, ...]]:
        """Return the values by setting, in the order of `SHORT_NAMES`."""
        return {name: values for name in SHORT_NAMES if (values := getattr(self, name)) is not None}


def expand_sweeps(document: Any, source: Path) -> tuple[Any, tuple[str, ...]]:
    """Return an instance file's content with one adapter per combination, and by adapter the field that it is from.

    The combinations stand where the sweep stood, the last setting of `SHORT_NAMES` changing fastest. Without a sweep
    the content is returned as it is, and no fields.

    Parameters
    ----------
    document
        The parsed file; what is wrong with it beside the sweeps is left for the schema to say.
    source
        The file, for errors.

    Raises
    ------
    InputError
        When a sweep names an unknown setting or one that its entry sets too, a value is wrong, or two adapters would
        have one name.
    """
    entries = document.get("adapters") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not any(isinstance(e, dict) and "sweep" in e for e in entries):
        return document, ()
    adapters: list[Any] = []
    fields: list[str] = []
    first: dict[str, str] = {}
    for i, entry in enumerate(entries):
        at = f"adapters[{i}]"
        for one in _combinations(entry, source, at):
            name = parse_model(Adapter, one, source, at).name
            if name in first:
                problem = f'"{name}" is the name of an adapter of {first[name]} too'
                raise InputError(source, f"{at}.name", problem, "give one of them another name")
            first[name] = at
            adapters.append(one)
            fields.append(at)
    return document | {"adapters": adapters}, tuple(fields)


def _combinations(entry: Any, source: Path, at: str) -> Iterator[Any]:
    """Yield the adapters that an entry stands for."""
    if not isinstance(entry, dict) or "sweep" not in entry:
        yield entry
        return
    lists = parse_model(Sweep, entry["sweep"], source, f"{at}.sweep").lists()
    own = {name: value for name, value in entry.items() if name != "sweep"}
    for name in lists:
        if name in own:
            problem = f"is given beside the sweep of {name}"
            raise InputError(source, f"{at}.{name}", problem, "keep one of the two")
    for values in product(*lists.values()):
        settings = dict(zip(lists, values, strict=True))
        labels = [label(name, value) for name, value in settings.items()]
        named = {"name": "-".join([own["name"], *labels])} if isinstance(own.get("name"), str) else {}
        yield own | settings | named


def label(setting: str, value: Any) -> str:
    """Return how a value of a setting is written in the name of an adapter, such as r8, lr1e-4, do0p05 or attn."""
    short = SHORT_NAMES[setting]
    if value is None:
        return f"no{short}"
    if isinstance(value, tuple):
        return _MODULE_GROUPS.get(frozenset(value)) or "-".join(sorted(map(_short_module, value)))
    return short + (value if isinstance(value, str) else _short_number(value))


def _short_module(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-]", "_", name.removesuffix("_proj"))


def _short_number(value: float) -> str:
    """Return the shortest digits that mean this number, with p for the decimal point, which names cannot have."""
    exact = Decimal(repr(value)).normalize()
    if not value or _LEAST_PLAIN <= exact < _MOST_PLAIN:
        return f"{exact:f}".replace(".", "p")
    _, digits, _ = exact.as_tuple()
    rest = "".join(map(str, digits[1:]))
    return f"{digits[0]}{'p' if rest else ''}{rest}e{exact.adjusted()}"
