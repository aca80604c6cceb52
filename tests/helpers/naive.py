"""The rules of validity a second time, as literally as possible and sharing no code with the package's checker."""

from collections.abc import Mapping

from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica

Node = tuple[int, int]
"""Stage, position in its program."""


class Naive:
    """One replica, its samples looked up one by one."""

    def __init__(self, replica: Replica, instance: Instance, costs: CostModel) -> None:
        self.replica, self.costs = replica, costs
        by_name = {a.name: a for a in instance.adapters}
        self.jobs = [by_name[name] for name in replica.adapters]
        self.lengths = [instance.dataset_lengths[job.dataset].tolist() for job in self.jobs]
        self.steps = [
            job.num_steps or len(n) // job.global_batch_size for job, n in zip(self.jobs, self.lengths, strict=True)
        ]
        self.layout = instance.layout
        named = [job.eval_dataset for job in self.jobs]
        self.evaluated = [[] if name is None else instance.dataset_lengths[name].tolist() for name in named]

    def length(self, a: int, n: int) -> int:
        return self.lengths[a][n % len(self.lengths[a])]

    def members(self, operation) -> list[tuple[int, int]]:
        """Adapter and length of every sample of an operation's micro-batch."""
        if operation[0] == "E":
            batch = self.replica.evaluations[operation[1]]
            return [(batch.adapter, self.evaluated[batch.adapter][n]) for n in batch.samples]
        return [(a, self.length(a, n)) for a, n in self.replica.micro_batches[operation[1]].samples]

    def shape(self, operation) -> tuple[int, int]:
        sizes = [n for _, n in self.members(operation)]
        if self.layout == "padded":
            sizes = [max(sizes)] * len(sizes)
        return sum(sizes), sum(x * x for x in sizes)

    def duration(self, operation, stage: int) -> float:
        if operation[0] == "S":
            return self.costs.optimizer_s
        g, way = self.replica.num_stages, "FBE".index(operation[0]) % 2
        if not self.costs.parts:
            curves = (self.costs.stage_forward, self.costs.stage_backward)[way]
            whole = (self.costs.forward, self.costs.backward)[way]
            return self.time(curves[g] if g in curves else whole.scaled(1 / g), operation, adapters=True)
        parts = self.costs.parts.get(g, self.costs.parts[max(self.costs.parts)])
        seconds = self.layers()[stage] * self.time(parts.layer[way], operation, adapters=True)
        if way == 0:
            seconds += self.time(parts.input_forward, operation, adapters=False)
        if stage == g - 1:
            seconds += self.time(parts.last[way], operation, adapters=False)
        return seconds

    def layers(self) -> tuple[int, ...] | None:
        """Decoder layers by stage."""
        number, g = self.costs.num_layers, self.replica.num_stages
        if self.replica.layers_per_stage is not None or number is None:
            return self.replica.layers_per_stage
        return tuple(number // g + (s < number % g) for s in range(g))

    def time(self, curve: SmoothMaximum, operation, *, adapters: bool) -> float:
        tokens, squares = self.shape(operation)
        work = curve.per_token_s * tokens + curve.per_square_s * squares
        floor = curve.floor_s
        if adapters and self.costs.layer_shape is not None:
            members = self.members(operation)
            longest = max(n for _, n in members)
            for a in {a for a, _ in members}:
                modules, widths, parameters = self.adapter(a)
                floor += curve.per_module_s * modules
                mine = [longest if self.layout == "padded" else n for b, n in members if b == a]
                work += sum(mine) * (curve.per_width_s * widths + curve.per_parameter_s * parameters)
                work += sum(mine) * curve.per_dropped_s * self.dropped(a)
        return (floor**curve.power + work**curve.power) ** (1 / curve.power)

    def adapter(self, a: int) -> tuple[int, int, int]:
        """Modules, their widths and the parameters of an adapter in a decoder layer."""
        shape, job = self.costs.layer_shape, self.jobs[a]
        inner, outer = shape.query + shape.hidden, shape.key_value + shape.hidden
        wide = shape.intermediate + shape.hidden
        widths = {"q": inner, "k": outer, "v": outer, "o": inner, "gate": wide, "up": wide, "down": wide}
        names = list(widths) if job.target_modules == "all-linear" else [n.split("_")[0] for n in job.target_modules]
        total = sum(widths[n] for n in names)
        return len(names), total, total * job.rank

    def steps_of(self, m: int) -> set[tuple[int, int]]:
        return {(a, n // self.jobs[a].global_batch_size) for a, n in self.replica.micro_batches[m].samples}

    def inputs(self) -> dict[Node, list[tuple[Node, float]]]:
        """Return what every operation waits for, with the lag; needs rule 3."""
        programs, last = self.replica.programs, self.replica.num_stages - 1
        at = {(s, op): i for s, program in enumerate(programs) for i, op in enumerate(program)}
        result: dict[Node, list[tuple[Node, float]]] = {}
        for s, program in enumerate(programs):
            for i, op in enumerate(program):
                needs: list[tuple[Node, float]] = [((s, i - 1), 0.0)] if i else []
                if op[0] in "FBE":
                    lag = self.costs.transfer[0] + self.costs.transfer[1] * self.shape(op)[0]
                if op[0] in "FE" and s:
                    needs.append(((s - 1, at[s - 1, op]), lag))
                if op[0] == "B":
                    needs.append(((s, at[s, ("F", op[1])]), 0.0))
                    if s < last:
                        needs.append(((s + 1, at[s + 1, op]), lag))
                if op[0] == "S" and self.jobs[op[1]].max_grad_norm is not None:
                    for m in range(len(self.replica.micro_batches)):
                        if (op[1], op[2]) in self.steps_of(m):
                            needs += [((r, at[r, ("B", m)]), 0.0) for r in range(last + 1)]
                result[s, i] = needs
        return result

    def spans(self) -> dict[Node, tuple[float, float]] | None:
        """Return start and end of every operation, None on a deadlock: rounds until nothing changes."""
        inputs = self.inputs()
        done: dict[Node, tuple[float, float]] = {}
        while len(done) < len(inputs):
            ready = [x for x, needs in inputs.items() if x not in done and all(y in done for y, _ in needs)]
            if not ready:
                return None
            for s, i in ready:
                start = max((done[y][1] + lag for y, lag in inputs[s, i]), default=0.0)
                done[s, i] = start, start + self.duration(self.replica.programs[s][i], s)
        return done

    def dropped(self, a: int) -> int:
        """Input widths of an adapter's modules, where it has dropout."""
        shape, job = self.costs.layer_shape, self.jobs[a]
        inputs = dict.fromkeys(("q", "k", "v", "gate", "up"), shape.hidden)
        inputs |= {"o": shape.query, "down": shape.intermediate}
        names = list(inputs) if job.target_modules == "all-linear" else [n.split("_")[0] for n in job.target_modules]
        return sum(inputs[n] for n in names) if job.dropout else 0

    def masks_gib(self) -> float:
        """A byte a value, of the adapter with the most: of all layers, or of one where they are recomputed."""
        layers = self.layers()
        if self.costs.layer_shape is None or layers is None:
            return 0.0
        there = 1 if self.costs.recompute == "full" else max(layers)
        return max(self.dropped(a) for a in range(len(self.jobs))) * there / 2**30

    def adapters_gib(self) -> float:
        """Weight, gradient and two moments of 4 bytes each, on the stage with the most layers."""
        layers = self.layers()
        if self.costs.layer_shape is None or layers is None:
            return 0.0
        return sum(16 * self.adapter(a)[2] * max(layers) / 2**30 for a in range(len(self.jobs)))

    def peaks(self) -> list[float]:
        memory = self.costs.of_replica(self.replica).memory_model(self.replica.num_stages)
        static, token = memory.static_gib + self.adapters_gib(), memory.held_gib + self.masks_gib()
        result = []
        for program in self.replica.programs:
            moments = [static]
            for i, op in enumerate(program):
                if op[0] == "S":
                    continue
                before = program[: i + (op[0] == "F")]
                flying = {x[1] for x in before if x[0] == "F"} - {x[1] for x in program[:i] if x[0] == "B"}
                held = sum(self.shape(("F", m))[0] for m in flying)
                moments.append(static + memory.working_gib * self.shape(op)[0] + token * held)
            result.append(max(moments))
        return result

    def samples_ok(self) -> bool:
        """Rule 2."""
        wanted = [(a, n) for a, job in enumerate(self.jobs) for n in range(self.steps[a] * job.global_batch_size)]
        given = [tuple(x) for m in self.replica.micro_batches for x in m.samples]
        if sorted(given) != wanted:
            return False
        for m, batch in enumerate(self.replica.micro_batches):
            if len({a for a, _ in self.steps_of(m)}) != len(self.steps_of(m)):
                return False
            listed = [a for a, _ in batch.samples]
            if any(listed[i] != listed[i - 1] and listed[i] in listed[:i] for i in range(1, len(listed))):
                return False
        asked = [
            (a, j, n)
            for a in range(len(self.jobs))
            for j in self.evaluated_behind(a)
            for n in range(len(self.evaluated[a]))
        ]
        return sorted((e.adapter, e.step, n) for e in self.replica.evaluations for n in e.samples) == asked

    def evaluated_behind(self, a: int) -> list[int]:
        """The steps behind which an adapter is evaluated."""
        job, steps = self.jobs[a], self.steps[a]
        if job.eval_dataset is None:
            return []
        return [j for j in range(steps) if j == steps - 1 or (job.eval_every and (j + 1) % job.eval_every == 0)]

    def operations_ok(self) -> bool:
        """Rule 3."""
        wanted = [(kind, m) for kind in "FB" for m in range(len(self.replica.micro_batches))]
        wanted = sorted(wanted + [("E", e) for e in range(len(self.replica.evaluations))])
        for program in self.replica.programs:
            if sorted(op for op in program if op[0] != "S") != wanted:
                return False
            if any(program.index(("B", m)) < program.index(("F", m)) for m in range(len(self.replica.micro_batches))):
                return False
        return True

    def steps_ok(self) -> bool:
        """Rule 4."""
        wanted = sorted(("S", a, j) for a, count in enumerate(self.steps) for j in range(count))
        for program in self.replica.programs:
            if sorted(op for op in program if op[0] == "S") != wanted:
                return False
            for _, a, j in wanted:
                place = program.index(("S", a, j))
                for m in range(len(self.replica.micro_batches)):
                    if (a, j) in self.steps_of(m) and program.index(("B", m)) > place:
                        return False
                    if (a, j + 1) in self.steps_of(m) and program.index(("F", m)) < place:
                        return False
            for e, batch in enumerate(self.replica.evaluations):
                place = program.index(("E", e))
                if program.index(("S", batch.adapter, batch.step)) > place:
                    return False
                for m in range(len(self.replica.micro_batches)):
                    if (batch.adapter, batch.step + 1) in self.steps_of(m) and program.index(("F", m)) < place:
                        return False
        return True

    def order_ok(self) -> bool:
        """Rule 5, without deadlock."""
        orders = {k: {tuple(op for op in p if op[0] in k) for p in self.replica.programs} for k in ("FE", "B")}
        return all(len(x) == 1 for x in orders.values())


def is_valid(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> bool:
    """Return whether a plan without bounds keeps all seven rules."""
    placed = sorted(name for r in plan.replicas for name in r.adapters)
    if placed != sorted(a.name for a in instance.adapters) or plan.instance.sha256 != instance.digest:
        return False
    for pool in instance.gpu_pools:
        if sum(r.num_stages for r in plan.replicas if r.gpu == pool.gpu) > pool.count:
            return False
    gpu_time, makespan = 0.0, 0.0
    for replica in plan.replicas:
        (model,) = [c for c in costs[replica.gpu].choices if replica.recompute in (None, c.recompute)]
        naive = Naive(replica, instance, model)
        if not (naive.samples_ok() and naive.operations_ok() and naive.steps_ok() and naive.order_ok()):
            return False
        spans, peaks = naive.spans(), naive.peaks()
        if spans is None:
            return False
        limit = model.memory_limit(instance.pool(replica.gpu).memory_gib)
        if max(peaks) > limit + 1e-9:
            return False
        end = max(e for _, e in spans.values())
        if abs(end - replica.makespan_s) > 1e-6 * end:
            return False
        if any(abs(x - y) > 1e-6 * y for x, y in zip(replica.peak_memory_gib, peaks, strict=True)):
            return False
        gpu_time, makespan = gpu_time + replica.num_stages * end, max(makespan, end)
    return abs(gpu_time - plan.gpu_time_s) <= 1e-6 * gpu_time and abs(makespan - plan.makespan_s) <= 1e-6 * makespan
