"""Packing on the fly: micro-batches are formed when the first stage is free, from the steps open then.

The open step of the adapter with the longest remaining path leads; it is split evenly into parts of about the target,
or as it is given. A part far below the target is filled with parts of other open steps, longest remaining path first.

Legend: A adapters, N samples (adapter by adapter, in training order), P the most parts of a step.
"""

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import EMPTY, BusiestStage, Shape
from cappuccino.solvers.scheduling.kernels.costs import add_sample, time_of_work
from cappuccino.solvers.scheduling.kernels.source import PackingRule, Source


@compiled
def _target(source: Source, a: int) -> float:
    """Return the work aimed at in micro-batches that an adapter leads, seconds."""
    rule = source.rule
    return rule.target_work_s * (rule.critical_target if a == source.critical[0] else 1.0)


@compiled
def _passage(rule: PackingRule, busiest: BusiestStage, behind: int, work_s: float) -> float:
    """Return about how long a step of this work takes on its own, `behind` stages being behind the first."""
    n = max(1, int(work_s / rule.target_work_s + 0.5))
    own = (n + behind) * time_of_work(busiest, work_s / n)
    return own + behind * rule.load * time_of_work(busiest, rule.target_work_s)


@compiled
def _step_work(source: Source, a: int, j: int) -> float:
    """Return the work of step j of an adapter, seconds."""
    first = source.first_sample[a] + j * source.batch_size[a]
    work = 0.0
    for n in range(first, first + source.batch_size[a]):
        work += source.work_s[n]
    return work


@compiled
def _open_step(source: Source, a: int, j: int) -> None:
    """Split step j of an adapter into the parts that are given, or evenly into parts within the memory."""
    size = source.batch_size[a]
    first = source.first_sample[a] + j * size
    given = source.place[first] >= 0
    count = min(size, max(1, int(_step_work(source, a, j) / _target(source, a) + 0.5)))
    if given:
        count = 0
        for n in range(first, first + size):
            count = max(count, source.place[n] + 1)
    while True:
        for p in range(count):
            source.part_work_s[a, p] = 0.0
            source.part_tokens[a, p] = 0
            source.part_size[a, p] = 0
            source.part_longest[a, p] = 0
            source.part_rank[a, p] = -1
        for k in range(size):
            i = first + source.heaviest[first + k]
            lightest = max(0, source.place[i])
            for p in range(0 if given else 1, 0 if given else count):
                if source.part_work_s[a, p] < source.part_work_s[a, lightest]:
                    lightest = p
            source.part_of[i] = lightest
            source.part_work_s[a, lightest] += source.work_s[i]
            source.part_size[a, lightest] += 1
            source.part_longest[a, lightest] = max(source.part_longest[a, lightest], source.length[i])
            if source.padded:
                source.part_tokens[a, lightest] = source.part_longest[a, lightest] * source.part_size[a, lightest]
            else:
                source.part_tokens[a, lightest] += source.length[i]
        largest = 0
        for p in range(count):
            largest = max(largest, source.part_tokens[a, p])
        if given or count == size or largest <= source.max_tokens:
            break
        count += 1
    source.step[a] = j
    source.parts[a] = source.waiting[a] = count
    source.running[a] = 0


@compiled
def open_first_steps(source: Source) -> None:
    """Begin: open the first step of every adapter."""
    for a in range(len(source.step)):
        steps = source.num_steps[a]
        source.rest_s[a, steps] = 0.0
        for j in range(steps - 1, -1, -1):
            source.rest_s[a, j] = source.rest_s[a, j + 1] + _passage(
                source.rule, source.busiest, source.stages - 1, _step_work(source, a, j)
            )
        if source.rest_s[a, 0] > source.rest_s[source.critical[0], 0]:
            source.critical[0] = a
    for a in range(len(source.step)):
        _open_step(source, a, 0)
    source.formed[0] = 0


@compiled
def peek(source: Source) -> bool:
    """Choose the parts of the next micro-batch; return whether there are any."""
    if source.formed[0]:
        return True
    rule, adapters, priority = source.rule, len(source.step), source.priority
    source.chosen[:] = -1
    source.chosen_evaluation[0] = -1
    for a in range(adapters):
        if source.evaluation_next[a] < source.evaluation_end[a]:  # its next step waits for it
            source.chosen_evaluation[0] = source.evaluation_next[a]
            source.formed[0] = 1
            return True
    lead = _next_round_robin(source) if rule.round_robin else _longest_path(source)
    if lead < 0:
        return False
    part = _leading(source, lead)
    source.chosen[lead] = part
    work, tokens = source.part_work_s[lead, part], source.part_tokens[lead, part]
    size, longest = source.part_size[lead, part], source.part_longest[lead, part]
    target = _target(source, lead)
    given = source.place[source.first_sample[lead] + source.step[lead] * source.batch_size[lead]] >= 0
    while work < rule.fill * target and not given:
        priority[lead] = -1.0
        for a in range(adapters):
            if priority[a] > priority[lead]:
                lead = a
        if priority[lead] < 0.0:
            break
        part = _heaviest(source, lead, rule.overshoot * target - work, tokens, size, longest)
        if part >= 0:
            source.chosen[lead] = part
            work += source.part_work_s[lead, part]
            size += source.part_size[lead, part]
            longest = max(longest, source.part_longest[lead, part])
            tokens = longest * size if source.padded else tokens + source.part_tokens[lead, part]
    source.formed[0] = 1
    return True


@compiled
def _longest_path(source: Source) -> int:
    """Return the adapter whose open step leads, and write the priorities of all; -1: none waits."""
    priority, lead = source.priority, -1
    rule, busiest, behind = source.rule, source.busiest, source.stages - 1
    for a in range(len(source.step)):
        priority[a] = -1.0
        if source.waiting[a]:
            pending = 0.0
            for p in range(source.parts[a]):
                if source.part_rank[a, p] < 0:
                    pending += source.part_work_s[a, p]
            priority[a] = source.rest_s[a, source.step[a] + 1] + _passage(rule, busiest, behind, pending)
            priority[a] *= source.bias[a, source.step[a]]
            if lead < 0 or priority[a] > priority[lead]:
                lead = a
    return lead


@compiled
def _next_round_robin(source: Source) -> int:
    """Return the next adapter that has no micro-batch in flight; -1: none."""
    adapters = len(source.step)
    for i in range(adapters):
        a: int = (source.turn[0] + i) % adapters
        if source.waiting[a] and not source.running[a]:
            return a
    return -1


@compiled
def _leading(source: Source, a: int) -> int:
    """Return the part with which an adapter leads: the next one where they are given, else the heaviest."""
    if source.place[source.first_sample[a] + source.step[a] * source.batch_size[a]] < 0:
        return _heaviest(source, a, np.inf, 0, 0, 0)
    p = 0
    while source.part_rank[a, p] >= 0:
        p += 1
    return p


@compiled
def _heaviest(source: Source, a: int, most_s: float, tokens: int, size: int, longest: int) -> int:
    """Return the heaviest waiting part of at most this work that fits beside tokens at hand; -1: none."""
    best = -1
    for p in range(source.parts[a]):
        if source.part_rank[a, p] >= 0 or source.part_work_s[a, p] > most_s:
            continue
        total = tokens + source.part_tokens[a, p]
        if source.padded:
            total = max(longest, source.part_longest[a, p]) * (size + source.part_size[a, p])
        if size and total > source.max_tokens:
            continue
        if best < 0 or source.part_work_s[a, p] > source.part_work_s[a, best]:
            best = p
    return best


@compiled
def shape_of_next(source: Source) -> Shape:
    """Return what the micro-batch to come holds."""
    shape = EMPTY
    for a in range(len(source.step)):
        part = source.chosen[a]
        if part < 0:
            continue
        first, opens = source.first_sample[a] + source.step[a] * source.batch_size[a], True
        for n in range(first, first + source.batch_size[a]):
            if source.part_of[n] == part:
                shape = add_sample(shape, source.length[n], source.padded, source.added[a], opens)
                opens = False
    return shape


@compiled
def wait_of_next(source: Source) -> float:
    """Return the optimizer time before the micro-batch to come: one step of every adapter it begins a step of."""
    count, e = 0, source.chosen_evaluation[0]
    for a in range(len(source.step)):
        begins, j = source.evaluation_begins[a], source.step[a]
        if source.chosen[a] >= 0 and j > 0 and source.waiting[a] == source.parts[a]:
            count += 1 if begins[j] == begins[j - 1] else 0  # else the step stands before what evaluates it
        elif e >= 0 and source.evaluation_next[a] == e and begins[j] == e and begins[j + 1] > e:
            count += 1
    return count * source.optimizer_s


@compiled
def take(source: Source, rank: int) -> None:
    """Hand out the micro-batch to come."""
    e = source.chosen_evaluation[0]
    if e >= 0:
        for a in range(len(source.step)):
            begins, j = source.evaluation_begins[a], source.step[a]
            if begins[j] <= e < begins[j + 1] and source.evaluation_next[a] == e:
                source.evaluation_next[a] = e + 1
                if e + 1 == source.evaluation_end[a]:
                    _go_on(source, a)
        source.chosen_evaluation[0] = -1
        source.formed[0] = 0
        return
    for a in range(len(source.step)):
        part = source.chosen[a]
        if part < 0:
            continue
        source.part_rank[a, part] = rank
        source.waiting[a] -= 1
        source.running[a] += 1
        first = source.first_sample[a] + source.step[a] * source.batch_size[a]
        for n in range(first, first + source.batch_size[a]):
            if source.part_of[n] == part:
                source.batch_of[n] = rank
        source.turn[0] = (a + 1) % len(source.step)
    source.formed[0] = 0


@compiled
def backward_done(source: Source, rank: int) -> None:
    """Open an adapter's next step when this was the last micro-batch of its current one."""
    for a in range(len(source.step)):
        for p in range(source.parts[a]):
            if source.part_rank[a, p] == rank:
                source.running[a] -= 1
                if source.rule.round_robin:
                    source.formed[0] = 0
                if not source.running[a] and not source.waiting[a]:
                    begins, j = source.evaluation_begins[a], source.step[a]
                    source.evaluation_next[a], source.evaluation_end[a] = begins[j], begins[j + 1]
                    if begins[j] == begins[j + 1]:
                        _go_on(source, a)
                    else:
                        source.formed[0] = 0
                break


@compiled
def _go_on(source: Source, a: int) -> None:
    """Open an adapter's next step, where there is one."""
    if source.step[a] + 1 < source.num_steps[a]:
        _open_step(source, a, source.step[a] + 1)
        source.formed[0] = 0
    else:
        source.parts[a] = 0
