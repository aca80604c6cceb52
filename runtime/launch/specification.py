"""What `run_plan` tells the processes of a replica, one JSON file for all of its stages."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cappuccino.instance import Adapter
from cappuccino.plan import Replica
from cappuccino.runtime.checkpoint.manifest import Origin


class JobSpecification(BaseModel):
    """One adapter of the replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: Adapter
    """What is trained."""
    num_steps: int
    """Optimizer steps, those that are done already included."""
    data: Path
    """Stem of the tokenized dataset's files."""
    num_lengths: int
    """Samples after which the training order starts again."""
    evaluation_data: Path | None = None
    """Stem of the files of the dataset that it is evaluated on, if any."""
    num_evaluated: int = 0
    """Samples of that."""
    origin: Origin
    """What its checkpoints say that they are from."""
    checkpoint_every: int | None
    """Optimizer steps between two checkpoints; None: only after the last step."""
    start: Path | None
    """Folder of the checkpoint that it goes on from; None: it begins."""


class ReplicaSpecification(BaseModel):
    """Everything that the processes of one replica need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replica: Replica
    """Micro-batches and programs."""
    jobs: tuple[JobSpecification, ...]
    """By position in the replica's adapters."""
    layers_per_stage: tuple[int, ...]
    """Decoder layers by stage."""
    backbone: Path
    """Folder of the checkpoint."""
    device: Literal["cpu", "cuda"]
    """Kind of device."""
    device_indices: tuple[int, ...]
    """By stage, which GPU; unused on the CPU."""
    dtype: Literal["float32", "float64", "bfloat16"]
    """Type of the backbone's weights and of the activations."""
    measure_parts: bool
    """Whether the parts of operations are measured, which costs a little time."""
    pauses: tuple[tuple[int, ...], ...] = ()
    """By stage, operations before which it waits for the others, runs the reference kernel and writes its journal; as
    many on every stage. None at all without a journal.
    """
    journal: Path | None = None
    """Folder for the journals of the stages."""
    keep_evaluated: bool = False
    """Whether stages write an adapter's weights before each of its evaluations."""
    threads: int
    """CPU threads of every process."""
    rendezvous: Path
    """File through which the processes find each other; must not exist before."""
    results: Path
    """Folder for what the stages report."""
    checkpoints: Path
    """Folder for checkpoints, those after last steps included."""
    stops: Path
    """Folder in which a file with an adapter's name asks for its end; it need not be there."""
