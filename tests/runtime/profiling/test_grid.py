"""Which points a profile measures, and the plan that measures them."""

from dataclasses import replace
from pathlib import Path

import pytest

from cappuccino.checker import check
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum
from cappuccino.errors import InputError
from cappuccino.plan import Recompute
from cappuccino.runtime.profiling.grid import RANK, Point, ProfileGrid
from cappuccino.runtime.profiling.plan import ProfilePlan, one_forward_one_backward, profile_plan

PLAIN = {"num_adapters": (), "ranks": (), "target_modules": (), "dropout": 0.0}
GRID = ProfileGrid(tokens=(16, 64), sequence_lengths=(8, 16), grad_acc_steps=3, repeats=2)


def order(first: int, count: int, depth: int) -> str:
    return " ".join(f"{kind}{m}" for kind, m in one_forward_one_backward(range(first, first + count), depth))


def test_one_forward_one_backward_by_hand() -> None:
    assert order(0, 4, 1) == "F0 B0 F1 B1 F2 B2 F3 B3"  # the last stage holds one micro-batch
    assert order(0, 4, 2) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert order(4, 4, 3) == "F4 F5 F6 B4 F7 B5 B6 B7"
    assert order(0, 2, 3) == "F0 F1 B0 B1"  # deeper than there are micro-batches
    assert order(7, 1, 1) == "F7 B7"


def test_points_are_whole_samples_by_ascending_tokens() -> None:
    grid = ProfileGrid(tokens=(32, 8, 24), sequence_lengths=(16, 8), **PLAIN)
    points = [(p.samples, p.length) for p in grid.points()]
    assert points == [(1, 8), (3, 8), (4, 8), (2, 16)]  # 8 and 24 are no multiples of 16


def test_adapters_are_varied_one_at_a_time_with_few_tokens_and_with_more() -> None:
    grid = ProfileGrid(tokens=(16, 32, 64), sequence_lengths=(8,), num_adapters=(2,), ranks=(RANK, 4))
    varied = [p for p in grid.points() if p != Point(p.samples, p.length)]
    kinds = [(2, RANK, "qkvo", 0.0), (1, 4, "qkvo", 0.0), (1, RANK, "qv", 0.0)]
    kinds += [(1, RANK, "all-linear", 0.0), (1, RANK, "all-linear", 0.05)]
    found = [
        (
            p.num_adapters,
            p.rank,
            p.target_modules if p.target_modules == "all-linear" else "".join(n[0] for n in p.target_modules),
            p.dropout,
        )
        for p in varied
    ]
    assert sorted(found) == sorted([*kinds * 2, kinds[0]])
    assert {p.tokens for p in varied[:-1]} == {16, 32}  # 32 is the middle between 16 and 64
    assert varied[-1] == Point(8, 8, 2)  # the most adapters with the most tokens
    assert [p.tokens for p in grid.points()] == sorted(p.tokens for p in grid.points())


def test_adapters_share_the_longest_samples_that_they_can() -> None:
    grid = replace(GRID, num_adapters=(4,), ranks=(), target_modules=())
    shared = [p for p in grid.points() if p.num_adapters == 4]
    assert shared == [Point(4, 16, 4)]  # 16 tokens are 2 samples at most; of 64, 4 of 16 are longer than 8 of 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (16, 20)}, "--tokens: 20 is in no point"),
        ({"sequence_lengths": (8, 12)}, "--sequence-lengths: 12 is in no point"),
        ({"tokens": ()}, r"--tokens: \[\] is not allowed"),
        ({"num_stages": (0, 1)}, r"--num-stages: \[0, 1\] is not allowed"),
        ({"num_stages": (2, 2)}, r"--num-stages: \[2, 2\] names a value twice"),
        ({"sequence_lengths": (-8,)}, r"--sequence-lengths: \[-8\] is not allowed"),
        ({"ranks": (0,)}, r"--ranks: \[0\] is not allowed"),
        ({"num_adapters": (3,)}, "--num-adapters: 3 is in no point"),
        ({"grad_acc_steps": 0}, r"--micro-batches: \[0\] is not allowed"),
        ({"repeats": 0}, r"--repeats: \[0\] is not allowed"),
    ],
)
def test_bad_grids(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"num_stages": (1,), "tokens": (16,), "sequence_lengths": (8,), **PLAIN, **change}
    with pytest.raises(InputError, match=message):
        ProfileGrid(**settings).points()  # type: ignore[arg-type]


def plan_of(stages: int, folder: Path) -> ProfilePlan:
    return profile_plan(GRID.points(), GRID, (1,) * stages, name="b", gpu="x", vocab=64, data=folder)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_plan_breaks_no_rule_but_that_of_times(stages: int, tmp_path: Path) -> None:
    profile = plan_of(stages, tmp_path)
    second = SmoothMaximum(floor_s=1.0, per_token_s=0.0, per_square_s=0.0, power=1.0)
    memory = {stages: MemoryModel(static_gib=1.0, working_gib=0.0, held_gib=0.0)}
    costs = CostModel(backbone="b", gpu="x", forward=second, backward=second, memory=memory, recompute=Recompute.NONE)
    report = check(profile.plan, profile.instance, {"x": costs})
    assert {violation.rule for violation in report.violations} == {7}, report.violations
    assert report.simulation is not None
    # Every optimizer step ends in a flush: (micro-batches + stages - 1) slots of an F and a B, 1 / stages seconds each.
    points, slot = len(GRID.points()), 2.0 / stages
    expected = points * (GRID.repeats + 1) * (GRID.grad_acc_steps + stages - 1) * slot
    expected += (points * GRID.grad_acc_steps + stages - 1) * slot  # the last steps of all points, without a flush
    assert report.simulation.makespan_s == pytest.approx(expected)


def test_steps_and_points_are_found_in_the_programs(tmp_path: Path) -> None:
    profile = plan_of(2, tmp_path)
    for p, point in enumerate(GRID.points()):
        assert len(profile.owners[p]) == point.num_adapters
        for span, batches in zip(profile.steps[p], profile.micro_batches[p][:-1], strict=True):
            for stage, (begin, end) in enumerate(span):
                program = profile.replica.programs[stage][begin:end]
                assert sorted(op[1] for op in program if op[0] == "F") == list(batches)
                assert [op[1] for op in program if op[0] == "S"] == list(profile.owners[p])
                assert profile.point_of(stage, begin) == profile.point_of(stage, end - 1) == p
        for m in (m for batches in profile.micro_batches[p] for m in batches):
            assert len(profile.replica.micro_batches[m].samples) == point.samples
            assert {a for a, _ in profile.replica.micro_batches[m].samples} == set(profile.owners[p])


def test_the_last_steps_are_mixed(tmp_path: Path) -> None:
    profile = plan_of(2, tmp_path)
    last = [m for batches in profile.micro_batches for m in batches[-1]]
    for stage, begin in enumerate(profile.mixed):
        rest = profile.replica.programs[stage][begin:]
        forwards = [op[1] for op in rest if op[0] == "F"]
        assert sorted(forwards) == last
        assert forwards != last  # in random order, the same on all stages
        assert forwards == [op[1] for op in profile.replica.programs[0][profile.mixed[0] :] if op[0] == "F"]
        assert [op[1] for op in rest if op[0] == "S"] == [a for members in profile.owners for a in members]
        place = begin + next(i for i, op in enumerate(rest) if op == ("B", profile.micro_batches[2][-1][0]))
        assert profile.point_of(stage, place) == 2
