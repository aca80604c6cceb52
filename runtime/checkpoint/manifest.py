"""What the files of a checkpoint say (`cappuccino.checkpoint/1`); needs no torch.

A checkpoint is the state of one adapter after its first `step` optimizer steps: a folder with the files of every stage
and the manifest, which makes it complete.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from cappuccino.files import Record
from cappuccino.instance import Adapter
from cappuccino.runtime.pipeline.stopping import StopReason

MANIFEST = "checkpoint.json"

Count = Annotated[int, Field(ge=0, strict=True)]


class TrainingIdentity(Record):
    """Whatever the result of an adapter's training depends on: it only goes on where all of it is the same."""

    adapter: Adapter
    """Its settings."""
    lengths_sha256: str
    """Of the lengths of its samples, step by step."""
    data_sha256: str
    """Of the tokens and labels of its dataset."""
    backbone_sha256: str
    """Of the backbone's configuration, and of the beginnings and ends of its files of weights."""
    dtype: str
    """Type of the backbone's weights and of the activations."""


class Origin(Record):
    """Which run a checkpoint is from."""

    training: TrainingIdentity
    instance_sha256: str
    """Digest of the instance, as plans carry it."""
    plan_sha256: str
    """Of the plan's content."""


class StageFiles(Record):
    """What one stage wrote."""

    layers: tuple[Count, Count]
    """Decoder layers of the stage: the first, and the one after its last. Embedding and head go with the outermost."""
    files: dict[Literal["weights", "optimizer"], str]
    """Names of the safetensors files: weights under PEFT's keys, moments of AdamW under these and the moment's name.
    Without weights where the adapter has none on the stage; without optimizer as well after the last step.
    """
    sizes: dict[str, Count]
    """Bytes by file."""


class CheckpointPart(Record):
    """What a stage says of its part, in a file beside it that is written last."""

    origin: Origin
    step: Count
    """Optimizer steps done."""
    num_layers: Annotated[int, Field(gt=0, strict=True)]
    """Of the whole backbone."""
    stage: StageFiles
    schedule: dict[str, Any] | None
    """State of torch's learning-rate scheduler; null where the stage has no weights, and after the last step."""
    losses: tuple[float | None, ...] | None
    """By step, on the last stage; null instead of a number that is none."""
    evaluations: dict[int, float | None] = Field(default_factory=dict)
    """Losses on evaluation data by the step that they are behind, likewise."""
    peft: dict[str, Any]
    """Fields of PEFT's adapter configuration."""


class Checkpoint(Record):
    """The manifest."""

    format: Literal["cappuccino.checkpoint/1"] = "cappuccino.checkpoint/1"
    origin: Origin
    step: Count
    """Optimizer steps done."""
    stages: tuple[StageFiles, ...]
    """In the order of their layers, which are all that the backbone has."""
    schedule: dict[str, Any] | None
    """State of torch's learning-rate scheduler; null after the last step."""
    losses: tuple[float | None, ...]
    """By step."""
    evaluations: dict[int, float | None] = Field(default_factory=dict)
    """Losses on evaluation data by the step that they are behind."""
    peft: dict[str, Any]
    """Fields of PEFT's adapter configuration, the backbone's name apart."""
    stopped: StopReason | None = None
    """Why the adapter is not trained on before its last step."""

    @property
    def adapter(self) -> Adapter:
        """Settings of the adapter."""
        return self.origin.training.adapter

    @property
    def evaluated(self) -> dict[int, float]:
        """Losses on evaluation data by step; NaN for those that are no numbers."""
        return {step: math.nan if loss is None else loss for step, loss in self.evaluations.items()}

    @property
    def finished(self) -> bool:
        """Whether the adapter is not trained on."""
        return self.stopped is not None or self.step == self.adapter.num_steps

    @property
    def steps_past(self) -> int:
        """Optimizer steps that are not to be made any more: all of them once the adapter is finished."""
        return self.adapter.num_steps or self.step if self.finished else self.step


def joined(parts: list[CheckpointPart]) -> Checkpoint | None:
    """Return the checkpoint that parts of one step make, None while parts are missing."""
    if not parts:
        return None
    parts = sorted(parts, key=lambda part: part.stage.layers)
    end = 0
    for part in parts:
        if part.stage.layers[0] != end:
            return None
        end = part.stage.layers[1]
    losses = next((part.losses for part in parts if part.losses is not None), None)
    evaluations = next((part.evaluations for part in parts if part.losses is not None), {})
    if end != parts[0].num_layers or losses is None or any(part.origin != parts[0].origin for part in parts):
        return None
    return Checkpoint(
        origin=parts[0].origin,
        step=parts[0].step,
        stages=tuple(part.stage for part in parts),
        schedule=next((part.schedule for part in parts if part.schedule is not None), None),
        losses=losses,
        evaluations=evaluations,
        peft=parts[0].peft,
    )
