"""The GPUs of a new instance."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from cappuccino.analytic.catalogue import GPUS
from cappuccino.errors import InputError
from cappuccino.runtime.new_instance import pools
from cappuccino.runtime.new_instance.pools import gpu_name, named_pools, pools_of_this_machine

GIB = 2**30


def test_named_pools_have_the_memory_that_is_given_or_known() -> None:
    found = [f.pool for f in named_pools(["a100-80gb=8", "mine=2:23.5"], layers=4)]
    assert [(p.gpu, p.count, p.memory_gib) for p in found] == [
        ("a100-80gb", 8, GPUS["a100-80gb"].memory_gib),
        ("mine", 2, 23.5),
    ]


def test_the_cpu_shares_out_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=int(12.38 * GIB))
    monkeypatch.setattr(pools.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pools.os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    (found,) = pools_of_this_machine(layers=8)
    assert (found.pool.gpu, found.pool.count, found.pool.memory_gib) == ("cpu", 3, 4.1)  # 12.38 / 3 = 4.126
    (found,) = pools_of_this_machine(layers=2)  # a third stage would have no layer
    assert (found.pool.count, found.pool.memory_gib) == (2, 6.1)
    (named,) = named_pools(["cpu=1"], layers=8)
    assert named.pool.memory_gib == 12.3


def test_gpus_of_this_machine_are_a_pool_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [("NVIDIA A100-SXM4-40GB", 39.39), ("NVIDIA L40S", 44.4), ("NVIDIA A100-SXM4-40GB", 39.25)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))

    def properties(index: int) -> Any:
        name, memory = devices[index]
        return SimpleNamespace(name=name, total_memory=int(memory * GIB))

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found = [(f.pool.gpu, f.pool.count, f.pool.memory_gib) for f in pools_of_this_machine(layers=8)]
    assert found == [("a100-40gb", 2, 39.2), ("l40s-48gb", 1, 44.3)]


@pytest.mark.parametrize(
    ("device", "memory_gib", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.25, "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", 79.25, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA H200", 139.8, "h200-141gb"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75, "a100-sxm4-40gb-mig-1g-5gb"),  # a part of one is none
        ("NVIDIA L40", 44.4, "l40"),
    ],
)
def test_catalogued_gpus_are_recognised_by_name_and_memory(device: str, memory_gib: float, name: str) -> None:
    assert gpu_name(device, memory_gib) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a100-80gb"], '"a100-80gb" is not NAME=COUNT'),
        (["a100-80gb=0"], '"a100-80gb=0" is not NAME=COUNT'),
        (["a100-80gb=2:many"], '"a100-80gb=2:many" is not NAME=COUNT'),
        (["mine=2"], 'the memory of "mine" is not known; write mine=2:MEMORY_GIB'),
        (["mine=2:0"], '"mine=2:0" has no memory'),
        (["cpu=1:4", "cpu=1:4"], '"cpu" is given twice'),
        (["cpu=5"], "5 stages for 4 decoder layers"),
    ],
)
def test_options_that_name_no_pool_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        named_pools(options, layers=4)
    assert message in str(error.value)
