from copy import deepcopy

import numpy as np
import pytest
from helpers.drawn import seeds
from helpers.schedules import built, random_order, random_replica, violations

from cappuccino.solvers.scheduling.annealing import move_rule
from cappuccino.solvers.scheduling.kernels.arrays import PackedOrder, empty_state
from cappuccino.solvers.scheduling.kernels.moves import _accept, _change, anneal, copy_packed, evaluate, price
from cappuccino.solvers.scheduling.order import OrderArrays, ScheduledOrder

INFINITY = float("inf")


class Search:
    """A random replica with a random packing and order, as the compiled search sees them."""

    def __init__(self, seed: int, *, spare: int = 4) -> None:
        self.problem = random_replica(seed, tight=seed % 2 == 0, layout="padded" if seed % 3 == 0 else "packed")
        self.order = random_order(self.problem, seed, urgent=seed % 4 == 0)
        self.machine, self.costs = self.problem.machine(0.0), self.problem.stage_costs
        self.arrays = OrderArrays.of(self.problem, self.order, spare=spare)
        self.current, self.window = self.arrays.packed, self.arrays.window
        self.scratch = self.arrays.scratch(self.problem.num_stages)
        self.begin = empty_state(self.problem.num_stages, len(self.current.order))
        self.start = self.value(self.current)
        self.values = np.array([self.start, self.start])

    def value(self, packed: PackedOrder) -> float:
        return evaluate(self.machine, self.window, packed, self.scratch, self.begin, INFINITY)

    def run(self, seed: int | np.random.Generator, moves: int, *, low=0, tail=0, target_s=0.0, heat=0.1):
        """Make moves and return the generator, to go on with."""
        rng, launch_bound = np.random.default_rng(seed), self.problem.launch_bound_work
        anneal(
            rng, self.machine, self.costs, self.window, self.current, self.scratch, self.begin, low, tail, moves,
            heat * launch_bound, move_rule(self.problem), self.values, target_s,
        )  # fmt: skip
        return rng

    def schedule(self, packed: PackedOrder) -> ScheduledOrder:
        return ScheduledOrder.of(self.problem, self.arrays.batches(self.problem, packed))


def listed(packed: PackedOrder) -> list[list[float]]:
    return [x.tolist() for x in packed]


def require_consistent(search: Search, packed: PackedOrder) -> None:
    """Every slot has its place, every sample a micro-batch, every micro-batch samples that it is priced for."""
    count, room = int(packed.number[0]), len(packed.order)
    assert 1 <= count <= room
    assert sorted(packed.order.tolist()) == list(range(room))
    used = packed.order[:count].tolist()
    evaluated = set(search.arrays.evaluations)
    assert set(packed.batch_of.tolist()) | evaluated == set(used)
    assert not set(packed.batch_of.tolist()) & evaluated
    for slot, batch in zip(used, search.arrays.batches(search.problem, packed), strict=True):
        assert packed.tokens[slot] == batch.tokens <= search.problem.max_tokens
        assert packed.forward_s[slot] == pytest.approx(batch.forward_s, rel=1e-12)
        assert packed.backward_s[slot] == pytest.approx(batch.backward_s, rel=1e-12)
        assert packed.transfer_s[slot] == pytest.approx(batch.transfer_s, rel=1e-12)


@seeds(12)
def test_changes_keep_packing_and_order_consistent(seed):
    search = Search(seed, spare=seed % 4)
    rng, current, candidate = np.random.default_rng(seed), search.current, search.scratch.candidate
    copy_packed(current, candidate)
    low, tail = (0, 0) if seed % 2 else (1, 2)
    outcomes = set()
    for _ in range(120):
        before = listed(current)
        high = int(candidate.number[0]) - tail
        touched = _change(rng, search.window, candidate, low, high, move_rule(search.problem))
        if touched[0] == -2:
            assert listed(candidate) == before
            outcomes.add("nothing")
            continue
        prices = [price(search.costs, search.window, candidate, slot) for slot in touched[:2] if slot >= 0]
        fits = touched[2] == 0 and all(prices)
        # whether it fits or not, all samples are somewhere, and begin and end are as they were
        assert sorted(candidate.order.tolist()) == list(range(len(candidate.order)))
        assert set(candidate.batch_of.tolist()) <= set(candidate.order[: candidate.number[0]].tolist())
        assert candidate.order[:low].tolist() == before[1][:low]
        kept = slice(int(candidate.number[0]) - tail, int(candidate.number[0]))
        old = slice(int(current.number[0]) - tail, int(current.number[0]))
        assert candidate.order[kept].tolist() == before[1][old]
        for slot in (*before[1][:low], *before[1][old]):
            assert np.array_equal(candidate.batch_of == slot, current.batch_of == slot)
        if fits:
            require_consistent(search, candidate)
        if fits and rng.random() < 0.5:
            after = listed(candidate)
            _accept(candidate, current, touched)
            assert listed(current) == listed(candidate) == after
            outcomes.add("accepted")
        else:
            _accept(current, candidate, touched)
            assert listed(current) == listed(candidate) == before
            outcomes.add("rejected")
    if len(search.order) - low - tail > 2:  # of fewer, hardly anything can be changed
        assert outcomes == {"nothing", "accepted", "rejected"}


def test_every_kind_of_change_happens():
    search = Search(5, spare=6)
    rng, packed = np.random.default_rng(0), search.current
    seen = set()
    for _ in range(600):
        before = deepcopy(packed)
        touched = _change(rng, search.window, packed, 0, int(packed.number[0]), move_rule(search.problem))
        moved = int(np.sum(before.batch_of != packed.batch_of))
        grown = int(packed.number[0] - before.number[0])
        if touched[0] == -2:
            seen.add("nothing")
        elif grown > 0:
            seen.add("split")
        elif grown < 0:
            seen.add("join")
        elif moved:
            seen.add("exchange" if moved == 2 else "move")
        elif not np.array_equal(before.urgency_s, packed.urgency_s):
            seen.add("urgency")
        elif not np.array_equal(before.order, packed.order):
            places = int(np.sum(before.order != packed.order))
            seen.add("swap" if places == 2 else "shift")
        copy_packed(before, packed)
    assert seen == {"nothing", "split", "join", "exchange", "move", "urgency", "swap", "shift"}


@seeds(12)
def test_annealing_never_worsens_and_knows_what_it_found(seed):
    search = Search(seed)
    for round_ in range(6):
        best = search.values[1]
        search.run(round_, 60)
        assert search.values[1] <= best
        assert search.values[1] <= search.values[0]
        assert search.value(search.current) == search.values[0]
        assert search.value(search.scratch.best) == search.values[1]
        require_consistent(search, search.current)
        require_consistent(search, search.scratch.best)
    found = search.schedule(search.scratch.best)
    assert found.makespan_s == pytest.approx(search.values[1], rel=1e-12)
    assert violations(built(search.problem, found)) == ()


def test_annealing_improves_most_random_orders():
    gains = []
    for seed in range(12):
        search = Search(seed)
        search.run(0, 300)
        gains.append(1 - search.values[1] / search.start)
    assert np.median(gains) > 0.08


def test_annealing_accepts_worse_orders_for_a_while():
    hot, cold = Search(3), Search(3)
    hot.run(0, 200, heat=1.0)
    assert hot.values[0] > hot.values[1]
    for seed in range(20):
        now = cold.values[0]
        cold.run(seed, 10, heat=0.0)
        assert cold.values[0] == cold.values[1] <= now


@pytest.mark.parametrize("seed", range(4))
def test_equal_seeds_and_moves_give_equal_searches(seed):
    one, pieces, other = Search(seed), Search(seed), Search(seed)
    one.run(seed, 300)
    rng = pieces.run(seed, 1)
    rng = pieces.run(rng, 99)
    pieces.run(rng, 200)
    other.run(seed + 1, 300)
    assert listed(one.current) == listed(pieces.current)
    assert listed(one.scratch.best) == listed(pieces.scratch.best)
    assert one.values.tolist() == pieces.values.tolist()
    assert listed(one.current) != listed(other.current)


@pytest.mark.parametrize("seed", range(4))
def test_annealing_stops_at_the_target(seed):
    search = Search(seed)
    before = listed(search.current)
    rng = search.run(seed, 100, target_s=search.start)
    assert listed(search.current) == before
    assert rng.bit_generator.state == np.random.default_rng(seed).bit_generator.state
    search.run(seed, 200)
    reached = float(search.values[1])
    again = Search(seed)
    again.run(seed, 10**9, target_s=reached)
    assert again.values[1] == reached
    assert listed(again.scratch.best) == listed(search.scratch.best)
    assert listed(again.current) == listed(again.scratch.best)


@pytest.mark.parametrize("seed", range(6))
def test_beginning_and_end_stay_as_they_are(seed):
    search = Search(seed)
    low, tail = 1 + seed % 2, 2
    old = search.arrays.batches(search.problem, search.current)
    search.run(seed, 300, low=low, tail=tail)
    for packed in (search.current, search.scratch.best):
        new = search.arrays.batches(search.problem, packed)
        assert [b.samples for b in new[:low]] == [b.samples for b in old[:low]]
        assert [b.samples for b in new[-tail:]] == [b.samples for b in old[-tail:]]
    assert [b.urgency_s for b in new[:low] + new[-tail:]] == [b.urgency_s for b in old[:low] + old[-tail:]]


def test_nothing_changes_where_everything_is_fixed():
    search = Search(4)
    before = listed(search.current)
    search.run(0, 50, low=len(search.order), tail=0)
    search.run(0, 50, low=2, tail=len(search.order) - 2)
    assert listed(search.current) == before
    assert search.values.tolist() == [search.start] * 2
