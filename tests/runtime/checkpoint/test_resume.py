"""A run that goes on from its checkpoints must end as if nothing had happened."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.alone import largest_difference
from helpers.plans import random_plan
from safetensors.torch import load_file

from cappuccino.instance import Instance
from cappuccino.plan import Plan, Recompute
from cappuccino.runtime.checkpoint.manifest import MANIFEST
from cappuccino.runtime.launch.keeper import CheckpointOptions
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.launch.run_result import RunResult

CUTS = (0.25, 0.5, 0.8)


@dataclass(frozen=True)
class Undisturbed:
    plan: Plan
    result: RunResult
    images: list[Path]
    """What a crash after these parts of the operations would have left of the output folder."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, instance: Instance, qwen2: Path, data: Path) -> Undisturbed:
    """Two stages, all adapters: clipping, dropout, schedules with warm-up, a module of one stage only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    plan = random_plan(instance, 2, seed=3)
    images: list[Path] = []

    def keep_image(done: int, total: int) -> None:
        if len(images) < len(CUTS) and done >= CUTS[len(images)] * total:
            image = folder / f"image-{len(images)}"
            shutil.copytree(folder / "out", image, ignore=shutil.ignore_patterns("*.tmp"))
            images.append(image)

    result = run_plan(
        plan,
        instance,
        qwen2,
        data,
        folder / "out",
        dtype="float64",
        checkpoints=CheckpointOptions(every=1, keep=2),
        on_progress=keep_image,
    )
    return Undisturbed(plan, result, images)


def require_equal(found: RunResult, expected: RunResult) -> None:
    assert found.losses.keys() == expected.losses.keys()
    for name, path in expected.adapters.items():
        weights, own = (load_file(p / "adapter_model.safetensors") for p in (path, found.adapters[name]))
        assert largest_difference(weights, own) < 1e-8
        np.testing.assert_allclose(found.losses[name], expected.losses[name], rtol=0, atol=1e-8)
        for file in ("adapter_config.json", "README.md"):
            assert (found.adapters[name] / file).read_text() == (path / file).read_text()
    for name, losses in expected.evaluations.items():
        mine = found.evaluations.get(name, {})
        # an adapter that was finished is not evaluated again behind its last step
        assert set(losses) - set(mine) <= {4}
        np.testing.assert_allclose(list(mine.values()), [losses[step] for step in mine], rtol=0, atol=1e-8)


def steps_in(image: Path) -> dict[str, int]:
    """Return by adapter the newest step with a manifest, or with the parts of both stages."""
    found: dict[str, int] = {}
    for folder in (image / "checkpoints").glob("*/step-*"):
        if (folder / MANIFEST).exists() or all((folder / f"stage-{s}.json").exists() for s in range(2)):
            name, step = folder.parent.name, int(folder.name.removeprefix("step-"))
            found[name] = max(found.get(name, 0), step)
    return found


@pytest.mark.parametrize("cut", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_as_if_nothing_had_happened(
    undisturbed: Undisturbed, instance: Instance, qwen2: Path, data: Path, tmp_path: Path, cut: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed.images[cut], out)
    done = steps_in(out)
    assert done
    plan = undisturbed.plan
    if cut == 1:  # recomputation may be another: it changes nothing
        (replica,) = plan.replicas
        plan = plan.model_copy(update={"replicas": (replica.model_copy(update={"recompute": Recompute.FULL}),)})
    result = run_plan(
        plan, instance, qwen2, data, out, dtype="float64", checkpoints=CheckpointOptions(every=2), resume=True
    )
    require_equal(result, undisturbed.result)
    (line,) = result.timelines
    stepped: dict[str, list[int]] = {a.name: [] for a in instance.adapters}
    left = [a.name for a in instance.adapters if done.get(a.name, 0) < 5]
    for operation in line.programs[0]:
        if operation[0] == "S":
            stepped[left[operation[1]]].append(operation[2])
    assert {name: sorted(steps) for name, steps in stepped.items()} == {
        name: list(range(done.get(name, 0), 5)) for name in stepped
    }


def test_adapters_are_exported_when_they_finish(undisturbed: Undisturbed) -> None:
    final = {name: load_file(path / "adapter_model.safetensors") for name, path in undisturbed.result.adapters.items()}
    early = 0
    for image in undisturbed.images:
        for name, weights in final.items():
            finished = (image / "checkpoints" / name / "step-5" / MANIFEST).exists()
            assert (image / name).exists() == finished
            if finished:
                early += 1
                assert largest_difference(load_file(image / name / "adapter_model.safetensors"), weights) == 0
                assert not (image / "losses.json").exists()  # the run was under way
    assert early
