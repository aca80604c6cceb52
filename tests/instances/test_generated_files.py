import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cappuccino import instances
from cappuccino.backbone import BACKBONES
from cappuccino.costs import CostModel, fit_costs, fit_instance_costs, read_cost_table
from cappuccino.instance import Instance
from cappuccino.instances.generate_instances import instance_texts
from cappuccino.instances.generate_lengths import (
    PUBLIC_DATASETS,
    LengthSummary,
    public_distributions,
    quantile_lengths,
    sample_lengths,
)
from cappuccino.instances.generate_tables import POOL_TABLES, TABLES, pool_table_csv, table_csv
from cappuccino.lengths import read_length_distribution
from cappuccino.library.index import INDEX_NAME
from cappuccino.solvers.allocation.columns import ReplicaSpace

FOLDER = Path(instances.__file__).parent
TEXTS = instance_texts()
INSTANCE_NAMES = tuple(name.removesuffix(".json") for name in TEXTS)


@functools.cache
def costs_of(table: Path, backbone: str, gpu: str) -> CostModel:
    return fit_costs(read_cost_table(table), backbone, gpu)


def test_lengths_file_is_what_its_generator_writes():
    assert (FOLDER / "lengths" / "public.json").read_text() == public_distributions()


@pytest.mark.parametrize("gpu", ["a100-40gb", "h100-80gb"])
def test_table_is_what_its_generator_writes(gpu):
    assert (FOLDER / "tables" / f"{gpu}.csv").read_text() == table_csv(gpu)


@pytest.mark.parametrize("name", POOL_TABLES)
def test_table_of_several_pools_is_what_its_generator_writes(name):
    assert (FOLDER / "tables" / f"{name}.csv").read_text() == pool_table_csv(name)


def test_instances_are_what_their_generator_writes():
    profiled = {"tiny-cpu.json"}  # its table was measured, its lengths are of one Python
    assert {p.name for p in FOLDER.glob("*.json")} == {*TEXTS, *profiled, INDEX_NAME}
    for name, text in TEXTS.items():
        assert (FOLDER / name).read_text() == text, name


def test_instance_files_stay_small():
    assert max(len(text) for text in TEXTS.values()) < 300_000


@pytest.mark.parametrize("name", PUBLIC_DATASETS)
def test_lengths_meet_the_published_statistics(name):
    lengths = read_length_distribution(FOLDER / "lengths" / "public.json").lengths(name, 42, 1)
    summary = PUBLIC_DATASETS[name]
    assert lengths.shape == (1000,)
    assert lengths.mean() == pytest.approx(summary.mean, rel=0.10)
    found = np.percentile(lengths, [0, 50, 90, 99, 100])
    assert found == pytest.approx(
        [summary.minimum, summary.median, summary.p90, summary.p99, summary.maximum], rel=0.05
    )


def test_lengths_between_two_quantiles_are_log_normal():
    # Of 1,001 samples, rank 900 is p90 and rank 500 the median. The normal scores are 0 and 1.2816; half the score,
    # 0.6408, is the quantile 0.7392: rank 739. There the length is the geometric mean of 100 and 400, which is 200.
    lengths = quantile_lengths(LengthSummary(10, 100, 400, 800, 1600, 180), 1001)
    assert (lengths[0], lengths[500], lengths[900], lengths[990], lengths[1000]) == (10, 100, 400, 800, 1600)
    assert lengths[739] == pytest.approx(200, rel=0.005)
    assert np.all(np.diff(lengths) >= 0)


def test_lengths_below_the_median_meet_the_mean():
    # the upper half is the same for both means, so only the lower half can have moved
    low, high = (quantile_lengths(LengthSummary(10, 100, 400, 800, 1600, mean), 1001) for mean in (170, 182))
    assert np.array_equal(low[500:], high[500:])
    assert low.mean() == pytest.approx(170, rel=0.01)
    assert high.mean() == pytest.approx(182, rel=0.01)


def test_lengths_order_follows_the_seed_and_differs_between_datasets():
    summary = PUBLIC_DATASETS["xsum"]
    first, again, other = (sample_lengths(summary, 1000, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.sort(first), np.sort(other))
    # regression: one permutation for all datasets made the long samples of every adapter meet in the same step
    file = read_length_distribution(FOLDER / "lengths" / "public.json")
    ranks = [np.argsort(np.argsort(file.lengths(name, 42, 1))) for name in ("xsum", "samsum")]
    assert abs(np.corrcoef(*ranks)[0, 1]) < 0.2


@pytest.mark.parametrize(
    "values", [(10, 5, 20, 30, 40, 20), (10, 20, 50, 30, 40, 25), (0, 5, 20, 30, 40, 20), (10, 20, 25, 30, 40, 99)]
)
def test_contradictory_summary_is_rejected(values):
    with pytest.raises(ValueError, match="give"):
        LengthSummary(*values)


@pytest.mark.parametrize("gpu", TABLES)
def test_tables_cover_their_grid(gpu):
    table = read_cost_table(FOLDER / "tables" / f"{gpu}.csv")
    assert table.is_analytic
    # per pipeline size: 4 micro-batch sizes x 9 sequence lengths x 2 global batches
    assert len(table.ok) + len(table.failed) == sum(len(sizes) for sizes in TABLES[gpu].values()) * 72
    for backbone, sizes in TABLES[gpu].items():
        rows = table.select(backbone, gpu)
        assert set(rows.ok["pp_size"]) == set(sizes)
        assert set(rows.ok["num_layers"]) == {BACKBONES[backbone].num_layers}


@pytest.mark.parametrize("name", POOL_TABLES)
def test_tables_of_several_pools_have_the_rows_of_each(name):
    table = read_cost_table(FOLDER / "tables" / f"{name}.csv")
    gpus, backbones = POOL_TABLES[name]
    for gpu in gpus:
        alone = read_cost_table(FOLDER / "tables" / f"{gpu}.csv")
        for backbone in backbones:
            ours, theirs = table.select(backbone, gpu).ok, alone.select(backbone, gpu).ok
            pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))


@pytest.mark.parametrize("name", INSTANCE_NAMES)
def test_instance_loads_and_every_adapter_has_a_place(name):
    instance = Instance.load(FOLDER / f"{name}.json")
    assert instance.name == name
    costs = {pool.gpu: costs_of(instance.cost_table, instance.backbone, pool.gpu) for pool in instance.gpu_pools}
    for model in costs.values():
        assert model.analytic
        assert model.forward(4096, 4096**2) > model.forward(64, 64**2) > 0
    ReplicaSpace.of(instance, costs)  # raises where an adapter fits nowhere


@pytest.mark.parametrize(("name", "stages"), [("tight4-qwen32b", 2), ("tight6-llama70b", 2), ("tight8-qwen32b", 1)])
def test_tight_instances_hold_two_of_the_longest_samples_in_no_way(name, stages):
    instance = Instance.load(FOLDER / f"{name}.json")
    (pool,) = instance.gpu_pools
    assert pool.count == stages
    model = fit_instance_costs(instance)[pool.gpu]
    longest = max(int(lengths.max()) for lengths in instance.step_lengths)
    assert all(model.max_tokens(g, pool.memory_gib) < longest for g in range(1, stages))
    beside = model.adapter_costs(stages, instance.adapters).beside(model.memory_model(stages))
    assert longest <= beside.max_tokens(model.memory_limit(pool.memory_gib)) < 1.2 * longest


def test_rare_long_samples_are_rare_and_long():
    lengths = Instance.load(FOLDER / "tails6-qwen32b.json").dataset_lengths
    for values in lengths.values():
        assert values.shape == (200,)
        assert np.median(values) < 100
        assert sorted(values)[-3:] == [3000, 3500, 4096]
    assert len({tuple(values) for values in lengths.values()}) == 6


def test_scaled_instances_pair_every_dataset_with_every_batch_size():
    instance = Instance.load(FOLDER / "scale100-qwen32b.json")
    pairs = {(a.dataset, a.global_batch_size) for a in instance.adapters}
    assert pairs == {(name, batch) for name in PUBLIC_DATASETS for batch in (4, 8, 16)}


def test_mixed_instances_vary_what_they_say():
    twelve, sixteen = (Instance.load(FOLDER / f"{name}.json") for name in ("mixed12-qwen32b", "mixed16-llama70b"))
    assert [a.global_batch_size for a in twelve.adapters] == [8, 16, 4, 8] * 3
    assert [a.micro_batch_size for a in twelve.adapters] == [1, 2, 4, 1] * 3
    assert [a.rank for a in sixteen.adapters] == [8, 16, 32, 64] * 4
    steps = [sixteen.num_steps(i) for i in range(16)]
    assert (min(steps), max(steps)) == (8, 20)
