"""Activations and gradients between neighbouring stages, in the order that the programs prescribe.

All stages run the forwards in one common order and the backwards in another, so every link carries tensors first in,
first out in each direction: neither tags nor shapes need to be exchanged.

Shapes: T tokens of a micro-batch, H hidden size.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from cappuccino.plan import Operation
from cappuccino.runtime.pipeline.program import Exchange, Neighbour, completion_proofs, key

Shape = tuple[int, ...]


class PlannedCommunicator(P2PCommunicator):
    """Sends without waiting and posts receives ahead, on CPUs and GPUs alike.

    Every rank of the pipeline must construct it at the same point, since process groups are created.

    Parameters
    ----------
    pp_group
        The ranks of the pipeline, one per stage.
    config
        Megatron's configuration; `pipeline_dtype` is the type of everything sent.
    device
        Where tensors are received.
    lookahead
        Receives posted ahead per neighbour.
    """

    def __init__(
        self, pp_group: dist.ProcessGroup, config: ModelParallelConfig, device: torch.device, lookahead: int
    ) -> None:
        super().__init__(pp_group, config)
        self._device = device
        self._lookahead = lookahead
        ranks = dist.get_process_group_ranks(pp_group)
        stage = pp_group.rank()
        self._has: dict[Neighbour, bool] = {"previous": stage > 0, "next": stage < len(ranks) - 1}
        self._peer: dict[Neighbour, int | None] = {"previous": self.prev_rank, "next": self.next_rank}
        links = list(pairwise(ranks))
        downward = [dist.new_group(list(link)) for link in links]
        upward = [dist.new_group(list(link)) for link in links]
        self._send_group = dict(self._around(stage, upward, downward))
        self._receive_group = dict(self._around(stage, downward, upward))
        self._incoming: dict[Neighbour, deque[int]] = {"previous": deque(), "next": deque()}
        self._posted: dict[Neighbour, deque[tuple[int, dist.Work, torch.Tensor]]] = {
            "previous": deque(),
            "next": deque(),
        }
        self._outgoing: dict[Neighbour, deque[int]] = {"previous": deque(), "next": deque()}
        self._shapes: dict[int, Shape | None] = {}
        self._known_after: Mapping[int, int] = {}
        self._steps = 0
        self._sent: dict[Exchange, tuple[dist.Work, torch.Tensor]] = {}
        self._proofs: dict[Exchange, list[Exchange]] = {}
        self._evaluated: list[Exchange] = []
        self._connect(stage, len(ranks), downward, upward)

    def _around(
        self, stage: int, before: list[dist.ProcessGroup], after: list[dist.ProcessGroup]
    ) -> list[tuple[Neighbour, dist.ProcessGroup]]:
        """Return the group of the link before the stage from one list and of the link after it from the other."""
        groups: list[tuple[Neighbour, dist.ProcessGroup]] = []
        if self._has["previous"]:
            groups.append(("previous", before[stage - 1]))
        if self._has["next"]:
            groups.append(("next", after[stage]))
        return groups

    def _connect(
        self, stage: int, size: int, downward: list[dist.ProcessGroup], upward: list[dist.ProcessGroup]
    ) -> None:
        """Send one number over every link: connections made lazily, in the order of the programs, could deadlock."""
        token = torch.zeros(1, device=self._device)
        for link in range(size - 1):
            for group, source, target in ((downward[link], link, link + 1), (upward[link], link + 1, link)):
                if stage == source:
                    dist.send(token, dst=dist.get_global_rank(self.pp_group, target), group=group)
                elif stage == target:
                    dist.recv(token, src=dist.get_global_rank(self.pp_group, source), group=group)

    def follow(
        self,
        program: Sequence[Operation],
        previous_program: Sequence[Operation] | None,
        shapes: Mapping[int, Shape],
        known_after: Mapping[int, int],
    ) -> None:
        """Take over what will be sent and received, and post the first receives.

        Parameters
        ----------
        program
            Of this stage.
        previous_program
            Of the stage before, None on the first.
        shapes
            Of what stages exchange, (1, T, H), by `key` of a forward.
        known_after
            By `key`, how many optimizer steps of this stage's program come before its shape is sure; no receive is
            posted earlier. Zero where it is left out.
        """
        forwards = [key(op) for op in program if op[0] in ("F", "E")]
        backwards = [op[1] for op in program if op[0] == "B"]
        self._shapes, self._known_after, self._steps = dict(shapes), known_after, 0
        if self._has["previous"]:
            self._incoming["previous"].extend(forwards)
            self._outgoing["previous"].extend(backwards)
        if self._has["next"]:
            self._incoming["next"].extend(backwards)
            self._outgoing["next"].extend(forwards)
        self._proofs = completion_proofs(previous_program)
        self._post("previous")
        self._post("next")

    def change(self, shapes: Mapping[int, Shape | None]) -> None:
        """Take over other shapes of what is still to come, by `key`; None for what is neither sent nor received."""
        self._shapes.update(shapes)

    def step(self) -> None:
        """Note that another optimizer step of the program is past, and post the receives whose shapes it settles."""
        self._steps += 1
        self._post("previous")
        self._post("next")

    def finish(self) -> None:
        """Wait for all sends still under way; nothing may be left to receive."""
        for work, _ in self._sent.values():
            work.wait()
        self._sent.clear()
        for outgoing in self._outgoing.values():
            self._drop(outgoing)
        if any(self._incoming.values()) or any(self._posted.values()) or any(self._outgoing.values()):
            raise RuntimeError("the program ended before every planned tensor was sent and received")

    def _post(self, neighbour: Neighbour) -> None:
        incoming, posted = self._incoming[neighbour], self._posted[neighbour]
        while incoming and len(posted) < self._lookahead:
            micro_batch = incoming[0]
            if self._known_after.get(micro_batch, 0) > self._steps:
                return
            incoming.popleft()
            shape = self._shapes[micro_batch]
            if shape is None:  # what it would have proved, the next one does
                unproven = self._proofs.pop((neighbour, micro_batch), [])
                if incoming and unproven:
                    self._proofs.setdefault((neighbour, incoming[0]), []).extend(unproven)
                continue
            buffer = torch.empty(shape, device=self._device, dtype=self.config.pipeline_dtype)
            work = _under_way(dist.irecv(buffer, src=self._peer[neighbour], group=self._receive_group[neighbour]))
            posted.append((micro_batch, work, buffer))

    def _receive(self, neighbour: Neighbour, shape: Sequence[int]) -> torch.Tensor:
        if not self._posted[neighbour]:
            raise RuntimeError(f"a tensor from the {neighbour} stage is awaited that the plan does not know")
        micro_batch, work, buffer = self._posted[neighbour].popleft()
        if tuple(shape) != tuple(buffer.shape):
            raise RuntimeError(
                f"micro-batch {micro_batch} comes from the {neighbour} stage in shape {tuple(buffer.shape)}, "
                f"the stage awaits {tuple(shape)}"
            )
        work.wait()
        self._post(neighbour)
        for proved in self._proofs.pop((neighbour, micro_batch), ()):
            sent = self._sent.pop(proved, None)
            if sent is not None:
                sent[0].wait()
        return buffer

    def _drop(self, keys: deque[int]) -> None:
        """Take what is not exchanged from the begin of a queue."""
        while keys and self._shapes[keys[0]] is None:
            keys.popleft()

    def _send(self, neighbour: Neighbour, tensor: torch.Tensor) -> None:
        outgoing = self._outgoing[neighbour]
        self._drop(outgoing)
        if not outgoing:
            raise RuntimeError(f"a tensor for the {neighbour} stage is sent that the plan does not know")
        micro_batch = outgoing.popleft()
        shape = self._shapes[micro_batch]
        if tuple(tensor.shape) != shape or tensor.dtype != self.config.pipeline_dtype:
            raise RuntimeError(
                f"micro-batch {micro_batch} goes to the {neighbour} stage as {tensor.dtype} {tuple(tensor.shape)}, "
                f"the plan says {self.config.pipeline_dtype} {shape}"
            )
        # A tensor of its own over the same memory: Megatron empties the output once it was handed over.
        content = tensor.detach().contiguous()
        work = _under_way(dist.isend(content, dst=self._peer[neighbour], group=self._send_group[neighbour]))
        self._sent[neighbour, micro_batch] = (work, content)
        if neighbour == "next" and micro_batch < 0:
            self._evaluated.append((neighbour, micro_batch))
        elif neighbour == "next":
            self._proofs[neighbour, micro_batch] = [*self._evaluated, (neighbour, micro_batch)]
            self._evaluated = []

    def _communicate(
        self,
        *,
        tensor_send_next: torch.Tensor | None,
        tensor_send_prev: torch.Tensor | None,
        recv_prev: bool,
        recv_next: bool,
        tensor_shape: Sequence[int],
        wait_on_reqs: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """Carry out what every public method of the base class comes down to."""
        if tensor_send_next is not None:
            self._send("next", tensor_send_next)
        if tensor_send_prev is not None:
            self._send("previous", tensor_send_prev)
        from_previous = self._receive("previous", tensor_shape).requires_grad_() if recv_prev else None
        from_next = self._receive("next", tensor_shape) if recv_next else None
        return from_previous, from_next, None


def _under_way(work: dist.Work | None) -> dist.Work:
    """Return the handle of a transfer; there is none for a rank outside the group."""
    if work is None:
        raise RuntimeError("this process belongs to no such link of the pipeline")
    return work
