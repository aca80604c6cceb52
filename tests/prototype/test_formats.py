import json
import os

import numpy as np
import pytest

from cappuccino.errors import InputError
from cappuccino.lengths import length_statistics, read_length_distribution
from cappuccino.prototype.formats import (
    ProvisionedReplica,
    read_adapter_config,
    read_provisioning,
    schedule_entry,
    write_provisioning,
)

TWO = {
    "wiki": {
        "seeds": [42, 7],
        "seed_42": {"num_permutations": 2, "permutation_1": [1, 2], "permutation_2": [2, 1]},
        "seed_7": {"permutation_1": [5]},
    },
    "chat": {"seeds": [42], "seed_42": {"num_permutations": 1, "permutation_1": [3]}},
}
ADAPTER = {
    "dataset_idx": 0,
    "global_batch_size": 8,
    "microbatch_size": 2,
    "rank": 16,
    "target_modules": "q_proj+v_proj",
    "dropout": 0.05,
    "alpha": 32,
}


def save(tmp_path, data):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(data))
    return path


def test_dataset_index_counts_triples_in_file_order(tmp_path):
    found = read_length_distribution(save(tmp_path, TWO))
    assert [found.entry(i, "s", "f") for i in range(4)] == [
        ("wiki", 42, 1),
        ("wiki", 42, 2),
        ("wiki", 7, 1),
        ("chat", 42, 1),
    ]
    assert found.lengths("wiki", 42, 2).tolist() == [2, 1]
    assert found.lengths("chat", 42, 1).tolist() == [3]


@pytest.mark.parametrize("index", [4, -1])
def test_dataset_index_out_of_range(tmp_path, index):
    found = read_length_distribution(save(tmp_path, TWO))
    message = (
        rf"adapters\.json: adapters\[0\]\.dataset_idx: {index} is no dataset index; .*f\.json holds indices 0 to 3"
    )
    with pytest.raises(InputError, match=message):
        found.entry(index, "adapters.json", "adapters[0].dataset_idx")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"f\.json: is not an object of datasets"),
        ({}, r"f\.json: is not an object of datasets"),
        ({"w": {}}, r"f\.json: w\.seeds: is missing"),
        ({"w": {"seeds": ["42"]}}, r"f\.json: w\.seeds\[0\]: \"42\" is not allowed; input should be a valid integer"),
        ({"w": {"seeds": [42]}}, r"f\.json: w\.seed_42: is missing"),
        ({"w": {"seeds": [42], "seed_42": {}}}, r"f\.json: w\.seed_42\.permutation_1: is missing; add it"),
        (
            {"w": {"seeds": [42], "seed_42": {"permutation_1": [1, -5]}}},
            r"f\.json: w\.seed_42\.permutation_1\[1\]: -5 is not allowed; input should be greater than 0",
        ),
        ({"w": {"seeds": []}}, r"f\.json: w\.seeds: \[\] is not allowed; list should have at least 1 item"),
        ({"w": {"seeds": [True]}}, r"f\.json: w\.seeds\[0\]: true is not allowed; input should be a valid integer"),
        ({"w": {}}, r"f\.json: w\.seeds: is missing; add it"),
        (
            {"w": {"seeds": [42], "seed_42": 1}},
            r"f\.json: w\.seed_42: 1 is not allowed; give an object with the fields",
        ),
        (
            {"w": {"seeds": [42], "seed_42": {"permutation_1": [1]}, "seed_43": {"permutation_1": [1]}}},
            r"f\.json: w\.seed_43: is not among the seeds; add it to seeds, or remove it",
        ),
        (
            {"w": {"seeds": [42], "seed_42": {"permutation_1": [1], "permutation_2": [1]}}},
            r"f\.json: w\.seed_42\.permutation_2: is beyond the 1 there are; correct num_permutations",
        ),
        ({"w": {"seeds": [42], "seed_42": {"permutation_1": []}}}, r"f\.json: w\.seed_42\.permutation_1: \[\] is"),
        (
            {"w": {"seeds": [42], "seed_42": {"num_permutations": 0, "permutation_1": [1]}}},
            r"f\.json: w\.seed_42\.num_permutations: 0 is not allowed",
        ),
    ],
)
def test_malformed_distribution(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read_length_distribution(save(tmp_path, data))


def test_statistics_of_a_hand_computed_dataset(tmp_path):
    # 1, 2, 3, 10: mean 4, deviations -3 -2 -1 6, variance 50 / 4, third moment (-27 - 8 - 1 + 216) / 4 = 45
    found = length_statistics(np.array([1, 2, 3, 10]))
    assert found["mean"] == 4
    assert found["std"] == pytest.approx(12.5**0.5)
    assert found["median"] == found["p50"] == 2.5
    assert (found["min"], found["max"], found["num_samples"]) == (1, 10, 4)
    assert found["skewness"] == pytest.approx(45 / 12.5**1.5)
    assert found["cv"] == pytest.approx(12.5**0.5 / 4)
    assert found["iqr"] == pytest.approx(4.75 - 1.75)  # at positions 0.75 and 2.25: 1.75 and 3 + 0.25 x 7
    again = read_length_distribution(save(tmp_path, {"d": {"seeds": [42], "seed_42": found}}))
    assert again.lengths("d", 42, 1).tolist() == [1, 2, 3, 10]
    assert length_statistics(np.array([5, 5]))["skewness"] == 0


def test_adapter_config_in_both_forms(tmp_path):
    bare = read_adapter_config(save(tmp_path, [ADAPTER]))
    assert read_adapter_config(save(tmp_path, {"adapters": [ADAPTER]})) == bare
    assert bare[0].model_dump() == ADAPTER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_idx": -1}, r"f\.json: adapters\[0\]\.dataset_idx: -1 is not allowed"),
        ({"global_batch_size": 0}, r"f\.json: adapters\[0\]\.global_batch_size: 0 is not allowed"),
        ({"target_modules": ""}, r"f\.json: adapters\[0\]\.target_modules: \"\" is not allowed"),
        ({"lr": 1}, r"f\.json: adapters\[0\]\.lr: is not a known field"),
    ],
)
def test_malformed_adapter_config(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_adapter_config(save(tmp_path, [{**ADAPTER, **change}]))


def test_empty_adapter_config(tmp_path):
    with pytest.raises(InputError, match=r"f\.json: adapters: \[\] is not allowed"):
        read_adapter_config(save(tmp_path, []))


def test_provisioning_round_trip(tmp_path):
    replicas = [
        ProvisionedReplica(replica_id=0, adapter_ids=[0, 2], g=3, T_iter=89.7),
        ProvisionedReplica(replica_id=1, adapter_ids=[1], g=1, T_iter=1 / 3),
    ]
    path = tmp_path / "p.json"
    write_provisioning(path, replicas)
    assert read_provisioning(path) == replicas
    assert json.loads(path.read_text())[0] == {"replica_id": 0, "adapter_ids": [0, 2], "g": 3, "T_iter": 89.7}
    assert os.listdir(tmp_path) == ["p.json"]


def test_malformed_provisioning(tmp_path):
    with pytest.raises(InputError, match=r"f\.json: is not a list of replicas"):
        read_provisioning(save(tmp_path, {}))
    good = {"replica_id": 0, "adapter_ids": [0], "g": 1, "T_iter": 1.0}
    with pytest.raises(InputError, match=r"f\.json: \[1\]: g: 0 is not allowed"):
        read_provisioning(save(tmp_path, [good, {**good, "g": 0}]))
    with pytest.raises(InputError, match=r"f\.json: \[0\]: adapter_ids: \[\] is not allowed"):
        read_provisioning(save(tmp_path, [{**good, "adapter_ids": []}]))


def test_schedule_entry_figures():
    # adapter 1 has samples of 60 and 70 tokens in the first micro-batch: 130, padded to 192; adapter 0 has 64: 64
    entry = schedule_entry([{1: [(0, 2, 60), (0, 5, 70)], 0: [(3, 0, 64)]}, {1: [(0, 7, 1)]}])
    assert entry["adapter_group_info"] == [0, 1]
    assert entry["internal_adapter_start_end_indices"] == {"0": [0, 0], "1": [0, 1]}
    first, second = entry["micro_batch_infos"]
    assert first["data_samples"] == {"1, 0, 2": 60, "1, 0, 5": 70, "0, 3, 0": 64}
    assert first["adapter_num_tokens_pairs"] == {"1": 130, "0": 64}
    assert first["padded_adapter_num_tokens_pairs"] == {"1": 192, "0": 64}
    assert (first["total_tokens"], first["padded_total_tokens"]) == (194, 256)
    assert first["adapter_global_batch_idx_pairs"] == [[1, 0], [0, 3]]
    assert first["adapter_num_samples_pairs"] == {"1": 2, "0": 1}
    assert (first["micro_batch_idx"], second["micro_batch_idx"]) == (0, 1)
    assert second["padded_total_tokens"] == 64


def test_reference_files(reference_data):
    distribution = read_length_distribution(reference_data / "dataset_lengths.json")
    assert len(distribution.entries) == 12
    assert all(len(x) == 1000 and x.max() <= 4096 for x in distribution.entries.values())
    adapters = read_adapter_config(reference_data / "adapter_config.json")
    names = [distribution.entry(a.dataset_idx, "adapter_config.json", "dataset_idx")[0] for a in adapters]
    assert names == ["wikisum", "xsum", "samsum", "gsm8k"]
    assert {a.global_batch_size for a in adapters} == {8}
    record = json.loads((reference_data / "dataset_lengths.json").read_text())["wikisum"]["seed_42"]
    recomputed = length_statistics(distribution.lengths("wikisum", 42, 1))
    for key in ("mean", "std", "median", "p90", "p99", "cv", "iqr", "skewness"):
        assert recomputed[key] == pytest.approx(record[key], rel=1e-6), key
