"""A stage takes over the state of an adapter, whatever the layers of the stages that wrote it."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cappuccino.errors import InputError
from cappuccino.files import parse_model, read_json
from cappuccino.runtime.checkpoint.manifest import MANIFEST, Checkpoint
from cappuccino.runtime.lora.multi_lora import MultiLora
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the manifest of a checkpoint.

    Raises
    ------
    InputError
        When it is missing or malformed.
    """
    return parse_model(Checkpoint, read_json(folder / MANIFEST), folder / MANIFEST)


def restore(folder: Path, checkpoint: Checkpoint, position: int, lora: MultiLora, training: AdapterTraining) -> None:
    """Give an adapter on a stage the weights, moments and learning rate of a checkpoint.

    Parameters
    ----------
    folder
        Of the checkpoint.
    checkpoint
        Its manifest; the adapter is not finished.
    position
        Of the adapter among the stage's.
    lora, training
        What takes over.

    Raises
    ------
    InputError
        When a file is damaged or does not hold what the stage needs.
    """
    parameters = lora.named_parameters(position)
    if not parameters:
        return
    weights: dict[str, torch.Tensor] = {}
    moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in parameters}
    for stage in checkpoint.stages:
        for kind, file in stage.files.items():
            for key, tensor in _tensors(folder / file, moments, kind == "optimizer"):
                if kind == "weights":
                    weights[key] = tensor
                else:
                    name, _, moment = key.rpartition(".")
                    moments[name][moment] = tensor
    with torch.no_grad():
        for name, parameter in parameters.items():
            found = weights.get(name)
            if found is None or found.shape != parameter.shape or found.dtype != parameter.dtype:
                said = "is missing" if found is None else f"is {found.dtype} {tuple(found.shape)}"
                problem = f"{said}, not {parameter.dtype} {tuple(parameter.shape)}"
                raise InputError(folder, name, problem, "remove this checkpoint and go on with an earlier one")
            parameter.copy_(found)
    if checkpoint.schedule is None:
        raise InputError(folder / MANIFEST, "schedule", "is missing", "go on with an earlier checkpoint")
    training.load(list(moments.values()), checkpoint.schedule)


def _tensors(file: Path, wanted: dict[str, dict[str, torch.Tensor]], moments: bool) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of a file that belong to parameters wanted."""
    try:
        with safe_open(file, framework="pt") as stored:
            keys = [key for key in stored.keys() if (key.rpartition(".")[0] if moments else key) in wanted]  # noqa: SIM118
            return [(key, stored.get_tensor(key)) for key in keys]
    except (OSError, SafetensorError) as error:
        remedy = "remove this checkpoint and go on with an earlier one"
        raise InputError(file, "", f"cannot be read ({error})", remedy) from error
