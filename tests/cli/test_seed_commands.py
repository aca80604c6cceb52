"""provision and schedule on the seed's formats."""

import json

import pytest
from cli.conftest import cappuccino, one_clear_error

LENGTHS = {"short": [50, 60, 70, 80], "long": [400, 300, 200, 100]}


def seed_files(folder):
    distribution = {
        name: {"seeds": [42], "seed_42": {"num_permutations": 1, "permutation_1": values}}
        for name, values in LENGTHS.items()
    }
    (folder / "lengths.json").write_text(json.dumps(distribution))
    adapter = {"global_batch_size": 4, "rank": 16, "microbatch_size": 2, "dropout": 0.05, "alpha": 32}
    adapters = [{**adapter, "dataset_idx": i, "target_modules": "q_proj+v_proj"} for i in (0, 1)]
    (folder / "adapters.json").write_text(json.dumps({"adapters": adapters}))


def provision(folder, **changes):
    options = {
        "--model_name": "toy", "--dataset_path": folder / "lengths.json", "--adapter_config": folder / "adapters.json",
        "--total_gpus": 4, "--gpu_type": "toy-gpu", "--gpu_memory_gib": 4, "--cost_table": folder / "table.csv",
        "--output_dir": folder / "results", "--num_steps": 2, "--time_limit": 1,
    } | changes  # fmt: skip
    return cappuccino("provision", *(x for pair in options.items() for x in pair))


def test_provision_writes_the_seeds_format(workspace):
    seed_files(workspace)
    done = provision(workspace)
    assert done.code == 0, done.err
    replicas = json.loads((workspace / "results" / "provisioning.json").read_text())
    assert sorted(i for r in replicas for i in r["adapter_ids"]) == [0, 1]
    for number, replica in enumerate(replicas):
        assert set(replica) == {"replica_id", "adapter_ids", "g", "T_iter"}
        assert replica["replica_id"] == number
        assert replica["T_iter"] > 0
    assert "checked: valid" in done.out


def test_provision_names_a_bad_dataset_index(workspace):
    seed_files(workspace)
    config = json.loads((workspace / "adapters.json").read_text())
    config["adapters"][1]["dataset_idx"] = 7
    (workspace / "adapters.json").write_text(json.dumps(config))
    one_clear_error(provision(workspace), "adapters.json", "adapters[1].dataset_idx", "7", "0 to 1")
    assert not (workspace / "results").exists()


def test_provision_needs_the_memory_of_an_unknown_gpu(workspace):
    seed_files(workspace)
    options = [
        "--model_name", "toy", "--dataset_path", workspace / "lengths.json", "--total_gpus", 4, "--adapter_config",
        workspace / "adapters.json", "--gpu_type", "toy-gpu", "--cost_table", workspace / "table.csv",
    ]  # fmt: skip
    one_clear_error(cappuccino("provision", *options), "toy-gpu", "--gpu_memory_gib")


def schedule(folder, sizes="4,4", name="toy", datasets="0,1"):
    return cappuccino(
        "schedule", "--model_name", "toy", "--dataset_path", folder / "lengths.json", "--num_adapters", 2,
        "--num_pipeline_stages", 2, "--adapter_to_dataset_idx", datasets, "--adapter_to_global_batch_size", sizes,
        "--adapter_to_microbatch_size", "1,2", "--output_name", name, "--output_dir", folder / "schedules",
        "--gpu_type", "toy-gpu", "--gpu_memory_gib", 4, "--cost_table", folder / "table.csv", "--num_steps", 2,
        "--time_limit", 1,
    )  # fmt: skip


def test_schedule_writes_every_sample_once_and_a_plan_that_checks(workspace):
    seed_files(workspace)
    done = schedule(workspace)
    assert done.code == 0, done.err
    (entry,) = json.loads((workspace / "schedules" / "toy.json").read_text())
    samples = {k: v for info in entry["micro_batch_infos"] for k, v in info["data_samples"].items()}
    # two steps of a batch of 4 over 4 samples: the second step sees the same samples again
    expected = {
        f"{a}, {j}, {k}": LENGTHS[name][k] for a, name in enumerate(LENGTHS) for j in range(2) for k in range(4)
    }
    assert samples == expected
    assert sum(info["total_tokens"] for info in entry["micro_batch_infos"]) == sum(expected.values())
    for info in entry["micro_batch_infos"]:
        assert info["padded_total_tokens"] % 64 == 0
    plan, instance = workspace / "schedules" / "toy.plan.json", workspace / "schedules" / "toy.instance.json"
    assert cappuccino("check", plan, "--instance", instance).code == 0


def test_schedule_wants_one_number_per_adapter(workspace):
    seed_files(workspace)
    one_clear_error(schedule(workspace, sizes="4"), "--adapter_to_global_batch_size", "4")
    one_clear_error(schedule(workspace, sizes="4,x"), "4,x")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--num_steps", 3_000_000_000, ("3000000000", "num_steps")),
        ("--total_gpus", 3_000_000_000, ("3000000000", "count")),
        ("--gpu_memory_gib", "inf", ("memory_gib",)),
    ],
)
def test_numbers_that_no_instance_can_hold_are_one_error(workspace, option, value, words):
    seed_files(workspace)
    one_clear_error(provision(workspace, **{option: value}), *words)
    assert not (workspace / "results").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "n" * 250])
def test_names_of_outputs_are_checked_before_the_search(workspace, name, monkeypatch):
    seed_files(workspace)
    monkeypatch.setattr("cappuccino.solvers.planning.make_plan", None)  # must not be called
    done = schedule(workspace, name=name)
    one_clear_error(done, "--output_name" if len(name) < 200 else "File name too long")
    assert not (workspace / "schedules").exists()


@pytest.mark.parametrize(("several", "names"), [(False, ["short", "long"]), (True, ["short/42/1", "long"])])
def test_datasets_are_called_as_their_files_are(workspace, several, names):
    seed_files(workspace)
    if several:
        document = json.loads((workspace / "lengths.json").read_text())
        document["short"] |= {"seeds": [42, 7], "seed_7": {"permutation_1": [5]}}
        # indices count triples: long is the third
        (workspace / "lengths.json").write_text(json.dumps(document))
    assert schedule(workspace, datasets="0,2" if several else "0,1").code == 0
    instance = json.loads((workspace / "schedules" / "toy.instance.json").read_text())
    assert list(instance["datasets"]) == names
