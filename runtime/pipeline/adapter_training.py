"""The optimizer steps of one adapter on one stage."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import get_scheduler

from cappuccino.instance import Adapter
from cappuccino.runtime.pipeline.stopping import StopReason, StopSignal

_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
_TINY = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to the norm."""


class AdapterTraining:
    """AdamW, learning rate and clipping of one adapter, as if it were trained alone.

    Every stage of the pipeline must call the methods for the same adapters and steps in the same order.

    Parameters
    ----------
    adapter
        The job.
    num_steps
        Its optimizer steps.
    parameters
        Its parameters on this stage; there may be none.
    control_group
        The stages of the pipeline, for tensors on the CPU.
    first_step
        Steps that are done already; `load` then brings what they left behind.
    """

    def __init__(
        self,
        adapter: Adapter,
        num_steps: int,
        parameters: Sequence[nn.Parameter],
        control_group: dist.ProcessGroup,
        first_step: int = 0,
    ) -> None:
        self._limit = adapter.max_grad_norm
        self._steps_left = num_steps - first_step
        self._parameters = list(parameters)
        self._group = control_group
        self._leader = dist.get_process_group_ranks(control_group)[-1]
        self._leads = dist.get_rank() == self._leader
        self._under_way: list[tuple[torch.Tensor, dist.Work]] = []
        """What was told of the last step; on the last stage, of earlier ones that others have not heard yet, too."""
        self.learning_rate: float | None = None
        """That the last step was made with; None before the first."""
        self.grad_norm: float | None = None
        """Norm of the gradients of the last step over all stages, before clipping; None where nothing is clipped."""
        # a stage without parameters has a schedule too: each knows the learning rate
        self._optimizer: torch.optim.Optimizer | None = torch.optim.AdamW(
            self._parameters or [nn.Parameter(torch.empty(0))],
            lr=adapter.learning_rate,
            weight_decay=adapter.weight_decay,
            fused=True,  # one kernel for all tensors: they are small, and on the CPU a loop takes several times as long
        )
        self._schedule = get_scheduler(
            _SCHEDULERS[adapter.lr_scheduler], self._optimizer, adapter.warmup_steps, num_steps
        )

    def state(self) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any] | None]:
        """Return what the next step depends on, besides the weights.

        Returns
        -------
        list of dict
            By parameter, AdamW's tensors by name, not copied; empty for parameters that had no gradient yet, and after
            the last step.
        dict or None
            State of the learning-rate scheduler, which JSON can hold; None without parameters, and after the last step.
        """
        if self._optimizer is None:
            return [{} for _ in self._parameters], None
        moments = self._optimizer.state
        return [dict(moments[p]) if p in moments else {} for p in self._parameters], self._schedule.state_dict()

    def load(self, moments: Sequence[Mapping[str, torch.Tensor]], schedule: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, here or on stages with other layers.

        Parameters
        ----------
        moments
            By parameter, as of `state`.
        schedule
            State of the learning-rate scheduler.
        """
        if self._optimizer is None:
            return
        state = {
            "state": {i: dict(found) for i, found in enumerate(moments) if found},
            "param_groups": self._optimizer.state_dict()["param_groups"],
        }
        self._optimizer.load_state_dict(state)
        self._schedule.load_state_dict(dict(schedule))
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def forget_gradients(self) -> None:
        """Drop the gradients gathered so far."""
        for parameter in self._parameters:
            parameter.grad = None

    def gradients_complete(self, signal: StopSignal = StopSignal.GO_ON) -> None:
        """Tell the other stages that a step has all its gradients here, after its last backward on this stage.

        With clipping the squared norms are summed over the stages. Without, the last stage tells the others whether the
        adapter is to be stopped and waits for nobody.

        Parameters
        ----------
        signal
            Of the last stage; what the others give does not matter.
        """
        told = torch.tensor([0.0, float(signal) if self._leads else 0.0], dtype=torch.float64)
        if self._limit is None:
            work = dist.broadcast(told, src=self._leader, group=self._group, async_op=True)
        else:
            squares = [p.grad.double().square().sum() for p in self._parameters if p.grad is not None]
            if squares:
                told[0] = torch.stack(squares).sum()
            work = dist.all_reduce(told, group=self._group, async_op=True)
        self._under_way.append((told, work))

    def agree(self) -> StopReason | None:
        """Wait for the last stage's word on the step whose gradients are complete.

        Returns
        -------
        StopReason or None
            Why the step is not to be made, the same on all stages; None when it is.
        """
        if not self._under_way:
            raise RuntimeError("an optimizer step comes before the last backward of its micro-batches")
        told, work = self._under_way[-1]
        if self._limit is None and self._leads:
            self._under_way = [(t, w) for t, w in self._under_way if not w.is_completed()]
        else:
            work.wait()
            self._under_way.clear()
        norm, signal = told.sqrt()[0].item(), StopSignal(int(told[1].item()))
        self.grad_norm = None if self._limit is None else norm
        return signal.reason or (None if math.isfinite(norm) else StopReason.DIVERGED)

    def clip(self) -> None:
        """Scale the gradients down to the limit, if there is one."""
        if self._limit is None or self.grad_norm is None:
            return
        factor = self._limit / (self.grad_norm + _TINY)
        if factor < 1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def step(self) -> None:
        """Update the parameters and the learning rate; after the last step the optimizer's memory is given back."""
        self._steps_left -= 1
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.learning_rate = float(self._schedule.get_last_lr()[0])
            self._schedule.step()
            if not self._steps_left:
                self._give_back()

    def stop(self) -> None:
        """End the training: the gradients of the step that is not made go, as does the optimizer's memory."""
        self.forget_gradients()
        self._give_back()

    def finish(self) -> None:
        """Wait until the other stages have heard everything."""
        for _, work in self._under_way:
            work.wait()
        self._under_way.clear()

    def _give_back(self) -> None:
        if self._optimizer is not None:
            self._optimizer = None
            del self._schedule
