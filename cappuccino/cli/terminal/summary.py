"""What is said of a run when it is over: predicted beside measured, and what became of the adapters."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cappuccino.errors import counted

if TYPE_CHECKING:
    from cappuccino.plan import Plan, Replica
    from cappuccino.runtime.launch.run_result import RunResult
    from cappuccino.timeline import Timeline

_LARGEST_EXPONENT = 700.0
"""Of the numbers that a float holds."""


def run_summary(plan: "Plan", result: "RunResult") -> dict[str, Any]:
    """Return what is to be said of a run.

    There is no prediction where only a part of the plan ran: `predicted_s` and `difference` are None then.

    Parameters
    ----------
    plan
        What was run.
    result
        What it produced.
    """
    planned = {replica.id: replica for replica in plan.replicas}
    lines = [(planned[line.replica], line) for line in result.timelines]
    whole = len(lines) == len(planned) and all(_whole(replica, line) for replica, line in lines)
    gpu_time = sum(replica.num_stages * line.makespan for replica, line in lines)
    makespan = max((line.makespan for _, line in lines), default=0.0)
    return {
        "checked": True,
        "makespan": _compared(plan.makespan_s if whole else None, makespan),
        "gpu_time": _compared(plan.gpu_time_s if whole else None, gpu_time),
        "replicas": [
            {
                "id": replica.id,
                **_compared(replica.makespan_s if _whole(replica, line) else None, line.makespan),
                "measured_bubble": line.bubble,
                "peak_memory_gib": list(result.peak_memory_gib(replica.id)),
                "predicted_memory_gib": list(replica.peak_memory_gib),
            }
            for replica, line in lines
        ],
        "adapters": {name: _trained(result, name, path) for name, path in result.adapters.items()},
        "trace": str(result.trace),
        "metrics": str(result.metrics),
    }


def print_run(summary: dict[str, Any]) -> None:
    """Print what `run_summary` gives as text."""
    times = [("makespan", "s", summary["makespan"]), ("GPU time", "GPU-s", summary["gpu_time"])]
    if len(summary["replicas"]) > 1:
        times += [(f"replica {entry['id']}", "s", entry) for entry in summary["replicas"]]
    for name, unit, entry in times:
        predicted = "of what was left of the plan"
        if entry["predicted_s"] is not None:
            predicted = f"predicted {entry['predicted_s']:.3f} {unit} ({100 * entry['difference']:+z.1f}%)"
        print(f"{name}: measured {entry['measured_s']:.3f} {unit}, {predicted}")
    for entry in summary["replicas"]:
        taken, expected = (
            "/".join(f"{x:.3g}" for x in entry[name]) for name in ("peak_memory_gib", "predicted_memory_gib")
        )
        print(f"replica {entry['id']}: highest memory {taken} GiB, predicted {expected}")
    for name, found in summary["adapters"].items():
        print(f"{name}:{_ended(found['stopped'])} {_losses(found)}, {found['path']}")
        evaluated = found["evaluations"]
        if evaluated:
            losses = ", ".join(f"{e['loss']:.3f} ({counted(e['steps'], 'step')})" for e in evaluated)
            of = "" if found["kept_steps"] is None else f"; kept as after {counted(found['kept_steps'], 'step')}"
            print(f"{name}: evaluated {losses}, perplexity {evaluated[-1]['perplexity']:.4g}{of}")
    print(f"trace {summary['trace']}, metrics {summary['metrics']}")


_ENDS = {"diverged": "DIVERGED", "patience": "stopped (evaluations no better)", "asked": "stopped (asked)"}


def _ended(stopped: dict[str, Any] | None) -> str:
    return "" if stopped is None else f" {_ENDS[stopped['reason']]} at step {stopped['step']},"


def _losses(found: dict[str, Any]) -> str:
    if found["first_loss"] is None:
        return "not trained"
    return f"loss {found['first_loss']:.3f} -> {found['last_loss']:.3f}"


def _whole(replica: "Replica", line: "Timeline") -> bool:
    return line.programs == replica.programs


def _compared(predicted_s: float | None, measured_s: float) -> dict[str, float | None]:
    difference = None if predicted_s is None else measured_s / predicted_s - 1
    return {"predicted_s": predicted_s, "measured_s": measured_s, "difference": difference}


def _trained(result: "RunResult", name: str, path: Path) -> dict[str, Any]:
    """Return what is said of an adapter."""
    evaluated = [
        {"steps": step + 1, "loss": loss, "perplexity": math.exp(min(loss, _LARGEST_EXPONENT))}
        for step, loss in result.evaluations.get(name, {}).items()
    ]
    kept, losses, stop = result.kept.get(name), result.losses[name], result.stopped.get(name)
    return {
        "path": str(path),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "stopped": None if stop is None else {"step": stop.step, "reason": stop.reason.value},
        "evaluations": evaluated,
        "kept_steps": None if kept is None else kept + 1,
    }
