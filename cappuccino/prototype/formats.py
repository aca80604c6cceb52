"""The seed's files: length distributions, adapter configurations, provisioning results, pipeline schedules."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cappuccino.errors import InputError
from cappuccino.files import parse_model, read_json, write_atomically

_Positive = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
_DEFAULT_SEED = 42
_LENGTHS = TypeAdapter(Annotated[list[_Positive], Field(min_length=1)])


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
        seeds = body.get("seeds") if isinstance(body, dict) else None
        if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
            raise InputError(
                path, f"{name}.seeds", "is missing, empty or no list of integers", 'add e.g. "seeds": [42]'
            )
        unlisted = [k for k in body if k.startswith("seed_") and k not in {f"seed_{s}" for s in seeds}]
        if unlisted:
            raise InputError(path, f"{name}.{unlisted[0]}", "is not among the seeds", "add it to seeds, or remove it")
        for seed in seeds:
            record = body.get(f"seed_{seed}")
            if not isinstance(record, dict):
                raise InputError(path, f"{name}.seed_{seed}", "is missing or no object", "add the seed's statistics")
            permutations = record.get("num_permutations", 1)
            if not isinstance(permutations, int) or permutations < 1:
                field = f"{name}.seed_{seed}.num_permutations"
                raise InputError(path, field, f"{permutations!r} is not allowed", "give a positive integer")
            surplus = f"permutation_{permutations + 1}"
            if surplus in record:
                remedy = "correct num_permutations (by default 1), or remove it"
                raise InputError(
                    path, f"{name}.seed_{seed}.{surplus}", f"is beyond the {permutations} there are", remedy
                )
            for number in range(1, permutations + 1):
                field = f"{name}.seed_{seed}.permutation_{number}"
                try:
                    lengths = _LENGTHS.validate_python(record.get(f"permutation_{number}"))
                except ValidationError as error:
                    first = error.errors()[0]
                    where = "".join(f"[{p}]" for p in first["loc"])
                    value = json.dumps(first["input"], default=str)[:60]
                    remedy = "give a list of positive token counts"
                    raise InputError(path, field + where, f"{value} is not allowed", remedy) from error
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


class SeedAdapter(BaseModel):
    """One entry of the seed's adapter configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_idx: Annotated[int, Field(ge=0, strict=True)]
    global_batch_size: _Positive
    microbatch_size: _Positive
    rank: _Positive
    target_modules: Annotated[str, Field(min_length=1)]
    """Module names joined by `+`."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _SeedAdapters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    adapters: Annotated[list[SeedAdapter], Field(min_length=1)]


def read_adapter_config(path: Path) -> list[SeedAdapter]:
    """Read the seed's adapter configuration, `{"adapters": [...]}` or the bare list."""
    data = read_json(path)
    return parse_model(_SeedAdapters, {"adapters": data} if isinstance(data, list) else data, path).adapters


class ProvisionedReplica(BaseModel):
    """One replica of the seed's provisioning result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replica_id: Annotated[int, Field(ge=0)]
    adapter_ids: Annotated[list[int], Field(min_length=1)]
    g: _Positive
    T_iter: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Seconds of one iteration: one global batch of every adapter of the replica."""


def write_provisioning(path: Path, replicas: list[ProvisionedReplica]) -> None:
    """Write the seed's provisioning result."""
    write_atomically(path, json.dumps([r.model_dump() for r in replicas], indent=2) + "\n")


def read_provisioning(path: Path) -> list[ProvisionedReplica]:
    """Read the seed's provisioning result."""
    data = read_json(path)
    if not isinstance(data, list):
        raise InputError(path, "", "is not a list of replicas", "give the output of `cappuccino provision`")
    return [parse_model(ProvisionedReplica, r, f"{path}: [{i}]") for i, r in enumerate(data)]


ADAPTER_PADDING_MULTIPLE = 64
"""Tokens to which the seed's engine pads one adapter's share of a micro-batch."""


def schedule_entry(micro_batches: list[dict[int, list[tuple[int, int, int]]]]) -> dict[str, Any]:
    """Return one group of the seed's pipeline schedule file.

    Parameters
    ----------
    micro_batches
        In execution order; each maps an adapter to its samples (step, index within the step's batch, tokens).
    """
    adapters = sorted({a for batch in micro_batches for a in batch})
    places = {a: [i for i, batch in enumerate(micro_batches) if a in batch] for a in adapters}
    return {
        "adapter_group_info": adapters,
        "internal_adapter_start_end_indices": {str(a): [places[a][0], places[a][-1]] for a in adapters},
        "micro_batch_infos": [_micro_batch_info(i, batch) for i, batch in enumerate(micro_batches)],
    }


def _micro_batch_info(index: int, batch: dict[int, list[tuple[int, int, int]]]) -> dict[str, Any]:
    lengths = {str(a): [length for _, _, length in samples] for a, samples in batch.items()}
    tokens = {a: sum(values) for a, values in lengths.items()}
    padded = {a: -(-n // ADAPTER_PADDING_MULTIPLE) * ADAPTER_PADDING_MULTIPLE for a, n in tokens.items()}
    total = sum(tokens.values())
    return {
        "data_samples": {f"{a}, {j}, {k}": length for a, samples in batch.items() for j, k, length in samples},
        "max_microbatch_size": total,
        "adapter_padding_multiple": ADAPTER_PADDING_MULTIPLE,
        "adapter_group_info": list(batch),
        "adapter_global_batch_idx_pairs": [[a, samples[0][0]] for a, samples in batch.items()],
        "adapter_token_lengths_pairs": lengths,
        "adapter_num_samples_pairs": {a: len(values) for a, values in lengths.items()},
        "adapter_num_tokens_pairs": tokens,
        "total_tokens": total,
        "padded_adapter_num_tokens_pairs": padded,
        "padded_total_tokens": sum(padded.values()),
        "micro_batch_idx": index,
        "is_empty_marker": False,
        "sequence_batch_layout": "ragged",
        "batch_compute_layout": "packed",
        "effictive_total_tokens": total,
    }
