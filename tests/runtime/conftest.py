"""Runs shared by the tests: importing Megatron and PEFT takes each process ten seconds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.plans import random_plan
from helpers.runs import Run, run
from helpers.small import instance_of, save_llama, save_qwen2, write_data

from cappuccino.instance import Adapter, Instance


@pytest.fixture(scope="session")
def lengths() -> dict[str, list[int]]:
    """Sample lengths, some of them 1 (no loss at all), some above the maximum of 24."""
    rng = np.random.default_rng(0)
    news, code = [1, *rng.integers(1, 30, 16).tolist()], rng.integers(2, 30, 11).tolist()
    return {"news": news, "code": code, "held-out": [1, 25, 7, 12, 30]}


@pytest.fixture(scope="session")
def instance(lengths: dict[str, list[int]]) -> Instance:
    """Adapters that differ in everything; names that PEFT could take for modules or methods."""
    return instance_of(
        [
            Adapter(
                name="q_proj",
                dataset="news",
                global_batch_size=4,
                num_steps=5,
                rank=4,
                alpha=8,
                learning_rate=1e-3,
                eval_dataset="held-out",
                eval_every=2,
            ),
            Adapter(
                name="train",
                dataset="code",
                global_batch_size=3,
                num_steps=5,
                rank=2,
                alpha=16,
                seed=7,
                learning_rate=3e-3,
                target_modules="all-linear",
                max_grad_norm=0.5,
                lr_scheduler="linear",
                warmup_steps=2,
                weight_decay=0.1,
                eval_dataset="held-out",
            ),
            Adapter(
                name="0",
                dataset="code",
                global_batch_size=2,
                num_steps=5,
                rank=3,
                alpha=3,
                seed=9,
                learning_rate=2e-3,
                target_modules=("down_proj", "lm_head"),
                lr_scheduler="cosine",
            ),
            Adapter(
                name="last-layer",
                dataset="news",
                global_batch_size=3,
                num_steps=5,
                rank=1,
                seed=3,
                learning_rate=1e-3,
                target_modules=("layers.3.mlp.up_proj",),
                max_grad_norm=0.1,
                warmup_steps=1,
            ),
            Adapter(
                name="dropping",
                dataset="news",
                global_batch_size=3,
                num_steps=5,
                rank=2,
                seed=5,
                dropout=0.3,
                learning_rate=1e-3,
                eval_dataset="code",
                eval_every=1,
                target_modules=("k_proj", "gate_proj", "lm_head"),
            ),
        ],
        lengths,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, lengths: dict[str, list[int]]) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), lengths)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def backbones(qwen2: Path, llama: Path) -> dict[str, Path]:
    return {"qwen2": qwen2, "llama": llama}


@pytest.fixture(scope="session", params=["qwen2", "llama"])
def float64_run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    instance: Instance,
    backbones: dict[str, Path],
    data: Path,
) -> Run:
    """Three stages, all adapters in one replica."""
    out = tmp_path_factory.mktemp("float64") / "out"
    return run(random_plan(instance, 3, seed=1), instance, backbones[request.param], data, out, dtype="float64")


@pytest.fixture(scope="session", params=["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def float32_run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    instance: Instance,
    backbones: dict[str, Path],
    data: Path,
) -> Run:
    """Three stages, the adapters without dropout, in larger micro-batches."""
    out = tmp_path_factory.mktemp("float32") / "out"
    part = instance.subset([0, 1, 2, 3])
    plan = random_plan(part, 3, seed=2, samples_per_micro_batch=5)
    return run(plan, part, backbones[request.param], data, out, dtype="float32")


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
