from pathlib import Path

import numpy as np
import pytest

from cappuccino import instances
from cappuccino.catalogue import BACKBONES
from cappuccino.costs import fit_instance_costs, read_cost_table
from cappuccino.instance import Instance
from cappuccino.instances.generate_instances import instance_texts
from cappuccino.instances.generate_lengths import (
    PUBLIC_DATASETS,
    LengthSummary,
    public_distributions,
    quantile_lengths,
    sample_lengths,
)
from cappuccino.instances.generate_tables import TABLES, table_csv
from cappuccino.seed_formats import read_length_distribution

FOLDER = Path(instances.__file__).parent
INSTANCE_NAMES = ("seed4-qwen32b", "seed4-llama7b", "mixed12-qwen32b", "mixed16-llama70b")


def test_lengths_file_is_what_its_generator_writes():
    assert (FOLDER / "lengths" / "public.json").read_text() == public_distributions()


@pytest.mark.parametrize("gpu", ["a100-40gb", "h100-80gb"])
def test_table_is_what_its_generator_writes(gpu):
    assert (FOLDER / "tables" / f"{gpu}.csv").read_text() == table_csv(gpu)


def test_instances_are_what_their_generator_writes():
    texts = instance_texts()
    assert sorted(texts) == sorted(f"{name}.json" for name in INSTANCE_NAMES)
    for name, text in texts.items():
        assert (FOLDER / name).read_text() == text, name


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


@pytest.mark.parametrize("name", INSTANCE_NAMES)
def test_instance_loads_and_its_costs_fit(name):
    instance = Instance.load(FOLDER / f"{name}.json")
    assert instance.name == name
    longest = max(int(lengths.max()) for lengths in instance.dataset_lengths.values())
    for gpu, costs in fit_instance_costs(instance).items():
        pool = instance.pool(gpu)
        assert costs.analytic
        assert costs.forward(4096, 4096**2) > costs.forward(64, 64**2) > 0
        fitting = [g for g in costs.profiled if costs.max_tokens(g, pool.memory_gib) >= longest]
        assert fitting, f"no profiled stage count holds a sample of {longest} tokens"
        assert fitting[0] <= pool.count


def test_mixed_instances_vary_what_they_say():
    twelve, sixteen = (Instance.load(FOLDER / f"{name}.json") for name in INSTANCE_NAMES[2:])
    assert [a.global_batch_size for a in twelve.adapters] == [8, 16, 4, 8] * 3
    assert [a.micro_batch_size for a in twelve.adapters] == [1, 2, 4, 1] * 3
    assert [a.rank for a in sixteen.adapters] == [8, 16, 32, 64] * 4
    steps = [sixteen.num_steps(i) for i in range(16)]
    assert (min(steps), max(steps)) == (8, 20)
