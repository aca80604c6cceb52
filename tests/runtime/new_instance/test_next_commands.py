"""The commands that come after a new instance."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from cappuccino.adapter import Adapter
from cappuccino.backbone import BackboneShape
from cappuccino.instance import GpuPool, Instance
from cappuccino.runtime.new_instance.next_commands import next_commands, profiled_sizes
from cappuccino.runtime.profiling.grid import ProfileGrid

SHAPE = BackboneShape(3, 32, 48, 4, 2, 64)


def instance(folder: Path, *pools: str) -> Instance:
    return Instance(
        name="mine",
        backbone="tiny",
        cost_table=folder / "cost-table.csv",
        gpu_pools=tuple(GpuPool(gpu=gpu, count=8, memory_gib=4.0) for gpu in pools),
        max_sequence_length=64,
        dataset_lengths={"chat": np.array([10, 20, 60])},
        adapters=(Adapter(name="a", dataset="chat", global_batch_size=1),),
    )


def test_on_the_cpu_it_is_profiled_planned_and_run() -> None:
    commands = next_commands("my backbone", Path("in/instance.yaml"), instance(Path("in"), "cpu"), SHAPE, False)
    profile, plan, run = map(shlex.split, commands)
    assert profile[:6] == ["cappuccino", "profile", "--backbone", "my backbone", "-o", "in/cost-table.csv"]
    assert profile[profile.index("--num-stages") + 1] == "1,2"  # four stages would be one too many for three layers
    assert plan == ["cappuccino", "plan", "in/instance.yaml", "-o", "in/plan.json"]
    assert run == ["cappuccino", "run", "in/plan.json", "--instance", "in/instance.yaml", "--backbone", "my backbone",
                   "-o", "in/adapters"]  # fmt: skip


def test_files_of_other_instances_have_other_names() -> None:
    *_, run = next_commands("b", Path("chat.yaml"), instance(Path(), "cpu"), SHAPE, True)
    assert "chat-plan.json" in run and "chat-adapters" in run


def test_gpus_are_named_and_tables_of_several_types_put_together() -> None:
    one = next_commands("b", Path("instance.yaml"), instance(Path(), "a100-40gb"), SHAPE, False)
    assert all("--device cuda --dtype bfloat16" in command for command in (one[0], one[-1]))
    assert "--gpu a100-40gb" in one[0] and "-o cost-table.csv" in one[0]
    two = next_commands("b", Path("instance.yaml"), instance(Path(), "x", "y"), SHAPE, False)
    assert len(two) == 5
    assert "-o cost-table-x.csv --gpu x" in two[0] and "-o cost-table-y.csv --gpu y" in two[1]
    assert two[2] == "awk 'NR == 1 || FNR > 1' cost-table-x.csv cost-table-y.csv > cost-table.csv"


@pytest.mark.parametrize(
    ("lengths", "expected", "most"),
    [
        ([30] * 50 + [100] * 40 + [500] * 10, [32, 128, 512], 1024),
        ([60, 60, 60], [64], 512),  # of one length, and still shared out to four adapters, with a second point
        ([3], [8], 64),
    ],
)
def test_profiled_sizes_are_around_the_data_and_make_a_grid(lengths: list[int], expected: list[int], most: int) -> None:
    if len(expected) == 3:
        lengths = lengths + [lengths[0]] * 12  # so that the median lies in the middle
    sequence_lengths, tokens = profiled_sizes(np.array(lengths))
    assert sequence_lengths[0] == expected[0] and sequence_lengths[-1] == expected[-1]
    assert tokens[-1] == most
    grid = ProfileGrid(tokens=tuple(tokens), sequence_lengths=tuple(sequence_lengths))
    assert {p.length for p in grid.points()} == set(sequence_lengths)
    assert {p.num_adapters for p in grid.points()} == {1, 2, 4}
