"""The words, figures and tables of a page, as HTML."""

from collections.abc import Sequence
from html import escape

from cappuccino.plan import AdapterSaving, Objective, Replica
from cappuccino.reports.page.colours import adapter_colours
from cappuccino.reports.page.contents import PageContents, amount
from cappuccino.reports.sharing import sharing_summary

UNITS = {Objective.GPU_TIME: "GPU-s", Objective.MAKESPAN: "s", Objective.COST: "money"}
MOST_LISTED = 8
"""GPUs without work that are drawn one by one."""


def asked(contents: PageContents) -> str:
    """Return what was asked, in a sentence or two."""
    instance, plan = contents.instance, contents.plan
    steps = sum(instance.num_steps(i) for i in range(len(instance.adapters)))
    tokens = sum(int(x.sum()) for x in instance.step_lengths)
    pools = ", ".join(f"{p.count} x {escape(p.gpu)} of {amount(p.memory_gib)} GiB" for p in instance.gpu_pools)
    goal = {
        Objective.GPU_TIME: "the least GPU time",
        Objective.MAKESPAN: "the shortest makespan",
        Objective.COST: "the least money",
    }[plan.objective]
    limit = "" if plan.deadline_s is None else f", every replica within {amount(plan.deadline_s)} s"
    before = f" {contents.done} optimizer steps were done before; steps count from where it goes on." * bool(
        contents.done
    )
    return (
        f"<p>Train <b>{_count(len(instance.adapters), 'LoRA adapter')}</b> on one frozen backbone, "
        f"<b>{escape(instance.backbone)}</b>: {_count(steps, 'optimizer step')}, {tokens:,} tokens. "
        f"There are {pools}. Asked for: {goal}{limit}.{before}</p>"
    )


def outcome(contents: PageContents) -> str:
    """Return what came out, as a row of figures."""
    plan = contents.plan
    unit = UNITS[plan.objective]
    bound = "none" if plan.lower_bound is None else f"{amount(plan.lower_bound)} {unit}"
    gap = "none" if plan.gap is None else f"{100 * plan.gap:z.2f}%"
    cards = [
        ("objective", f"{amount(plan.objective_value)} {unit}", plan.objective.value.replace("_", " ")),
        ("bound", bound, "proven: no plan is below" if contents.certified else "not certified by the checker"),
        ("gap", gap, f"status: {plan.status.value}"),
        ("checked", "valid", "all seven rules, by an independent checker"),
        ("makespan", f"{amount(plan.makespan_s)} s", "until the last replica is done"),
    ]
    if plan.objective is not Objective.GPU_TIME:
        cards.append(("GPU time", f"{amount(plan.gpu_time_s)} GPU-s", ""))
    if plan.cost is not None and plan.objective is not Objective.COST:
        cards.append(("cost", amount(plan.cost), "in the money of the prices given"))
    found = sharing_summary(plan)
    if found is not None and found.separate and found.shared is not None:
        of = f"{_count(found.compared, 'separate run')}: {amount(found.separate)} {found.unit}"
        cards.append(("sharing saves", f"{100 * (1 - found.shared / found.separate):z.1f}%", of))
    cards.append(("bubble", f"{100 * contents.bubble:.1f}%", "of the GPU time no stage works"))
    layout = "packed: samples without padding" if contents.instance.layout == "packed" else "of the tokens computed"
    cards.append(("padding", f"{100 * contents.total_padding:.1f}%", layout))
    if contents.measured:
        measured = max(c.measured.makespan for c in contents.measured)
        off = f"{100 * (measured / plan.makespan_s - 1):+z.1f}% of the prediction" if plan.makespan_s else ""
        cards.append(("measured", f"{amount(measured)} s", off))
        cards.append(("measured bubble", f"{100 * contents.measured_bubble:.1f}%", ""))
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>"


def _card(name: str, value: str, note: str) -> str:
    mark = " good" if name == "checked" else ""
    return (
        f'<div class="card{mark}"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def allocation(contents: PageContents) -> str:
    """Return replicas, their GPUs and adapters as a picture, and the GPUs without work."""
    colours = dict(zip(contents.adapters, adapter_colours(len(contents.adapters)), strict=True))
    rows = [_replica(contents, k, replica, colours) for k, replica in enumerate(contents.plan.replicas)]
    for pool in contents.instance.gpu_pools:
        free = pool.count - sum(r.num_stages for r in contents.plan.replicas if r.gpu == pool.gpu)
        if free:
            boxes = '<div class="gpu idle"></div>' * min(free, MOST_LISTED) + (" ..." if free > MOST_LISTED else "")
            label = f'<div class="label">{free} of {pool.count} {escape(pool.gpu)}<br>without work</div>'
            rows.append(f'<div class="replica">{label}<div class="gpus">{boxes}</div></div>')
    return f'<div class="allocation">{"".join(rows)}</div>'


def _replica(contents: PageContents, k: int, replica: Replica, colours: dict[str, str]) -> str:
    limit = contents.memory_limit(replica)
    gpus = []
    for stage, peak in enumerate(replica.peak_memory_gib):
        layers = "" if replica.layers_per_stage is None else f", {_count(replica.layers_per_stage[stage], 'layer')}"
        gpus.append(
            f'<div class="gpu" title="peak memory of the stage"><div class="fill" '
            f'style="height:{100 * min(1.0, peak / limit):.1f}%"></div>'
            f'<div class="text"><b>stage {stage}</b>{layers}<br>{peak:.1f} of {limit:.1f} GiB</div></div>'
        )
    tokens = dict.fromkeys(replica.adapters, 0)
    for held in contents.lengths[k].tokens:
        for i, n in held.items():
            tokens[contents.adapters[i]] += n
    total = sum(tokens.values()) or 1
    parts = "".join(
        f'<div class="part" style="flex:{n / total:.5f} 1 0;background:{colours[name]}" '
        f'title="{escape(name)}: {100 * n / total:.1f}% of the tokens"><span>{escape(name)}</span></div>'
        for name, n in tokens.items()
    )
    size = f"{amount(replica.makespan_s)} s, {_count(len(replica.micro_batches), 'micro-batch', 'es')}"
    mode = "" if replica.recompute is None else f"<br>recompute {replica.recompute.value}"
    return (
        f'<div class="replica"><div class="label"><b>replica {replica.id}</b><br>{replica.num_stages} x '
        f"{escape(replica.gpu)}<br>{size}{mode}</div>"
        f'<div class="inside"><div class="gpus">{"".join(gpus)}</div><div class="parts">{parts}</div></div></div>'
    )


def adapter_table(contents: PageContents) -> str:
    """Return the adapters; where the plan says so, each with what it would cost alone and what it adds here."""
    instance, plan = contents.instance, contents.plan
    colours = dict(zip(contents.adapters, adapter_colours(len(contents.adapters)), strict=True))
    unit = "money" if plan.objective is Objective.COST else "GPU-s"
    head = ["adapter", "replica", "rank", "learning rate", "samples a step", "steps", "tokens"]
    compared = knows_savings(contents)
    head += [f"alone ({unit})", f"adds here ({unit})", f"saves ({unit})"] * compared
    rows = []
    for replica in plan.replicas:
        savings: Sequence[AdapterSaving | None] = replica.savings or (None,) * len(replica.adapters)
        for name, saving in zip(replica.adapters, savings, strict=True):
            i = instance.adapter_index(name)
            job = instance.adapters[i]
            swatch = f'<span class="swatch" style="background:{colours[name]}"></span>'
            cells = [str(replica.id), str(job.rank), f"{job.learning_rate:g}", str(job.global_batch_size)]
            cells += [str(instance.num_steps(i)), f"{int(instance.step_lengths[i].sum()):,}"]
            cells += _saved(saving, unit) if compared else []
            rows.append([swatch + escape(name), *map(escape, cells)])
    return _table(head, rows)


def knows_savings(contents: PageContents) -> bool:
    """Return whether the plan says of any adapter what it costs alone or adds."""
    found = [s for r in contents.plan.replicas for s in r.savings or ()]
    return any(s.alone_gpu_time_s is not None or s.added_gpu_time_s is not None for s in found)


def _saved(saving: AdapterSaving | None, unit: str) -> list[str]:
    """Return what an adapter costs alone, what it adds to its replica, and what that saves."""
    if saving is None:
        return ["not found out"] * 3
    alone, added = saving.alone_gpu_time_s, saving.added_gpu_time_s
    if unit == "money":
        alone, added = saving.alone_cost, saving.added_cost
    return [
        "not found out" if alone is None else f"{amount(alone)} on {saving.alone_num_stages} x {saving.alone_gpu}",
        "not found out" if added is None else amount(added),
        "not found out" if alone is None or added is None else amount(alone - added),
    ]


def stage_table(contents: PageContents) -> str:
    """Return busy time, bubble, memory and padding of every stage, as predicted and as measured."""
    head = ["stage", "busy (s)", "bubble", "peak memory (GiB)", "limit (GiB)", "padding of the replica"]
    head += ["measured busy (s)", "measured bubble"] * bool(contents.measured)
    rows = []
    for k, (replica, run) in enumerate(zip(contents.plan.replicas, contents.simulation.replicas, strict=True)):
        line = run.timeline
        for stage, (busy, peak) in enumerate(zip(line.busy, run.peak_memory_gib, strict=True)):
            row = [f"replica {replica.id}, stage {stage}", amount(busy), _idle(float(busy), line.makespan)]
            row += [f"{peak:.2f}", f"{contents.memory_limit(replica):.2f}", f"{100 * contents.padding(k):.1f}%"]
            if contents.measured:
                found = contents.measured[k].measured
                taken = float(found.busy[stage])
                row += [amount(taken), _idle(taken, found.makespan)]
            rows.append(row)
    return _table(head, rows)


def _idle(busy: float, makespan: float) -> str:
    return f"{100 * max(0.0, 1 - busy / makespan):.1f}%" if makespan else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural if number != 1 else ''}"
