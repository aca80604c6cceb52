"""What a stage writes of its adapters, without the processes of a run."""

import errno
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn

from cappuccino.errors import InputError
from cappuccino.instance import Adapter
from cappuccino.runtime.checkpoint import recorder as recording
from cappuccino.runtime.checkpoint.manifest import Origin, TrainingIdentity
from cappuccino.runtime.checkpoint.recorder import CheckpointRecorder, RecordedAdapter
from cappuccino.runtime.checkpoint.restore import read_checkpoint, restore
from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining

pytestmark = pytest.mark.usefixtures("group")

NAME = "base_model.model.q.lora_A.weight"
JOB = Adapter(
    name="a", dataset="d", global_batch_size=1, num_steps=8, learning_rate=0.1, lr_scheduler="cosine", warmup_steps=3
)


class OneLayer:
    """An adapter of one parameter."""

    configs = (LoraConfig(target_modules={"v_proj", "q_proj"}),)

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.arange(6, dtype=torch.float64).reshape(2, 3))

    def named_parameters(self, position: int) -> dict[str, nn.Parameter]:
        return {NAME: self.weight}

    state_dict = named_parameters


def training_of(lora: OneLayer, done: int = 0) -> AdapterTraining:
    return AdapterTraining(JOB, 8, [lora.weight], dist.group.WORLD, done)


def step(lora: OneLayer, training: AdapterTraining, number: int) -> None:
    lora.weight.grad = torch.full_like(lora.weight, 1.0 + number) * lora.weight.detach()
    training.step()


def make_recorder(
    root: Path, lora: OneLayer, training: AdapterTraining, every: int | None, asked: threading.Event | None = None
) -> CheckpointRecorder:
    identity = TrainingIdentity(adapter=JOB, lengths_sha256="l", data_sha256="d", backbone_sha256="b", dtype="float64")
    return CheckpointRecorder(
        store=CheckpointStore(root),
        stage=0,
        layers=(0, 2),
        num_layers=2,
        adapters=[RecordedAdapter(Origin(training=identity, instance_sha256="i", plan_sha256="p"), every, (), {})],
        lora=lora,
        trainings=[training],
        loss=lambda adapter, number: float("nan") if number == 1 else float(number),
        evaluations=lambda adapter: {},
        asked=asked or threading.Event(),
        on_part=lambda: None,
    )


def written(root: Path) -> list[int]:
    return sorted(int(p.parent.name.removeprefix("step-")) for p in root.glob("a/step-*/stage-0.json"))


@pytest.mark.parametrize("begin", range(1, 8))
def test_training_goes_on_exactly_as_it_would_have(tmp_path: Path, begin: int) -> None:
    lora = OneLayer()
    training = training_of(lora)
    recorder = make_recorder(tmp_path, lora, training, every=1)
    for number in range(8):
        step(lora, training, number)
        recorder.on_step(0, number)
    recorder.close()
    store = CheckpointStore(tmp_path)
    assert store.seal("a") == 8
    checkpoint = read_checkpoint(store.folder("a", begin))
    assert checkpoint.losses == tuple(None if k == 1 else float(k) for k in range(begin))
    assert checkpoint.peft["target_modules"] == ["q_proj", "v_proj"]
    other = OneLayer()
    resumed = training_of(other, begin)
    restore(store.folder("a", begin), checkpoint, 0, other, resumed)
    for number in range(begin, 8):
        step(other, resumed, number)
    assert torch.equal(other.weight, lora.weight)
    last = read_checkpoint(store.folder("a", 8))
    assert last.finished
    assert last.stages[0].files.keys() == {"weights"}  # the optimizer is of no use any more


def test_checkpoints_come_every_few_steps_at_the_end_and_when_asked_for(tmp_path: Path) -> None:
    expected = {3: [3, 6, 8], 10: [8], None: [8]}
    for every, steps in expected.items():
        lora = OneLayer()
        training, root = training_of(lora), tmp_path / str(every)
        recorder = make_recorder(root, lora, training, every)
        for number in range(8):
            recorder.on_step(0, number)
        recorder.close()
        assert written(root) == steps
    lora, asked = OneLayer(), threading.Event()
    recorder = make_recorder(tmp_path / "asked", lora, training_of(lora), 3, asked)
    for number in range(5):
        if number == 3:
            asked.set()
        recorder.on_step(0, number)
    recorder.close()
    assert written(tmp_path / "asked") == [3, 4, 5]


def test_a_full_disk_is_told_and_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = OneLayer()
    recorder = make_recorder(tmp_path, lora, training_of(lora), every=1)
    recorder.on_step(0, 0)
    recorder.close()
    recorder = make_recorder(tmp_path, lora, training_of(lora), every=1)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cappuccino.files.os.fsync", full)
    recorder.on_step(0, 1)
    with pytest.raises(InputError, match=r"step-2/.*: cannot be written \(No space left on device\); free space"):
        recorder.close()
    with pytest.raises(InputError, match="No space left"):
        recorder.on_step(0, 2)
    monkeypatch.undo()
    assert CheckpointStore(tmp_path).seal("a") == 1
    assert not list(tmp_path.glob("a/step-2/*"))


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: Path) -> None:
    lora = OneLayer()
    recorder = make_recorder(tmp_path, lora, training_of(lora), every=1)
    recorder.on_step(0, 0)
    recorder.close()
    store = CheckpointStore(tmp_path)
    store.seal("a")
    folder = store.folder("a", 1)
    other = OneLayer()
    other.weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(InputError, match=rf"{NAME}: is torch.float64 \(2, 3\), not torch.float64 \(2, 4\)"):
        restore(folder, read_checkpoint(folder), 0, other, training_of(other, 1))
    (folder / "stage-0-weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"stage-0-weights\.safetensors: cannot be read"):
        restore(folder, read_checkpoint(folder), 0, lora, training_of(lora, 1))


def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, training goes on for a few copies only."""
    hanging, free = threading.Event(), threading.Event()

    def hang(*arguments: object) -> None:
        hanging.set()
        free.wait()

    monkeypatch.setattr(recording, "write_atomically", hang)
    lora = OneLayer()
    recorder = make_recorder(tmp_path, lora, training_of(lora), every=1)
    taken = []

    def train() -> None:
        for number in range(7):
            recorder.on_step(0, number)
            taken.append(number)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    hanging.wait()
    thread.join(0.3)
    assert thread.is_alive()
    assert len(taken) <= 3  # one under way, two waiting
    free.set()
    thread.join()
    recorder.close()


def test_a_stop_is_a_last_checkpoint_unless_it_is_there(tmp_path: Path) -> None:
    lora = OneLayer()
    training = training_of(lora)
    recorder = make_recorder(tmp_path, lora, training, every=2)
    for number in range(3):
        step(lora, training, number)
        recorder.on_step(0, number)
    training.stop()
    recorder.on_stop(0, 3)
    recorder.close()
    assert written(tmp_path) == [2, 3]
    other = make_recorder(tmp_path / "other", lora, training, every=None)
    other.on_stop(0, 0)
    other.on_stop(0, 0)
    other.close()
    assert written(tmp_path / "other") == [0]
