from cappuccino.models.job_shop import JobShopWindow, order_of
from cappuccino.models.job_shop_data import HeldMemory, WindowData, WindowOperation


def op(name: str, duration: int, start: int, earliest: int = 0, tail: int = 0) -> WindowOperation:
    """Return the operation called `F1@0`: kind, job, stage."""
    return WindowOperation(int(name[1]), name[0], int(name[3]), duration, earliest, tail, start)


def window(*operations, makespan, precedences=(), fixed=(), memory=()) -> WindowData:
    return WindowData(tuple(operations), tuple(precedences), tuple(fixed), tuple(memory), makespan)


def solve(data: WindowData, seed: int = 0):
    return JobShopWindow(data).solve(time_limit_s=None, deterministic_limit=5.0, seed=seed)


def least(data: WindowData) -> int:
    found = solve(data)
    assert found is not None
    makespan, starts = found.makespan, found.starts
    assert found.places is None
    ends = [start + o.duration + o.tail for start, o in zip(starts, data.operations, strict=True)]
    assert max(ends) <= makespan < data.makespan
    return makespan


def test_a_stage_does_one_thing_at_a_time():
    # F 3 and B 4 of different jobs on one stage, and another stage at the same time: 7
    data = window(op("F0@0", 3, 10), op("B1@0", 4, 20), op("F2@1", 5, 0), makespan=24)
    assert least(data) == 7


def test_inputs_arrive_after_their_lag():
    # 2 on stage 0, a transfer of 1, 3 on stage 1, which is free: 6
    data = window(op("F0@0", 2, 5), op("F0@1", 3, 17), makespan=20, precedences=[(0, 1, 1)])
    assert least(data) == 6
    # the backward on the last stage follows its forward, then a lag of 2 back: 2 + 1 + 3 + 4 + 2 + 5
    more = window(
        op("F0@0", 2, 5),
        op("F0@1", 3, 17),
        op("B0@1", 4, 20),
        op("B0@0", 5, 30),
        makespan=35,
        precedences=[(0, 1, 1), (1, 2, 0), (2, 3, 2)],
    )
    assert least(more) == 17


def test_what_came_before_and_what_comes_after_counts():
    # earliest 4, 2 long, 5 behind it: 11
    assert least(window(op("F0@0", 2, 9, earliest=4, tail=5), makespan=16)) == 11


def crossing(kind_of_0: str, kind_of_1: str, **options) -> WindowData:
    """Stage 0 wants job 1 first, for its tail; stage 1 wants job 0 first."""
    return window(
        op(f"{kind_of_0}0@0", 5, 10),
        op(f"{kind_of_1}1@0", 5, 15, tail=10),
        op(f"{kind_of_0}0@1", 5, 10, tail=10),
        op(f"{kind_of_1}1@1", 5, 15),
        makespan=30,
        **options,
    )


def test_links_are_fifo():
    # the second job on a stage ends at 10; in one order for both stages, one of them has a tail of 10: 20
    assert least(crossing("F", "F")) == 20
    assert least(crossing("B", "B")) == 20


def test_forwards_and_backwards_have_orders_of_their_own():
    # each stage may put the job with the tail first: 5 + 10
    assert least(crossing("F", "B")) == 15


def test_pairs_whose_order_is_settled_keep_it():
    # on its own the stage would run job 0 first, for its tail: 5 + 10
    operations = (op("F0@0", 5, 15, tail=10), op("F1@0", 5, 10))
    assert least(window(*operations, makespan=31)) == 15
    # job 1 first: 5 + 5 + 10
    assert least(window(*operations, makespan=31, fixed=[("F", 1, 0)])) == 20
    # the order of the backwards says nothing about the forwards
    assert least(window(*operations, makespan=31, fixed=[("B", 1, 0)])) == 15


def two_in_flight(capacity: int) -> WindowData:
    """Two jobs of 6 tokens: F takes 1, B takes 2 and has its input at 10."""
    return window(
        op("F0@0", 1, 0),
        op("B0@0", 2, 10, earliest=10),
        op("F1@0", 1, 13),
        op("B1@0", 2, 18, earliest=10),
        makespan=20,
        precedences=[(0, 1, 0), (2, 3, 0)],
        memory=[HeldMemory(0, capacity, (), ((0, 6), (1, 6)), ())],
    )


def test_memory_of_jobs_within_the_window():
    # both in flight: B's at 10 and 12, end 14; one at a time: B0 until 12, F1 until 13, B1 until 15
    assert least(two_in_flight(12)) == 14
    assert least(two_in_flight(11)) == 15


def test_memory_of_a_job_from_before_the_window():
    def data(capacity: int) -> WindowData:
        return window(
            op("B0@0", 2, 10, earliest=10),
            op("F1@0", 1, 13),
            op("B1@0", 2, 18, earliest=10),
            makespan=20,
            precedences=[(1, 2, 0)],
            memory=[HeldMemory(0, capacity, ((0, 6),), ((1, 6),), ())],
        )

    # job 0 is held until its B ends at 12 at the earliest; F1 before it, or after it
    assert least(data(12)) == 14
    assert least(data(11)) == 15


def test_memory_of_a_job_that_stays_beyond_the_window():
    def data(capacity: int) -> WindowData:
        return window(
            op("F0@0", 1, 0),
            op("B0@0", 2, 10, earliest=10),
            op("F2@0", 1, 14, tail=3),
            makespan=18,
            precedences=[(0, 1, 0)],
            memory=[HeldMemory(0, capacity, (), ((0, 6),), ((2, 6),))],
        )

    # F2 anywhere: B0 ends at 12; F2 only after B0: 12 + 1 + 3
    assert least(data(12)) == 12
    assert least(data(11)) == 16


def test_memory_of_one_stage_says_nothing_about_another():
    data = two_in_flight(11)
    elsewhere = window(
        *data.operations, op("F3@1", 1, 0), makespan=20, precedences=data.precedences,
        memory=[HeldMemory(1, 6, (), (), ((3, 6),))],
    )  # fmt: skip
    assert least(elsewhere) == 14


def test_nothing_better_is_none():
    assert solve(window(op("F0@0", 3, 0), op("B1@0", 4, 3), makespan=7)) is None


def test_same_seed_same_starts():
    data = two_in_flight(12)
    assert solve(data, seed=3) == solve(data, seed=3)


def test_names_in_the_exported_model_are_readable():
    text = str(JobShopWindow(crossing("F", "B")).model) + str(JobShopWindow(two_in_flight(11)).model)
    text += str(JobShopWindow(crossing("F", "F")).model)
    for name in ("forward[1,0].start", "backward[0,1].start", "F_before[0,1]", "held[0,1]", "makespan"):
        assert name in text


def test_order_by_start():
    assert order_of([5, 1, 3], [0, 1, 2]) == [1, 2, 0]
