"""What a run of a plan is made of, read and checked as `cappuccino run` does it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cappuccino.cli.options.run_options import RecomputeChoice
from cappuccino.cli.terminal import console

if TYPE_CHECKING:
    from cappuccino.instance import Instance
    from cappuccino.plan import Plan


@dataclass(frozen=True)
class RunInputs:
    """Plan, instance and backbone that belong together."""

    plan: "Plan"
    """With recomputation as asked for."""
    instance: "Instance"
    backbone: Path
    """Folder of the backbone."""
    backbone_name: str
    """What adapters call it."""
    dtype: str
    """Type of weights and activations."""


def read_inputs(
    plan: Path, instance: Path, backbone: str, device: str, dtype: str | None, recompute: RecomputeChoice
) -> RunInputs:
    """Read and check the files, and warn of what makes the plan's times no prediction.

    Parameters
    ----------
    plan, instance, backbone, device, dtype, recompute
        As the command line gives them to `run`.

    Raises
    ------
    InputError, InvalidPlanError
        As of `run`.
    """
    from cappuccino.api.running import profiled_dtype, recomputing  # noqa: PLC0415
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan, Recompute  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.reports.run_warnings import run_warnings  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import backbone_name, find_backbone  # noqa: PLC0415

    loaded, stated = Instance.load(instance), Plan.load(plan)
    costs = fit_instance_costs(loaded)
    check(*planned_alone(stated, loaded), costs).raise_if_invalid(plan)
    used = dtype or profiled_dtype(stated, costs) or "float32"
    asked = None if recompute is RecomputeChoice.AUTO else Recompute(recompute.value)
    ranks = sum(replica.num_stages for replica in stated.replicas)  # there is one for every stage, whenever it runs
    for warning in run_warnings(stated, loaded, costs, device=device, dtype=used, recompute=asked, num_gpus=ranks):
        console.warn(warning)
    folder = find_backbone(backbone)
    planned = stated if asked is None else recomputing(stated, asked)
    return RunInputs(planned, loaded, folder, backbone_name(backbone, folder), used)
