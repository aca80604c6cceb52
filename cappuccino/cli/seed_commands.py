"""provision and schedule: the seed's two steps, on the seed's file formats and options."""

import json as jsonlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.costs import CostModel
    from cappuccino.instance import Instance
    from cappuccino.plan import Plan, Replica

Model = Annotated[str, typer.Option("--model_name", help="Backbone; the cost table has rows of it.")]
Lengths = Annotated[Path, typer.Option("--dataset_path", help="Dataset distribution file.")]
GpuType = Annotated[str, typer.Option("--gpu_type", help="GPU type.")]
GpuMemory = Annotated[
    float | None, typer.Option("--gpu_memory_gib", min=0.1, help="Memory of one GPU; default: from its data sheet.")
]
Table = Annotated[
    Path | None, typer.Option("--cost_table", help="Cost table; default: the shipped analytic one of the GPU type.")
]
Steps = Annotated[int, typer.Option("--num_steps", min=1, help="Optimizer steps of every adapter.")]
TimeLimit = Annotated[float, typer.Option("--time_limit", min=0.1, help="Seconds for the search.")]
MaxLength = Annotated[int, typer.Option("--max_sequence_length", min=1, help="Longer samples are cut.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")]

PROVISIONING = "provisioning.json"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(provision)
    app.command()(schedule)


def provision(
    model_name: Model,
    dataset_path: Lengths,
    adapter_config: Annotated[Path, typer.Option("--adapter_config", help="Adapter configuration file.")],
    total_gpus: Annotated[int, typer.Option("--total_gpus", min=1, help="GPUs there are.")],
    gpu_type: GpuType = "a100-40gb",
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of the result.")] = Path("out"),
    cost_table: Table = None,
    num_steps: Steps = 10,
    time_limit: TimeLimit = 30.0,
    max_sequence_length: MaxLength = 4096,
    gpu_memory_gib: GpuMemory = None,
    seed: Seed = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Cluster adapters into replicas and give each its GPUs.

    Writes OUTPUT_DIR/provisioning.json in the seed's format.
    """
    from cappuccino.lengths import read_length_distribution  # noqa: PLC0415
    from cappuccino.prototype.formats import (  # noqa: PLC0415
        ProvisionedReplica,
        read_adapter_config,
        write_provisioning,
    )
    from cappuccino.prototype.instance import seed_instance  # noqa: PLC0415

    instance = seed_instance(
        read_length_distribution(dataset_path),
        read_adapter_config(adapter_config),
        source=adapter_config,
        backbone=model_name,
        gpu=gpu_type,
        gpus=total_gpus,
        gpu_memory_gib=gpu_memory_gib,
        cost_table=_cost_table(cost_table, gpu_type),
        num_steps=num_steps,
        max_sequence_length=max_sequence_length,
    )
    require_writable(output_dir / PROVISIONING)
    made, costs = _plan(instance, None, time_limit, seed)
    result = [
        ProvisionedReplica(
            replica_id=r.id,
            adapter_ids=[instance.adapter_index(name) for name in r.adapters],
            g=r.num_stages,
            T_iter=r.makespan_s / num_steps,
        )
        for r in made.replicas
    ]
    path = output_dir / PROVISIONING
    write_provisioning(path, result)
    _report(made, instance, costs, {"provisioning": str(path)}, json)


def schedule(
    model_name: Model,
    dataset_path: Lengths,
    num_adapters: Annotated[int, typer.Option("--num_adapters", min=1, help="Adapters of the replica.")],
    num_pipeline_stages: Annotated[int, typer.Option("--num_pipeline_stages", min=1, help="Depth of the replica.")],
    adapter_to_dataset_idx: Annotated[str, typer.Option("--adapter_to_dataset_idx", help='E.g. "0,4,8,12".')],
    adapter_to_global_batch_size: Annotated[
        str, typer.Option("--adapter_to_global_batch_size", help='E.g. "8,8,8,8".')
    ],
    adapter_to_microbatch_size: Annotated[str, typer.Option("--adapter_to_microbatch_size", help='E.g. "1,2,4,1".')],
    output_name: Annotated[str, typer.Option("--output_name", help="Name of the files written.")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of the files.")] = Path("out"),
    gpu_type: GpuType = "a100-40gb",
    cost_table: Table = None,
    num_steps: Steps = 10,
    time_limit: TimeLimit = 30.0,
    max_sequence_length: MaxLength = 4096,
    gpu_memory_gib: GpuMemory = None,
    seed: Seed = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Pack and order one replica's micro-batches.

    Writes OUTPUT_DIR/OUTPUT_NAME.json in the seed's format, and beside it OUTPUT_NAME.instance.json and
    OUTPUT_NAME.plan.json, which the other commands take.
    """
    from cappuccino.files import parse_model, write_atomically  # noqa: PLC0415
    from cappuccino.instance import save_instance  # noqa: PLC0415
    from cappuccino.lengths import read_length_distribution  # noqa: PLC0415
    from cappuccino.prototype.formats import SeedAdapter, schedule_entry  # noqa: PLC0415
    from cappuccino.prototype.instance import seed_instance  # noqa: PLC0415

    datasets = console.integers("--adapter_to_dataset_idx", adapter_to_dataset_idx, num_adapters, least=0)
    global_sizes = console.integers(
        "--adapter_to_global_batch_size", adapter_to_global_batch_size, num_adapters, least=1
    )
    micro_sizes = console.integers("--adapter_to_microbatch_size", adapter_to_microbatch_size, num_adapters, least=1)
    rest = {"rank": 16, "target_modules": "q_proj+k_proj+v_proj+o_proj", "dropout": 0.0, "alpha": 32}
    numbers = {"dataset_idx": datasets, "global_batch_size": global_sizes, "microbatch_size": micro_sizes}
    adapters = [
        parse_model(SeedAdapter, {**rest, **{name: values[i] for name, values in numbers.items()}}, f"adapter {i}")
        for i in range(num_adapters)
    ]
    instance = seed_instance(
        read_length_distribution(dataset_path),
        adapters,
        source="--adapter_to_dataset_idx",
        backbone=model_name,
        gpu=gpu_type,
        gpus=num_pipeline_stages,
        gpu_memory_gib=gpu_memory_gib,
        cost_table=_cost_table(cost_table, gpu_type),
        num_steps=num_steps,
        max_sequence_length=max_sequence_length,
    )
    paths = {
        "schedule": output_dir / f"{output_name}.json",
        "instance": output_dir / f"{output_name}.instance.json",
        "plan": output_dir / f"{output_name}.plan.json",
    }
    if output_name in ("", ".", "..") or Path(output_name).name != output_name:
        raise InputError("--output_name", "", f'"{output_name}" is no name of a file', "give one without folders")
    for path in paths.values():
        require_writable(path)
    made, costs = _plan(instance, num_pipeline_stages, time_limit, seed)
    entry = schedule_entry(_micro_batches(made.replicas[0], instance))
    write_atomically(paths["schedule"], jsonlib.dumps([entry], indent=2) + "\n")
    save_instance(instance, paths["instance"])
    made.save(paths["plan"])
    _report(made, instance, costs, {name: str(path) for name, path in paths.items()}, json)


def _micro_batches(replica: "Replica", instance: "Instance") -> list[dict[int, list[tuple[int, int, int]]]]:
    """Return the micro-batches in the order of their F's: by adapter, its samples' (step, index in it, tokens)."""
    indices = [instance.adapter_index(name) for name in replica.adapters]
    result = []
    for operation in replica.programs[0]:
        if operation[0] != "F":
            continue
        batch: dict[int, list[tuple[int, int, int]]] = {}
        for a, n in replica.micro_batches[operation[1]].samples:
            i = indices[a]
            step, place = divmod(n, instance.adapters[i].global_batch_size)
            batch.setdefault(i, []).append((step, place, instance.sample_length(i, n)))
        result.append(batch)
    return result


def _plan(
    instance: "Instance", num_stages: int | None, time_limit: float, seed: int
) -> "tuple[Plan, dict[str, CostModel]]":
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    costs = fit_instance_costs(instance)
    options = PlanOptions(time_limit_s=time_limit, num_stages=num_stages, seed=seed)
    with console.progress_bar("planning") as show:

        def on_progress(state: Progress) -> None:
            show(state.elapsed_s / time_limit, f"{state.objective:.4g} GPU-s, bound {state.bound:.4g}")

        return make_plan(instance, options, costs, on_progress), costs


def _report(
    made: "Plan", instance: "Instance", costs: "dict[str, CostModel]", paths: dict[str, str], json: bool
) -> None:
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.reports.plan_warnings import instance_warnings, plan_warnings  # noqa: PLC0415

    report = check(made, instance, costs)
    warnings = [*instance_warnings(instance), *plan_warnings(made, instance, costs)]
    for warning in warnings:
        console.warn(warning)
    if json:
        summary: dict[str, Any] = {**paths, **console.plan_summary(made, report), "warnings": warnings}
        console.print_json(summary)
        return
    console.print_plan(made, report)
    for name, path in paths.items():
        print(f"{name:<11} {path}")


def _cost_table(given: Path | None, gpu: str) -> Path:
    if given is not None:
        return given
    shipped = Path(str(files("cappuccino.instances") / "tables" / f"{gpu}.csv"))
    if not shipped.exists():
        raise InputError("--cost_table", "", f'there is no shipped cost table of "{gpu}"', "give one")
    return shipped
