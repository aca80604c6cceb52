"""The seed's files: adapter configurations, provisioning results, pipeline schedules."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cappuccino.errors import InputError
from cappuccino.files import parse_model, read_json, write_atomically

_Positive = Annotated[int, Field(gt=0, lt=2**31, strict=True)]


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
