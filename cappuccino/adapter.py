"""One LoRA job: what an adapter of an instance says of itself."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cappuccino.files import Record

MOST_STEPS = 2**31 - 1
"""Optimizer steps of an adapter: compiled code counts them in 32 bits."""
PositiveInt = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MOST_NAME_LENGTH = 200
"""Bytes of a name: file systems take 255, and suffixes are added."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
TargetModules = tuple[str, ...] | Literal["all-linear"]
LearningRateShape = Literal["constant", "linear", "cosine"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_\-]*$", max_length=MOST_NAME_LENGTH)]


class Adapter(Record):
    """One LoRA job: what is trained, on which data, in which steps."""

    name: Name
    """Unique name; PEFT's adapter name and the name of the output folder."""
    dataset: str
    """Key of `datasets`."""
    global_batch_size: PositiveInt
    """Samples per optimizer step."""
    micro_batch_size: PositiveInt = 1
    """Samples per micro-batch when the job runs on its own; baselines use it, the planner packs freely."""
    num_steps: PositiveInt | None = None
    """Optimizer steps; by default one pass over the dataset, the incomplete last batch dropped."""
    epochs: PositiveFloat | None = None
    """Passes over the dataset instead of `num_steps`: samples * epochs / global_batch_size steps, rounded down, but at
    least one. An `Instance` holds the steps that follow.
    """
    rank: PositiveInt = 16
    """LoRA rank."""
    alpha: PositiveFloat = 32
    """LoRA alpha."""
    dropout: Dropout = 0.0
    """LoRA dropout probability."""
    target_modules: TargetModules = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Module names that get the adapter, as PEFT understands them."""
    learning_rate: PositiveFloat = 1e-4
    """AdamW's peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    lr_scheduler: LearningRateShape = "constant"
    """Shape of the learning rate after the warm-up; `linear` and `cosine` reach 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: PositiveFloat | None = None
    """Gradients of a step are clipped to this global norm; null: no clipping."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights and of dropout."""
    eval_dataset: str | None = None
    """Key of `datasets`: all its samples are evaluated, without gradients, after the last step and those in between."""
    eval_every: PositiveInt | None = None
    """Optimizer steps from one evaluation to the next; null: the last step alone is evaluated."""
    early_stopping_patience: PositiveInt | None = None
    """Training stops at the evaluation that is the so manieth in a row without improvement; null: never for that."""
    early_stopping_threshold: NonNegativeFloat = 0.0
    """By how much the loss must be less than the least one before to be an improvement."""

    @model_validator(mode="after")
    def _consistent(self) -> "Adapter":
        if not self.target_modules:
            raise ValueError("Name at least one target module")
        if self.num_steps is not None and self.epochs is not None:
            raise ValueError("Give either `num_steps` or `epochs`")
        if self.eval_every is not None and self.eval_dataset is None:
            raise ValueError("Give `eval_dataset` with `eval_every`")
        if self.early_stopping_patience is not None and self.eval_every is None:
            raise ValueError("Give `eval_dataset` and `eval_every` with `early_stopping_patience`")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("Give `early_stopping_patience` with `early_stopping_threshold`")
        return self

    def with_steps(self, samples: int) -> "Adapter":
        """Return the adapter with `num_steps` instead of `epochs`, where it has these.

        Parameters
        ----------
        samples
            Of its dataset.
        """
        if self.epochs is None:
            return self
        # by the decimal digits: 0.3 epochs of 1,000 samples are 300, and in binary a little less
        steps = int(Fraction(repr(self.epochs)) * samples / self.global_batch_size)
        return self.model_copy(update={"num_steps": max(1, steps), "epochs": None})
