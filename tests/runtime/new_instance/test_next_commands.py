"""The commands that come after a new instance."""

import shlex
from dataclasses import replace
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


def test_what_four_adapters_have_in_a_step_is_profiled() -> None:
    one = instance(Path(), "cpu")
    (job,) = one.adapters
    jobs = tuple(job.model_copy(update={"name": f"a{k}", "global_batch_size": 16, "num_steps": 2}) for k in range(6))
    profile, *_ = next_commands("b", Path("instance.yaml"), replace(one, adapters=jobs), SHAPE, False)
    tokens = shlex.split(profile)[shlex.split(profile).index("--tokens") + 1].split(",")
    assert int(tokens[-1]) == 2048  # 4 x 16 samples of 30 tokens in the mean
    profile, *_ = next_commands("b", Path("instance.yaml"), replace(one, adapters=jobs[:1]), SHAPE, False)
    tokens = shlex.split(profile)[shlex.split(profile).index("--tokens") + 1].split(",")
    assert int(tokens[-1]) == 512


@pytest.mark.parametrize(
    ("lengths", "largest", "samples", "tokens"),
    [
        ([30] * 60 + [100] * 30 + [500] * 10, 800, [32, 512], [64, 128, 256, 512, 1024]),
        ([30] * 40 + [100] * 50 + [500] * 10, 800, [32, 128, 512], [64, 128, 256, 512, 1024]),
        ([60, 60, 60], 240, [64], [128, 256, 512]),  # of one length, and still shared out to four adapters
        ([3], 3, [8], [16, 32, 64]),
        ([50] * 9 + [60], 1200, [64], [128, 256, 512, 1024, 2048]),
        ([50] * 9 + [60], 50_000, [64], [128, 512, 2048, 8192]),  # of the most tokens, a factor of four apart
        ([9_000], 9_000, [16384], [32768, 65536, 131072]),
    ],
)
def test_profiled_sizes_are_around_the_data_and_make_a_grid(
    lengths: list[int], largest: float, samples: list[int], tokens: list[int]
) -> None:
    found = profiled_sizes(np.array(lengths), largest)
    assert found == (samples, tokens)
    grid = ProfileGrid(tokens=tuple(tokens), sequence_lengths=tuple(samples))
    assert {p.length for p in grid.points()} == set(samples)
    assert {p.num_adapters for p in grid.points()} == {1, 2, 4}
