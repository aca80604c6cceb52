"""The optimizer steps of one adapter on one stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import get_scheduler

from cappuccino.instance import Adapter

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
        self._norm: tuple[torch.Tensor, dist.Work] | None = None
        self.learning_rate: float | None = None
        """That the last step was made with; None before the first."""
        self.grad_norm: float | None = None
        """Norm of the gradients of the last step over all stages, before clipping; None where nothing is clipped."""
        # a stage without parameters has a schedule too: each knows the learning rate
        self._optimizer: torch.optim.Optimizer | None = torch.optim.AdamW(
            self._parameters or [nn.Parameter(torch.empty(0))],
            lr=adapter.learning_rate,
            weight_decay=adapter.weight_decay,
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

    def gradients_complete(self) -> None:
        """Start to sum the squared norm over the stages, after the last backward of a step on this stage."""
        if self._limit is None:
            return
        squares = [p.grad.double().square().sum() for p in self._parameters if p.grad is not None]
        total = torch.stack(squares).sum().cpu() if squares else torch.zeros((), dtype=torch.float64)
        self._norm = (total, dist.all_reduce(total, group=self._group, async_op=True))

    def clip(self) -> None:
        """Wait until every stage has its gradients, and scale them down to the limit."""
        if self._limit is None:
            return
        if self._norm is None:
            raise RuntimeError("an optimizer step comes before the last backward of its micro-batches")
        total, work = self._norm
        work.wait()
        self._norm = None
        self.grad_norm = total.sqrt().item()
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
                self._optimizer = None
                del self._schedule
