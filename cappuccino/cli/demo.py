"""The demo: the whole way on this machine's CPU, with a tiny backbone and text that ships with Python."""

from pathlib import Path
from typing import Any

from cappuccino.cli.terminal import console
from cappuccino.errors import counted
from cappuccino.files import require_folder


def run_demo(output: Path, time_limit_s: float) -> dict[str, Any]:
    """Build a backbone and data, profile, plan, check, train, and load the adapters with PEFT.

    Parameters
    ----------
    output
        Folder for everything that is made.
    time_limit_s
        Of the planner.

    Returns
    -------
    dict
        Objective, bound, gap, predicted and measured time, the adapters with their folders, and the page.
    """
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance, save_instance  # noqa: PLC0415
    from cappuccino.instances.generate_tiny import (  # noqa: PLC0415
        BACKBONE,
        GPU,
        MAX_LENGTH,
        NUM_STAGES,
        SAMPLES,
        tiny_instance,
    )
    from cappuccino.runtime.backbone.tiny import build_text_datasets, build_tiny_backbone  # noqa: PLC0415
    from cappuccino.runtime.launch.local import run_plan  # noqa: PLC0415
    from cappuccino.runtime.profiling.grid import ProfileGrid  # noqa: PLC0415
    from cappuccino.runtime.profiling.profiler import profile_backbone  # noqa: PLC0415
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    require_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    console.quiet_transformers()
    backbone, data = output / "backbone", output / "data"
    with console.progress_bar("1/4 backbone and text") as show:
        show(0.1, "a random tiny Llama, and text that ships with Python")
        build_tiny_backbone(backbone)
        show(0.6, "tokenizing")
        lengths = build_text_datasets(data, backbone, samples=SAMPLES, max_length=MAX_LENGTH)
        show(1.0, ", ".join(f"{name}: median {int(sorted(n)[len(n) // 2])} tokens" for name, n in lengths.items()))
    table = output / "cost-table.csv"
    grid = ProfileGrid(
        num_stages=(NUM_STAGES,),
        tokens=(64, 256, 1024, 2048),
        sequence_lengths=(64, 512),
        num_adapters=(2,),
        ranks=(4,),
    )
    with console.progress_bar("2/4 profile") as show:
        profile_backbone(backbone, table, name=BACKBONE, gpu=GPU, grid=grid, again=True, on_progress=show)
    built = tiny_instance(lengths, table, "demo")
    save_instance(built, output / "instance.json")
    instance = Instance.load(output / "instance.json")
    costs = fit_instance_costs(instance)
    with console.progress_bar("3/4 plan") as show:

        def on_progress(state: Progress) -> None:
            show(state.elapsed_s / time_limit_s, f"{state.objective:.4g} GPU-s, bound {state.bound:.4g}")

        options = PlanOptions(time_limit_s=time_limit_s, num_stages=NUM_STAGES, gap=0.01)
        plan = make_plan(instance, options, costs, on_progress)
    report = check(plan, instance, costs)
    report.raise_if_invalid(output / "plan.json")
    plan.save(output / "plan.json")
    with console.progress_bar("4/4 train") as show:
        result = run_plan(
            plan,
            instance,
            backbone,
            data,
            output / "adapters",
            on_progress=lambda done, total: show(done / total, f"{done} of {total} operations"),
        )
    page = _write_page(output, result.trace)
    measured = max(line.makespan for line in result.timelines)
    return {
        **console.plan_summary(plan, report),
        "predicted_s": plan.makespan_s,
        "measured_s": measured,
        "difference": measured / plan.makespan_s - 1,
        "measured_bubble": result.timelines[0].bubble,
        "adapters": {
            name: {
                "path": str(path),
                "first_loss": result.losses[name][0],
                "last_loss": result.losses[name][-1],
                "peft_parameters": _load_with_peft(backbone, path),
            }
            for name, path in result.adapters.items()
        },
        "instance": str(output / "instance.json"),
        "plan": str(output / "plan.json"),
        "cost_table": str(table),
        "trace": str(result.trace),
        "page": None if page is None else str(page),
    }


def _write_page(output: Path, trace: Path) -> Path | None:
    """Write the page of the run, where bokeh is installed to make it; return where it is."""
    from importlib.util import find_spec  # noqa: PLC0415

    from cappuccino.cli.report_commands import write_report  # noqa: PLC0415
    from cappuccino.runtime.monitoring.metrics import METRICS  # noqa: PLC0415

    if find_spec("bokeh") is None:
        return None
    page, metrics = output / "report.html", output / "adapters" / METRICS
    write_report(output / "plan.json", output / "instance.json", page, trace, metrics if metrics.is_file() else None)
    return page


def _load_with_peft(backbone: Path, adapter: Path) -> int:
    """Load an adapter as any user of PEFT would and return the number of its parameters."""
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), adapter)
    return sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


def print_report(report: dict[str, Any]) -> None:
    """Print the outcome as text."""
    stages = report["replicas"][0]["num_stages"]
    print(f"objective   {report['objective']} {report['value']:.4g} GPU-s on {counted(stages, 'stage')}")
    print(f"bound       {report['lower_bound']:.4g} GPU-s{' (proven)' if report['certified'] else ', not certified'}")
    checked = "valid" if report["checked"] else "INVALID"
    print(f"gap         {100 * report['gap']:.2f}%, {report['status']}, checked: {checked}")
    print(f"predicted   {report['predicted_s']:.3f} s")
    print(f"measured    {report['measured_s']:.3f} s ({100 * report['difference']:+z.1f}%)")
    for name, entry in report["adapters"].items():
        losses = f"loss {entry['first_loss']:.3f} -> {entry['last_loss']:.3f}"
        print(
            f"adapter     {name}: {losses}, {entry['peft_parameters']} parameters loaded by PEFT from {entry['path']}"
        )
    print(f"plan        {report['plan']} (cappuccino check {report['plan']} --instance {report['instance']})")
    print(f"trace       {report['trace']} (open it at ui.perfetto.dev)")
    if report["page"] is not None:
        print(f"report      {report['page']} (open it in a browser)")
