import copy
import json
import os
from pathlib import Path

import pytest
import yaml

from cappuccino.errors import InputError
from cappuccino.instance import Instance, save_instance
from cappuccino.training_data import TrainingData

GOOD = {
    "format": "cappuccino.instance/1",
    "name": "tiny",
    "backbone": "b",
    "cost_table": "tables/t.csv",
    "gpu_pools": [{"gpu": "x", "count": 4, "memory_gib": 40.0}],
    "max_sequence_length": 100,
    "datasets": {"d": {"lengths": [10, 20, 30, 40, 500]}, "e": {"file": "lengths.json", "key": "wiki"}},
    "adapters": [
        {"name": "a", "dataset": "d", "global_batch_size": 2},
        {"name": "b", "dataset": "e", "global_batch_size": 3, "num_steps": 2},
    ],
}
DISTRIBUTION = {"wiki": {"seeds": [42], "seed_42": {"num_permutations": 1, "permutation_1": [7, 8, 9, 600]}}}


@pytest.fixture
def save(tmp_path):
    def write(data: object = GOOD, distribution: object = DISTRIBUTION, name: str = "i.json"):
        (tmp_path / "lengths.json").write_text(json.dumps(distribution))
        (tmp_path / name).write_text(json.dumps(data))
        return tmp_path / name

    return write


def edited(path: str, value: object) -> dict:
    """Return GOOD with the value at `a.0.b` replaced, or removed for an Ellipsis."""
    data = copy.deepcopy(GOOD)
    *parts, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = data
    for part in parts:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def test_load_resolves_datasets_and_paths(save, tmp_path):
    instance = Instance.load(save())
    assert instance.name == "tiny"
    assert instance.cost_table == tmp_path / "tables" / "t.csv"
    assert instance.source == str(tmp_path / "i.json")
    # lengths above max_sequence_length = 100 are cut to it, given here or in a file
    assert instance.dataset_lengths["d"].tolist() == [10, 20, 30, 40, 100]
    assert instance.dataset_lengths["e"].tolist() == [7, 8, 9, 100]


def test_files_of_windows_tools_are_read(save):
    path = save()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b",", b",\r\n"))
    assert Instance.load(path).name == "tiny"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, [1, 2]), ({"seed": 7}, [1, 2]), ({"seed": 7, "permutation": 1}, [1, 2])],
)
def test_the_only_seed_and_permutation_of_a_file_are_the_default(save, given, expected):
    data = edited("datasets.e", {"file": "lengths.json", "key": "wiki", **given})
    distribution = {"wiki": {"seeds": [7], "seed_7": {"permutation_1": [1, 2]}}}
    assert Instance.load(save(data, distribution)).dataset_lengths["e"].tolist() == expected


def test_of_several_seeds_and_permutations_42_and_1_are_the_default(save):
    seeds = {
        "seed_7": {"permutation_1": [1]},
        "seed_42": {"num_permutations": 2, "permutation_1": [2], "permutation_2": [3]},
    }
    data = edited("adapters.1.global_batch_size", 1)
    found = Instance.load(save(data, {"wiki": {"seeds": [7, 42], **seeds}})).dataset_lengths["e"]
    assert found.tolist() == [2]


def test_sample_numbers_wrap_around_the_dataset(save):
    instance = Instance.load(save())
    # samples 0..5 of 4: positions 0 1 2 | 3 0 1
    assert instance.step_lengths[1].tolist() == [[7, 8, 9], [100, 7, 8]]
    assert [instance.sample_length(1, n) for n in range(6)] == [7, 8, 9, 100, 7, 8]
    assert instance.sample_length(0, 3) == 40


def test_steps_default_to_one_pass_without_the_incomplete_batch(save):
    instance = Instance.load(save())
    assert instance.num_steps(0) == 2  # 5 samples in batches of 2
    assert instance.step_lengths[0].tolist() == [[10, 20], [30, 40]]
    assert instance.num_steps(1) == 2


def test_lookups(save):
    instance = Instance.load(save())
    assert instance.adapter_index("b") == 1
    assert instance.pool("x").count == 4
    with pytest.raises(KeyError):
        instance.adapter_index("c")
    with pytest.raises(KeyError):
        instance.pool("y")


def test_digests_of_instances_without_training_data_stay(save):
    # as it was before there were such fields: plans of that time name it
    assert Instance.load(save()).digest == "77f37d73a5dbe23708a4f9bf8a32e25ae4b48745f01fdf3206c13d51396f699a"


def test_training_data_are_found_from_the_instance_file(save, tmp_path):
    (tmp_path / "saved").mkdir()
    for source, found in [
        ("raw/chat.jsonl", tmp_path / "raw" / "chat.jsonl"),  # by its ending, there or not
        ("saved", tmp_path / "saved"),  # because it is there
        ("../saved", tmp_path / ".." / "saved"),
        ("org/chat", "org/chat"),  # a name on the hub
    ]:
        data = edited("datasets.d", {**GOOD["datasets"]["d"], "source": source, "form": "alpaca", "loss_on": "all"})
        instance = Instance.load(save(data))
        assert instance.data_of("d") == TrainingData(str(found), "alpaca", "all", "cut")
        save_instance(instance, tmp_path / "copies" / "i.json")
        again = Instance.load(tmp_path / "copies" / "i.json").data_of("d")
        places = [d.source if d.source == source else os.path.abspath(d.source) for d in (again, instance.data_of("d"))]
        assert places[0] == places[1]
        assert (again.form, again.loss_on, again.too_long) == ("alpaca", "all", "cut")
    assert Instance.load(save()).data_of("e") == TrainingData()


def test_lengths_above_the_longest_are_dropped_where_samples_are(save):
    assert Instance.load(save(edited("datasets.d.too_long", "drop"))).dataset_lengths["d"].tolist() == [10, 20, 30, 40]


def test_subset_renumbers(save):
    part = Instance.load(save()).subset([1])
    assert part.adapter_index("b") == 0
    assert part.step_lengths[0].tolist() == [[7, 8, 9], [100, 7, 8]]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("backbone", "other"),
        ("layout", "padded"),
        ("gpu_pools.0.count", 5),
        ("gpu_pools.0.memory_gib", 41.0),
        ("datasets.d.lengths", [11, 20, 30, 40, 500]),
        ("datasets.d.lengths", [20, 10, 30, 40, 500]),
        ("adapters.0.global_batch_size", 1),
        ("adapters.0.learning_rate", 1e-3),
        ("adapters.0.name", "c"),
        ("max_sequence_length", 99),
        ("datasets.d.form", "messages"),
        ("datasets.d.loss_on", "all"),
        ("datasets.d.too_long", "drop"),
    ],
)
def test_digest_changes_with_what_matters(save, path, value):
    assert Instance.load(save()).digest != Instance.load(save(edited(path, value))).digest


def test_digest_changes_with_the_lengths_in_the_distribution_file(save):
    before = Instance.load(save()).digest
    changed = {"wiki": {"seeds": [42], "seed_42": {"permutation_1": [7, 8, 10, 600]}}}
    assert Instance.load(save(distribution=changed)).digest != before


def test_digest_does_not_change_with_paths_names_and_unused_data(save, tmp_path):
    before = Instance.load(save()).digest
    assert Instance.load(save(name="other.json")).digest == before
    assert Instance.load(save(edited("cost_table", "elsewhere.csv"))).digest == before
    assert Instance.load(save(edited("name", "other"))).digest == before
    unused = copy.deepcopy(GOOD)
    unused["datasets"]["unused"] = {"lengths": [1]}
    assert Instance.load(save(unused)).digest == before
    assert Instance.load(save(edited("datasets.d.source", "chat.jsonl"))).digest == before
    assert Instance.load(save(edited("datasets.d.too_long", "cut"))).digest == before
    inline = edited("datasets.e", {"lengths": [7, 8, 9, 600]})  # the same lengths by another way
    assert Instance.load(save(inline)).digest == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "adapters.0.global_batch_size",
            -2,
            r"i\.json: adapters\[0\]\.global_batch_size: -2 is not allowed; .*greater",
        ),
        ("adapters.0.global_batch_size", 2.5, r"i\.json: adapters\[0\]\.global_batch_size: 2\.5 is not allowed; "),
        ("adapters.0.global_batch_size", "2", r"i\.json: adapters\[0\]\.global_batch_size: \"2\" is not allowed; "),
        ("adapters.0.global_batch_size", ..., r"i\.json: adapters\[0\]\.global_batch_size: is missing; add it"),
        ("adapters.0.epochs", 0, r"i\.json: adapters\[0\]\.epochs: 0 is not allowed; .*greater than 0"),
        ("adapters.1.epochs", 1.5, r"i\.json: adapters\[1\]: .*give either `num_steps` or `epochs`"),
        (
            "adapters.0.epochs",
            1e10,
            r"adapters\[0\]\.epochs: 1.* passes over 5 samples are 25000000000 steps; give",
        ),
        ("adapters.0.num_steps", 0, r"i\.json: adapters\[0\]\.num_steps: 0 is not allowed; "),
        ("adapters.0.name", "../evil", r"i\.json: adapters\[0\]\.name: \"\.\./evil\" is not allowed; "),
        ("adapters.0.dropout", 1.0, r"i\.json: adapters\[0\]\.dropout: 1\.0 is not allowed; "),
        ("adapters.0.target_modules", [], r"i\.json: adapters\[0\].*name at least one target module"),
        ("adapters.1.btach", 1, r"i\.json: adapters\[1\]\.btach: is not a known field; remove it"),
        ("adapters.0.dataset", "nope", r"i\.json: adapters\[0\]\.dataset: \"nope\" is not a dataset; .*: d, e$"),
        ("adapters.1.name", "a", r"i\.json: adapters\[1\]: \"a\" is given twice; use unique names"),
        ("adapters", [], r"i\.json: adapters: \[\] is not allowed; "),
        ("gpu_pools.0.memory_gib", 0, r"i\.json: gpu_pools\[0\]\.memory_gib: 0 is not allowed.*greater than 0"),
        ("gpu_pools", [], r"i\.json: gpu_pools: \[\] is not allowed; "),
        ("datasets.d.lengths", [], r"i\.json: datasets\.d: .*give at least one length"),
        ("datasets.d.lengths", [3, 0], r"i\.json: datasets\.d\.lengths\[1\]: 0 is not allowed; "),
        ("datasets.d.file", "lengths.json", r"i\.json: datasets\.d: .*lengths\.json.*give either `lengths` or `file`"),
        ("datasets.d.lengths", ..., r"i\.json: datasets\.d: \{\} is not allowed; give either `lengths` or `file`"),
        ("datasets.e.key", ..., r"i\.json: datasets\.e: .*give the `key` of the dataset"),
        (
            "datasets.e.key",
            "gone",
            r"lengths\.json: gone: no dataset \"gone\".*; the file holds wiki/seed 42/permutation 1",
        ),
        (
            "adapters.0.name",
            "a" * 201,
            r"i\.json: adapters\[0\]\.name: .* is not allowed; string should have at most 200",
        ),
        (
            "datasets",
            {"../d": {"lengths": [1]}},
            r"i\.json: datasets: .*give dataset '\.\./d' another name: it has an empty",
        ),
        ("datasets", {"/d": {"lengths": [1]}}, r"i\.json: datasets: .*another name: it has an empty part"),
        ("datasets", {"d\t": {"lengths": [1]}}, r"i\.json: datasets: .*another name: it has a control character"),
        ("datasets", {"d\0": {"lengths": [1]}}, r"i\.json: holds .u0000, which is no text"),
        (
            "datasets",
            {"d" * 201: {"lengths": [1]}},
            r"i\.json: datasets: .*another name: a part of it is longer than 200",
        ),
        ("datasets.d.form", "chat", r"i\.json: datasets\.d\.form: \"chat\" is not allowed; .*'messages'"),
        ("datasets.d.loss_on", "user", r"i\.json: datasets\.d\.loss_on: \"user\" is not allowed; .*'assistant'"),
        (
            "datasets.d",
            {"lengths": [101, 500], "too_long": "drop"},
            r"i\.json: datasets\.d\.too_long: all 2 lengths are above max_sequence_length 100; raise it, or set",
        ),
        ("datasets.d.seed", 42, r"i\.json: datasets\.d: .*give `key`, `seed` and `permutation` with `file` only"),
        ("datasets.e.permutation", 2, r"lengths\.json: wiki: no dataset \"wiki\" with seed 42, permutation 2; "),
        ("datasets.e.file", "gone.json", r"gone\.json: file not found; check the path"),
        (
            "format",
            "cappuccino.instance/2",
            r"i\.json: format: \"cappuccino\.instance/2\" is not allowed; .*instance/1",
        ),
        ("format", ..., r"i\.json: format: is missing; add it"),
        ("layout", "ragged", r"i\.json: layout: \"ragged\" is not allowed; "),
        ("colour", "red", r"i\.json: colour: is not a known field; "),
    ],
)
def test_rejections_name_file_field_and_value(save, path, value, message):
    with pytest.raises(InputError, match=message):
        Instance.load(save(edited(path, value)))


def test_duplicate_pool(save):
    data = copy.deepcopy(GOOD)
    data["gpu_pools"] *= 2
    with pytest.raises(InputError, match=r"i\.json: gpu_pools\[1\]: \"x\" is given twice; use unique names"):
        Instance.load(save(data))


def test_dataset_smaller_than_a_batch_needs_num_steps(save):
    data = edited("adapters.0.global_batch_size", 6)
    with pytest.raises(InputError, match=r"adapters\[0\]\.num_steps: one pass over 5 samples holds no batch of 6; set"):
        Instance.load(save(data))
    data["adapters"][0]["num_steps"] = 1
    assert Instance.load(save(data)).step_lengths[0].tolist() == [[10, 20, 30, 40, 100, 10]]


def test_missing_instance_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: file not found; check the path"):
        Instance.load(tmp_path / "gone.json")


def test_truncated_instance_file(save):
    path = save()
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match=r"i\.json: is truncated"):
        Instance.load(path)


@pytest.mark.parametrize(
    ("text", "message"), [("NaN", "contains NaN"), ("1e999", r"gpu_pools\[0\]\.memory_gib: Infinity")]
)
def test_numbers_that_are_none(save, text, message):
    path = save()
    path.write_text(path.read_text().replace("40.0", text))
    with pytest.raises(InputError, match=message):
        Instance.load(path)


@pytest.mark.parametrize("value", ["[1, 2]", "null", '"text"'])
def test_json_that_is_no_object(save, value):
    path = save()
    path.write_text(value)
    with pytest.raises(InputError, match=r"i\.json"):
        Instance.load(path)


def test_lengths_beyond_64_bits_are_a_clear_error(save):
    with pytest.raises(InputError, match=r"datasets\.d"):
        Instance.load(save(edited("datasets.d.lengths", [10**20, 5])))


@pytest.mark.parametrize(
    ("samples", "batch", "epochs", "steps"),
    [
        (5, 2, 1, 2),  # as one pass: the incomplete last batch is dropped
        (5, 2, 2, 5),  # 10 samples: a batch may reach into the next pass
        (5, 2, 1.5, 3),  # 7.5 samples
        (5, 2, 0.1, 1),  # half a sample: one step at least
        (3, 4, 1, 1),
        (1000, 3, 0.3, 100),  # 300 samples; in binary 0.3 * 1000 / 3 falls short of 100
    ],
)
def test_epochs_are_steps(save, samples, batch, epochs, steps):
    data = edited("datasets.d.lengths", [10] * samples)
    data["adapters"][0] |= {"global_batch_size": batch, "epochs": epochs}
    instance = Instance.load(save(data))
    assert (instance.num_steps(0), len(instance.step_lengths[0])) == (steps, steps)
    assert (instance.adapters[0].num_steps, instance.adapters[0].epochs) == (steps, None)
    assert instance.subset([0]).num_steps(0) == steps
    data["adapters"][0] = {"name": "a", "dataset": "d", "global_batch_size": batch, "num_steps": steps}
    assert Instance.load(save(data)).digest == instance.digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("seed4-qwen32b", "1b80ae7b66edfdaa410cbae978b94e5d64db2893d1b557697f122ddbfafcf301"),
        ("full4-llama7b", "3dc3c8ad12bbd183d488aaaa8962a707a30136b8f8da8b44fcd4be19d7448290"),  # one pass each
    ],
)
def test_digests_of_shipped_instances_stay(name, digest):
    # plans made with any version carry them
    assert Instance.load(Path(__file__).parents[1] / "instances" / f"{name}.json").digest == digest


@pytest.mark.parametrize("suffix", ["yaml", "yml", "YAML"])
def test_yaml_is_read_as_json_is(save, tmp_path, suffix):
    expected = Instance.load(save())
    (tmp_path / f"i.{suffix}").write_text(yaml.safe_dump(GOOD))
    found = Instance.load(tmp_path / f"i.{suffix}")
    assert (found.name, found.digest, found.cost_table) == (expected.name, expected.digest, expected.cost_table)


def test_errors_in_yaml_name_file_and_field(save, tmp_path):
    save()
    (tmp_path / "i.yaml").write_text(yaml.safe_dump(edited("adapters.1.rank", 2.5)))
    with pytest.raises(InputError, match=r"i\.yaml: adapters\[1\]\.rank: 2\.5 is not allowed; "):
        Instance.load(tmp_path / "i.yaml")
    (tmp_path / "i.yaml").write_text("")
    with pytest.raises(InputError, match=r"i\.yaml: null is not allowed; give an object with the fields of docs"):
        Instance.load(tmp_path / "i.yaml")


S = {"dataset": "d", "global_batch_size": 2, "alpha": 16.0}
SWEEP = S | {"name": "s", "sweep": {"learning_rate": [1e-3, 2e-3], "rank": [4, 8]}}


def test_a_sweep_is_one_adapter_a_combination(save, tmp_path):
    instance = Instance.load(save(edited("adapters.0", SWEEP)))
    found = [(a.name, a.rank, a.learning_rate) for a in instance.adapters[:-1]]
    assert found == [
        ("s-r4-lr1e-3", 4, 1e-3),
        ("s-r4-lr2e-3", 4, 2e-3),
        ("s-r8-lr1e-3", 8, 1e-3),
        ("s-r8-lr2e-3", 8, 2e-3),
    ]
    assert instance.adapters[-1].name == "b"
    written = edited("adapters.0", S | {"name": "s-r4-lr1e-3", "rank": 4, "learning_rate": 1e-3})
    assert Instance.load(save(written)).subset([0, 1]).digest == instance.subset([0, 4]).digest
    save_instance(instance, tmp_path / "saved.json")
    again = json.loads((tmp_path / "saved.json").read_text())
    assert [a["name"] for a in again["adapters"]] == [a.name for a in instance.adapters]
    assert not any("sweep" in a for a in again["adapters"])
    swept = list(range(4))
    assert Instance.load(tmp_path / "saved.json").subset(swept).digest == instance.subset(swept).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "nope"}, r"i\.json: adapters\[1\]\.dataset: \"nope\" is not a dataset"),
        ({"global_batch_size": 6}, r"i\.json: adapters\[1\]\.num_steps: one pass over 5 samples holds no batch of 6"),
    ],
)
def test_errors_after_a_sweep_name_the_entry_of_the_file(save, change, message):
    data = edited("adapters.0", SWEEP)
    data["adapters"][1] = {"name": "b", "dataset": "d", "global_batch_size": 2} | change
    with pytest.raises(InputError, match=message):
        Instance.load(save(data))
