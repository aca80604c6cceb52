"""Length distributions: tokens of every sample of the datasets that instances name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel

from cappuccino.errors import InputError
from cappuccino.files import parse_model, read_json

_Positive = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
_DEFAULT_SEED = 42


class _Dataset(BaseModel):
    """A data set of the file; `seed_N` for every seed stands beside."""

    model_config = ConfigDict(extra="allow")
    seeds: Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1)]


class _Seed(BaseModel):
    """The samples of a data set drawn with a seed; `permutation_N` stand beside, and statistics that nobody reads."""

    model_config = ConfigDict(extra="allow")
    num_permutations: Annotated[int, Field(gt=0, strict=True)] = 1


class _Lengths(RootModel[Annotated[list[_Positive], Field(min_length=1)]]):
    """Tokens of every sample."""


@dataclass(frozen=True)
class LengthDistribution:
    """Sample lengths of several datasets, each under (name, seed, permutation)."""

    source: Path
    entries: dict[tuple[str, int, int], np.ndarray]
    """Lengths in tokens, in file order: the seed's `dataset_idx` counts these entries."""

    def lengths(self, name: str, seed: int | None = None, permutation: int | None = None) -> np.ndarray:
        """Return the lengths of one entry; InputError naming what the file holds when it is not there.

        Parameters
        ----------
        seed, permutation
            By default the only ones that the file holds of the dataset; 42 and 1 where it holds several.
        """
        if seed is None:
            seeds = {s for n, s, _ in self.entries if n == name}
            seed = seeds.pop() if len(seeds) == 1 else _DEFAULT_SEED
        if permutation is None:
            permutations = {p for n, s, p in self.entries if (n, s) == (name, seed)}
            permutation = permutations.pop() if len(permutations) == 1 else 1
        try:
            return self.entries[name, seed, permutation]
        except KeyError:
            wanted = f'no dataset "{name}" with seed {seed}, permutation {permutation}'
            raise InputError(self.source, name, wanted, f"the file holds {self._listing()}") from None

    def label(self, name: str, seed: int, permutation: int) -> str:
        """Return what to call the dataset of an entry: its name, with seed and permutation where there are several."""
        several = sum(n == name for n, _, _ in self.entries) > 1
        return f"{name}/{seed}/{permutation}" if several else name

    def entry(self, dataset_idx: int, source: object, field: str) -> tuple[str, int, int]:
        """Return the (name, seed, permutation) that a `dataset_idx` of `source` stands for."""
        keys = list(self.entries)
        if not 0 <= dataset_idx < len(keys):
            remedy = f"{self.source} holds indices 0 to {len(keys) - 1}"
            raise InputError(source, field, f"{dataset_idx} is no dataset index", remedy)
        return keys[dataset_idx]

    def _listing(self) -> str:
        return ", ".join(f"{n}/seed {s}/permutation {p}" for n, s, p in self.entries)


def read_length_distribution(path: Path) -> LengthDistribution:
    """Read a dataset distribution file: `{name: {"seeds": [42], "seed_42": {"permutation_1": [...]}}}`.

    Raises
    ------
    InputError
        Naming the dataset and the field that is missing or malformed.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise InputError(path, "", "is not an object of datasets", "give the format of docs/formats.md")
    entries: dict[tuple[str, int, int], np.ndarray] = {}
    for name, body in data.items():
        dataset = parse_model(_Dataset, body, path, name)
        extra = dataset.model_extra or {}
        unlisted = [k for k in extra if k.startswith("seed_") and k not in {f"seed_{s}" for s in dataset.seeds}]
        if unlisted:
            raise InputError(path, f"{name}.{unlisted[0]}", "is not among the seeds", "add it to seeds, or remove it")
        for seed in dataset.seeds:
            field = f"{name}.seed_{seed}"
            if f"seed_{seed}" not in extra:
                raise InputError(path, field, "is missing", "add the seed's statistics")
            record = parse_model(_Seed, extra[f"seed_{seed}"], path, field)
            known, count = record.model_extra or {}, record.num_permutations
            if f"permutation_{count + 1}" in known:
                problem = f"is beyond the {count} there are"
                remedy = "correct num_permutations (by default 1), or remove it"
                raise InputError(path, f"{field}.permutation_{count + 1}", problem, remedy)
            for number in range(1, count + 1):
                key = f"permutation_{number}"
                if key not in known:
                    raise InputError(path, f"{field}.{key}", "is missing", "add it, or correct num_permutations")
                lengths = parse_model(_Lengths, known[key], path, f"{field}.{key}").root
                entries[name, seed, number] = np.asarray(lengths, dtype=np.int64)
    return LengthDistribution(path, entries)


def length_statistics(lengths: np.ndarray) -> dict[str, float | int | list[int]]:
    """Return a dataset's record in the distribution format: the statistics and `permutation_1`.

    Parameters
    ----------
    lengths
        Tokens of every sample, shape (num_samples,).
    """
    p25, p50, p75, p90, p99 = np.percentile(lengths, [25, 50, 75, 90, 99])
    mean, std = float(lengths.mean()), float(lengths.std())
    return {
        "num_permutations": 1,
        "num_samples": len(lengths),
        "median": float(p50),
        "mean": mean,
        "std": std,
        "min": float(lengths.min()),
        "max": float(lengths.max()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "cv": std / mean,
        "iqr": float(p75 - p25),
        "skewness": float(((lengths - mean) ** 3).mean() / std**3) if std else 0.0,
        "permutation_1": [int(x) for x in lengths],
    }
