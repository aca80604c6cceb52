"""Only what is whole counts as a checkpoint, whatever writing was cut off."""

import os
from pathlib import Path

import pytest

from cappuccino.errors import InputError
from cappuccino.instance import Adapter
from cappuccino.runtime.checkpoint.manifest import MANIFEST, CheckpointPart, Origin, StageFiles, TrainingIdentity
from cappuccino.runtime.checkpoint.progress import require_no_checkpoints
from cappuccino.runtime.checkpoint.store import CheckpointStore, part_file

LAYERS = [(0, 3), (3, 4)]
"""By stage, of a backbone of four."""
JOB = Adapter(name="a", dataset="d", global_batch_size=1, num_steps=30)
ORIGIN = Origin(
    training=TrainingIdentity(adapter=JOB, lengths_sha256="l", data_sha256="d", backbone_sha256="b", dtype="float32"),
    instance_sha256="i",
    plan_sha256="p",
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "out" / "checkpoints")


def write_part(store: CheckpointStore, step: int, stage: int) -> None:
    folder = store.folder("a", step)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"weights": f"stage-{stage}-weights.safetensors"}
    (folder / files["weights"]).write_bytes(b"x" * (10 + stage))
    part = CheckpointPart(
        origin=ORIGIN,
        step=step,
        num_layers=4,
        stage=StageFiles(layers=LAYERS[stage], files=files, sizes={files["weights"]: 10 + stage}),
        schedule={"last_epoch": step},
        losses=tuple(float(k) for k in range(step)) if stage == 1 else None,
        peft={"r": 16},
    )
    (folder / part_file(stage)).write_text(part.model_dump_json())


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (store.root / "a").iterdir())


def test_a_checkpoint_is_complete_when_its_parts_cover_all_layers(store: CheckpointStore) -> None:
    assert store.seal("a") is None
    assert store.newest("a") is None
    for stage in (1, 0):
        assert store.seal("a") is None
        write_part(store, 5, stage)
    assert store.newest("a") is None
    assert store.seal("a") == 5
    found = store.newest("a")
    assert found is not None
    assert (found.step, found.losses) == (5, (0.0, 1.0, 2.0, 3.0, 4.0))
    assert [stage.layers for stage in found.stages] == LAYERS
    assert not found.finished
    assert sorted(p.name for p in store.folder("a", 5).iterdir()) == [
        MANIFEST,
        "stage-0-weights.safetensors",
        "stage-1-weights.safetensors",
    ]
    write_part(store, 10, 0)
    assert store.seal("a") == 5
    assert store.newest("a") == found


def test_steps_that_become_complete_together_are_all_kept(store: CheckpointStore) -> None:
    for step in (5, 10, 15, 20):
        for stage in range(2):
            write_part(store, step, stage)
    assert store.seal("a") == 20
    store.prune("a", 2)
    assert steps(store) == [15, 20]


@pytest.mark.parametrize("harm", ["missing", "cut", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(store: CheckpointStore, harm: str) -> None:
    for step in (5, 10):
        for stage in range(2):
            write_part(store, step, stage)
    store.seal("a")
    file = store.folder("a", 10) / "stage-1-weights.safetensors"
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        os.truncate(file, 4)
    else:
        (store.folder("a", 10) / MANIFEST).unlink()
    found = store.newest("a")
    assert found is not None
    assert found.step == 5
    store.discard_after("a", 5)
    assert steps(store) == [5]


def test_pruning_leaves_what_is_newer_than_the_newest_complete_step(store: CheckpointStore) -> None:
    for step in (5, 10, 15):
        for stage in range(2):
            write_part(store, step, stage)
    write_part(store, 12, 0)  # as when stages were asked at different moments
    write_part(store, 20, 1)
    store.seal("a")
    store.prune("a", 2)
    assert steps(store) == [10, 15, 20]


def test_parts_of_different_runs_make_no_checkpoint(store: CheckpointStore) -> None:
    for stage in range(2):
        write_part(store, 5, stage)
    file = store.folder("a", 5) / part_file(0)
    file.write_text(file.read_text().replace('"plan_sha256":"p"', '"plan_sha256":"q"'))
    assert store.seal("a") is None


def test_a_run_does_not_begin_amid_another(store: CheckpointStore) -> None:
    out = store.root.parent
    require_no_checkpoints(out)
    write_part(store, 5, 0)
    require_no_checkpoints(out)  # half a checkpoint is nothing to go on from, and is removed
    assert steps(store) == []
    for stage in range(2):
        write_part(store, 5, stage)
    with pytest.raises(InputError, match=r'checkpoints: holds checkpoints of a run that did not end \(adapter "a"\)'):
        require_no_checkpoints(out)
    for stage in range(2):
        write_part(store, 30, stage)
    require_no_checkpoints(out)  # that run is finished, and its results are replaced
    assert steps(store) == []
