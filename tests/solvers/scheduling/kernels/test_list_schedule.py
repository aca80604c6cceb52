from dataclasses import replace

import numpy as np
from helpers.builders import make_costs, make_instance, make_problem, with_memory
from helpers.drawn import seeds
from helpers.naive_list_scheduling import NaivePipeline
from helpers.schedules import random_order, random_replica

from cappuccino.solvers.scheduling.kernels.arrays import empty_jobs, empty_state
from cappuccino.solvers.scheduling.kernels.list_schedule import copy_state, run_pipeline
from cappuccino.solvers.scheduling.kernels.moves import link
from cappuccino.solvers.scheduling.kernels.source import NO_SOURCE
from cappuccino.solvers.scheduling.order import OrderArrays, ScheduledOrder

INFINITY = float("inf")


def linked(problem, order):
    arrays, jobs = OrderArrays.of(problem, order), empty_jobs(len(order), len(set(problem.kinds)))
    assert link(arrays.window, arrays.packed, arrays.links(), jobs)
    return jobs


def go_on(problem, jobs, patience_s, state, *, pause=None, cutoff_s=INFINITY):
    """Run in place and return the makespan; `jobs` hold the micro-batches and nothing else."""
    count = len(jobs.tokens)
    pause = count if pause is None else pause
    return run_pipeline(problem.machine(patience_s), jobs, count, pause, cutoff_s, state, NO_SOURCE)


def operations(state):
    return tuple(map(tuple, state.operations.tolist()))


def replica_and_order(seed):
    """Return replicas of every kind: memory tight or not, packed or padded, all equally urgent or not."""
    layout = "padded" if seed % 5 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, layout=layout)
    return problem, random_order(problem, seed, urgent=seed % 3 == 0), float((0, 5, 30)[seed // 2 % 3])


@seeds(20)
def test_schedules_are_those_of_the_naive_implementation(seed):
    problem, order, patience = replica_and_order(seed)
    expected, makespan = NaivePipeline(problem, order, patience).run()
    found = ScheduledOrder.of(problem, order, patience)
    assert found.operations == expected
    assert found.makespan_s == makespan


def test_the_random_replicas_have_every_feature():
    # or the comparison above would say less than it seems to
    kinds = [replica_and_order(seed) for seed in range(60)]

    def decisive(change) -> int:
        """Return for how many replicas a schedule is another one without a feature."""
        pairs = [(ScheduledOrder.of(*kind), ScheduledOrder.of(*change(*kind))) for kind in kinds]
        return sum(found.operations != other.operations for found, other in pairs)

    assert decisive(lambda problem, order, patience: (problem, order, 0.0)) > 5
    assert decisive(lambda problem, order, patience: (problem, calm(problem, order), patience)) > 5
    assert decisive(lambda problem, order, patience: (roomy(problem), order, patience)) > 5
    deep = [problem.costs for problem, _, _ in kinds if problem.num_stages > 1]
    assert sum(costs.optimizer_s > 0 for costs in deep) > 5
    assert sum(costs.transfer[0] > 0 for costs in deep) > 5


def calm(problem, order):
    return [replace(b, urgency_s=0.0) for b in order]


def roomy(problem):
    return replace(problem, costs=with_memory(problem.costs, None))


def test_urgency_lets_others_wait():
    # 4, 5 and 1 tokens. Stage 0: F0 0-4, F1 4-9; stage 1: F0 4-8, B0 8-16. At 9 stage 0 could start F2, or wait 7 s
    # for B0, which the urgency of micro-batch 0 speaks for and that of micro-batch 2 against
    problem = make_problem(make_instance(([4, 5, 1], 3)), make_costs(), 2)

    def first_three(first: float, last: float, patience: float = 0.0) -> tuple[int, ...]:
        batches = [problem.batch([(0, n)], u) for n, u in enumerate((first, 0.0, last))]
        return ScheduledOrder.of(problem, batches, patience).operations[0][:3]

    assert first_three(6.9, 0.0) == (0, 1, 2)
    assert first_three(7.0, 0.0) == (0, 1, ~0)
    assert first_three(10.0, 2.9) == (0, 1, ~0)
    assert first_three(10.0, 3.1) == (0, 1, 2)
    assert first_three(4.0, 0.0, 3.0) == (0, 1, ~0)


def test_a_step_waits_on_the_first_stage_only():
    # two stages, 1 token, step 1 behind step 0: F0 0-1, 1-2, B0 2-4, 4-6, and only then F1
    problem = make_problem(make_instance(([1, 1], 1, 2)), make_costs(), 2)
    state, jobs = empty_state(2, 2), linked(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    assert jobs.needed.tolist() == [-1, 0]
    assert go_on(problem, jobs, 0.0, state) == 12
    assert state.forward_end_s.tolist() == [[1, 7], [2, 8]]
    assert state.backward_end_s.tolist() == [[6, 12], [4, 10]]
    assert state.free_s.tolist() == [12, 10]
    assert state.held_tokens.tolist() == [0, 0]
    assert state.forwards.tolist() == state.backwards.tolist() == [2, 2]


def test_an_order_that_blocks_itself_takes_forever():
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    jobs = linked(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    jobs.needed[0] = 1
    assert go_on(problem, jobs, 0.0, empty_state(2, 2)) == INFINITY


@seeds(20)
def test_a_pause_changes_nothing(seed):
    problem, order, patience = replica_and_order(seed)
    jobs, count, stages = linked(problem, order), len(order), problem.num_stages
    whole = empty_state(stages, count)
    makespan = go_on(problem, jobs, patience, whole)
    paused = empty_state(stages, count)
    for rank in range(1, count):
        go_on(problem, jobs, patience, paused, pause=rank)
        assert paused.forwards[0] == rank
        # from a copy, which holds nothing of what is over, in a larger room full of nonsense
        copy = empty_state(stages, count + 3)
        for values in copy:
            values[...] = -1 if values.dtype == np.int64 else np.nan
        copy_state(paused, copy)
        assert go_on(problem, jobs, patience, copy) == makespan
        for s in range(stages):
            begin = paused.forwards[s] + paused.backwards[s]
            assert copy.operations[s, begin : 2 * count].tolist() == whole.operations[s, begin:].tolist()
    # with a pause at every rank
    assert go_on(problem, jobs, patience, paused) == makespan
    assert operations(paused) == operations(whole)


@seeds(20)
def test_the_cutoff_spares_what_takes_longer_and_nothing_else(seed):
    problem, order, patience = replica_and_order(seed)
    jobs, count, stages = linked(problem, order), len(order), problem.num_stages
    makespan = go_on(problem, jobs, patience, empty_state(stages, count))
    for cutoff, expected in (
        (makespan * (1 + 1e-9), makespan),
        (makespan * (1 - 1e-9), INFINITY),
        (makespan * 1.5, makespan),
        (makespan / 2, INFINITY),
        (0.0, INFINITY),
    ):
        assert go_on(problem, jobs, patience, empty_state(stages, count), cutoff_s=cutoff) == expected
    # the same from the middle on
    paused = empty_state(stages, count)
    go_on(problem, jobs, patience, paused, pause=count // 2)
    for cutoff, expected in ((makespan * (1 + 1e-9), makespan), (makespan * (1 - 1e-9), INFINITY)):
        copy = empty_state(stages, count)
        copy_state(paused, copy)
        assert go_on(problem, jobs, patience, copy, cutoff_s=cutoff) == expected
