"""README.txt of exported models: what each file is, units, names, and how to solve them elsewhere."""

import textwrap
from collections.abc import Iterator, Sequence

from cappuccino.instance import Instance
from cappuccino.plan import Objective
from cappuccino.solvers.export.names import printable
from cappuccino.solvers.export.partition import PartitionModel, PartitionNames
from cappuccino.solvers.export.replicas import ReplicaFile

HEADING = "Models behind a plan of Cappuccino"
"""First line, by which a folder is known as one of these."""
_PARTITION = """\
set_partitioning.lp, set_partitioning.mps (one model, twice)
------------------------------------------------------------
Which adapters share a replica, on how many GPUs of which type. A column is a possible replica, its value how often it
is chosen; rows "cover_..." have every adapter in {times}, rows "gpus_..." keep to the GPUs there are. Of adapters
that are alike (equal samples, equal costs) a column says how many it holds: "x3" is three of them.

{objective}

    highs set_partitioning.mps

or, where there is no such program, in Python:

    import highspy
    highs = highspy.Highs()
    highs.readModel("set_partitioning.mps")
    highs.setOptionValue("mip_rel_gap", 1e-9)
    highs.run()
    print(highs.getInfo().objective_function_value{times_unit}, "{money}")
    print([v.name for v in highs.getVariables() if highs.val(v) > 0.5])
"""
_COLUMNS = """\
columns.csv
-----------
A row a column: its name, GPU type, stages (as many GPUs), recomputation, adapters, makespan in seconds ("scheduled" or
a "bound"), what it adds to the objective ({money}), and how often it is in the plan.
"""
_REPLICAS = """\
replica-N.pbtxt
---------------
Packing and order of replica N of the plan as a CP-SAT model (CpModelProto of OR-Tools, text). Micro-batches are slots
b = 0, 1, ... in the order of their forwards, unused ones at the end.

    in[i,b]                     sample i is in slot b; slot[i] is its slot, used[b] says whether a slot has any
    tokens[b]                   tokens in it
    first[a,j], last[a,j]       slots of optimizer step j of adapter a; has[a,j,b] says whether it has samples in slot b
    time[w,c,b]                 time of part c of a stage for slot b; w is F (forward) or B (backward)
    duration[w,s,b]             time of slot b on stage s
    forward[s,b].start, .end    and backward[s,b]: when it runs on stage s
    step[s,a,j].start           when optimizer step j of adapter a runs on stage s
    evaluate[s,e].start         when evaluation e runs on stage s, where there are any: how they are packed is given
    B_before[k,b]               backward of slot k before that of slot b; E_before, E_before_E likewise
    held_for[s,b]               how long stage s holds the activations of slot b
    makespan                    the objective

Times are integers: multiply by the replica's seconds per unit, below. Durations are rounded down and curves replaced by
tangents from below (within 0.7%), so that no schedule is lost: the optimum is at most the plan's makespan, and where a
model has a slot for every sample and no evaluations, its bound holds for every packing and order. Memory is in units
of 2^-36 of what is left beside weights. The plan's own schedule is the hint; it ends by the horizon, 2^20.

    from ortools.sat.python import cp_model
    model, solver = cp_model.CpModel(), cp_model.CpSolver()
    assert model.proto.parse_text_format(open("replica-0.pbtxt").read())
    solver.parameters.max_time_in_seconds = 60
    print(solver.status_name(solver.solve(model)))
    print(solver.objective_value * SECONDS_PER_UNIT, "s, bound", solver.best_objective_bound * SECONDS_PER_UNIT)

OR-Tools before 9.15: google.protobuf.text_format.Parse(text, model.Proto()). Sample i of a model counts on through its
adapters, in each through the samples in the order of training, a global batch an optimizer step.
"""


def readme(
    instance: Instance,
    model: PartitionModel,
    names: PartitionNames,
    unit: float,
    replicas: Sequence[ReplicaFile],
) -> str:
    """Return the text.

    Parameters
    ----------
    unit
        GPU-seconds or money that one in the objective of the set partitioning stands for.
    """
    cost = model.objective is Objective.COST
    money = "money" if cost else "GPU-seconds"
    partition = _PARTITION.format(
        times="at least one (what is too many is left out at no cost)" if model.at_least else "exactly one",
        objective=textwrap.fill(_objective(model, unit, money, replicas), 120),
        money=money,
        times_unit="" if unit == 1 else f" * {unit:g}",
    )
    head = (
        f"{HEADING}\n\nInstance    {printable(instance.name)}, SHA-256 {instance.digest}\n"
        f"Columns     {len(names.columns)}\n"
    )
    parts = [head, partition, _COLUMNS.format(money=money), _REPLICAS]
    parts.append("\n".join(["Replicas", "--------", *_replicas(instance, replicas)]) + "\n")
    parts.append(
        "\n".join(["Names in the set partitioning", "-----------------------------", *_legend(model, names)]) + "\n"
    )
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _objective(model: PartitionModel, unit: float, money: str, replicas: Sequence[ReplicaFile]) -> str:
    """Return what the set partitioning minimises, and how its optimum stands to the plan."""
    cost = model.objective is Objective.COST
    what = "the sum of GPU time x price" if cost else "the sum of stages x makespan"
    sentences = [f"Objective: {what}; one is {unit:g} {money}."]
    if model.goal.objective is Objective.MAKESPAN:
        longest = max(r.schedule.makespan_s for r in replicas)
        sentences.append(
            f"The plan is for the least makespan, {longest:.10g} s. As the planner does, the model asks which "
            "partitions end by then, and takes the one of least GPU time; without the columns that take as long it "
            "tells whether there is a shorter one."
        )
    weights = [c.weight(model.objective) for c in model.columns()]
    planned = sum(w * n for w, n in zip(weights, model.chosen, strict=True))
    sentences.append(
        "Makespans are those of the best schedules found or, where a column was never scheduled, proven bounds: "
        "columns.csv says which. The model holds the columns that the planner chose from last and the plan's own, so "
        f"that its optimum is at most the plan's {planned:.10g} {money}. It is no bound on all plans."
    )
    return " ".join(sentences)


def _replicas(instance: Instance, replicas: Sequence[ReplicaFile]) -> Iterator[str]:
    for replica in replicas:
        problem = replica.schedule.problem
        yield f"replica {replica.number}: {replica.name or 'no file'}"
        if replica.reason:
            yield f"    {replica.reason}"
        if replica.whole is not None:
            makespan = replica.schedule.makespan_s
            yield f"    {replica.whole.unit_s!r} seconds per unit; the plan takes {makespan!r} s"
        begin = 0
        for a, (i, lengths) in enumerate(zip(problem.adapters, problem.lengths, strict=True)):
            steps = f"steps j = 0 to {len(lengths) - 1} of {lengths.shape[1]}"
            samples = f"samples i = {begin} to {begin + lengths.size - 1}"
            yield f"    adapter a = {a}: {printable(instance.adapters[i].name)}; {samples}, {steps}"
            begin += lengths.size


def _legend(model: PartitionModel, names: PartitionNames) -> Iterator[str]:
    yield 'What stands for adapters (column names say "and_N_more" where there is no room for all):'
    kinds = model.space.kinds.members
    for kind, members in enumerate(kinds):
        alike = ", ".join(printable(model.space.instance.adapters[i].name) for i in members)
        yield f"    {names.tokens[kind]}, row {names.covers[kind]}: {alike}"
    yield "GPU types:"
    for gpu, row in names.pools.items():
        yield f"    row {row}: {printable(gpu)}"
