import pytest
import torch
import torch.distributed as dist
from helpers.alone import learning_rate_factor
from torch import nn

from cappuccino.instance import Adapter
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining
from cappuccino.runtime.pipeline.stopping import StopReason, StopSignal


def training(parameter: nn.Parameter, group: dist.ProcessGroup, steps: int = 6, **fields: object) -> AdapterTraining:
    adapter = Adapter(name="a", dataset="d", global_batch_size=1, learning_rate=1.0, **fields)
    return AdapterTraining(adapter, steps, [parameter], group)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_learning_rate_follows_its_definition(group: dist.ProcessGroup, kind: str, warmup: int) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    job = training(parameter, group, lr_scheduler=kind, warmup_steps=warmup)
    for step in range(6):
        before = parameter.item()
        parameter.grad = torch.ones(1, dtype=torch.float64)
        job.gradients_complete()
        assert job.agree() is None
        job.clip()
        job.step()
        assert job.learning_rate == pytest.approx(learning_rate_factor(kind, step, warmup, 6), abs=1e-12)
        assert job.grad_norm is None  # nothing is clipped
        # With constant gradients Adam moves by the learning rate (up to its epsilon of 1e-8).
        assert before - parameter.item() == pytest.approx(learning_rate_factor(kind, step, warmup, 6), abs=1e-6)
        assert parameter.grad is None


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_equals_torch(group: dist.ProcessGroup, limit: float) -> None:
    parameter, other = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    job = training(parameter, group, max_grad_norm=limit)
    parameter.grad = torch.tensor([1.0, -2.0, 2.0])
    other.grad = parameter.grad.clone()
    job.gradients_complete()
    assert job.agree() is None
    job.clip()
    norm = nn.utils.clip_grad_norm_([other], limit)
    torch.testing.assert_close(parameter.grad, other.grad)
    assert job.grad_norm == pytest.approx(float(norm)) == pytest.approx(3)  # 1 + 4 + 4 squared


def test_a_step_before_its_gradients_is_refused(group: dist.ProcessGroup) -> None:
    job = training(nn.Parameter(torch.zeros(1)), group, max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="before the last backward"):
        job.agree()


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("signal", [StopSignal.DIVERGED, StopSignal.PATIENCE, StopSignal.ASKED])
def test_the_last_stage_says_why_a_step_is_not_made(
    group: dist.ProcessGroup, limit: float | None, signal: StopSignal
) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    job = training(parameter, group, max_grad_norm=limit)
    parameter.grad = torch.ones(1)
    job.gradients_complete(signal)
    assert job.agree() == signal.name.lower()
    job.stop()
    assert parameter.grad is None
    assert parameter.item() == 0
    job.finish()


def test_gradients_that_are_not_finite_are_seen_where_they_are_clipped(group: dist.ProcessGroup) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    job = training(parameter, group, max_grad_norm=1.0)
    parameter.grad = torch.tensor([1.0, torch.inf])
    job.gradients_complete(StopSignal.GO_ON)
    assert job.agree() is StopReason.DIVERGED


def test_an_adapter_without_parameters_here_takes_part_in_the_norm(group: dist.ProcessGroup) -> None:
    adapter = Adapter(
        name="a", dataset="d", global_batch_size=1, max_grad_norm=1.0, learning_rate=0.5, lr_scheduler="linear"
    )
    job = AdapterTraining(adapter, 2, [], group)
    assert job.learning_rate is None
    for learning_rate in (0.5, 0.25):  # and knows the learning rate, which the last stage tells
        job.gradients_complete()
        assert job.agree() is None
        job.clip()
        job.step()
        assert (job.learning_rate, job.grad_norm) == (learning_rate, 0.0)
