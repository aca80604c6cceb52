"""Where the samples of a dataset are, what its rows are, and what of them is learnt."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FormName = Literal["input_ids", "text", "messages", "prompt_completion", "sharegpt", "alpaca"]
"""What rows of training data are."""
LossRule = Literal["assistant", "completion", "all"]
"""Which tokens of a sample are learnt."""
TooLong = Literal["cut", "drop"]
"""What becomes of samples with more tokens than are allowed."""
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
"""Of files with training data."""


@dataclass(frozen=True)
class TrainingData:
    """Where the samples of a dataset are and what is made of them."""

    source: str | None = None
    """Path or name on the hub; None: to be found by the dataset's name in a folder given elsewhere."""
    form: FormName | None = None
    loss_on: LossRule | None = None
    too_long: TooLong = "cut"

    @property
    def rules(self) -> dict[str, str]:
        """What it says of the samples themselves, wherever these are."""
        named = {"form": self.form, "loss_on": self.loss_on, "too_long": self.too_long}
        return {k: v for k, v in named.items() if v is not None and (k, v) != ("too_long", "cut")}

    def fields(self, folder: Path) -> dict[str, str]:
        """Return the fields of a dataset in an instance file in `folder`."""
        if self.source is None:
            return self.rules
        place = os.path.relpath(Path(self.source).resolve(), folder) if is_path(self.source) else self.source
        return self.rules | {"source": place}


def find_place(source: str, folder: Path) -> str:
    """Return the samples that a file in `folder` names: a path relative to it that can be opened, or a name on the hub.

    What is there, has the ending of a file of samples, or begins with a dot or a slash, is a path.
    """
    path = folder / source
    there = source.startswith((".", "/")) or path.suffix in FILE_SUFFIXES or path.exists()
    return str(path) if there else source


def is_path(place: str) -> bool:
    """Return whether samples are in a file or folder, not on the hub."""
    path = Path(place)
    return path.is_absolute() or path.suffix in FILE_SUFFIXES or path.exists()
