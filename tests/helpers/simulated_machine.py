"""A machine on which plans run as the simulator says, by its own clock, with times and memory that a formula gives."""

from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.backbone import LayerShape
from cappuccino.costs import MemoryModel
from cappuccino.costs.adapters import AdapterSize
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.local import Watch
from cappuccino.runtime.launch.run_result import RunResult
from cappuccino.runtime.monitoring.journal import JournalEntry, journal_file
from cappuccino.runtime.monitoring.lines import LineWriter
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.simulator import run_programs
from cappuccino.timeline import Timeline
from cappuccino.workload import Workload

TRANSFER, OPTIMIZER = (2e-3, 1e-5), 5e-3
INPUT, HEAD, LOSS = 4e-3, (6e-4, 6e-4), (2e-4, 2e-4)
"""Of the simulated machine: seconds, those of head and loss per token."""
REFERENCE_S = 4e-3


def layer_seconds(tokens: int, adapters: list[AdapterSize]) -> tuple[float, float]:
    """Forward and backward of a layer: launch-bound floor or work, both with what adapters add."""
    floor = 8e-3 + 2e-4 * sum(a.modules for a in adapters)
    widths, parameters = (sum(getattr(a, x) for a in adapters) / len(adapters) for x in ("widths", "parameters"))
    work = tokens * (1e-4 + 2e-8 * widths + 1e-9 * parameters)
    forward = (floor**4 + work**4) ** 0.25
    return forward, 2 * forward


class Machine:
    """Runs plans as the simulator does, with times and memory that a formula gives."""

    def __init__(self, shape: LayerShape, room_tokens: float = np.inf) -> None:
        self.shape, self.room_tokens = shape, room_tokens
        self.warms_up = False
        """Whether memory runs out before the first operation."""
        self.mixed_factor = 1.0
        """On operations of an adapter's last step."""
        self.runs: list[Plan] = []
        self.now = 0.0
        """What its clock says, seconds."""
        self.start_s = 10.0
        """That a run takes before its first operation."""
        self.slower = 1.0
        """All operations, and the reference kernel, than usual."""

    def __call__(self, plan: Plan, instance: Instance, *arguments: object, **options: Any) -> RunResult:
        self.runs.append(plan)
        replica = plan.replicas[0]
        jobs = [instance.adapters[instance.adapter_index(name)] for name in replica.adapters]
        tokens, members = [], []
        for batch in replica.micro_batches:
            tokens.append(sum(instance.sample_length(a, n) for a, n in batch.samples))
            members.append(
                [AdapterSize.of(self.shape, jobs[a].rank, jobs[a].target_modules) for a in dict(batch.samples)]
            )
        if self.warms_up and max(tokens) > self.room_tokens:
            raise RunError(0, 0, "torch.OutOfMemoryError: CUDA out of memory.")
        too_large = [i for i, op in enumerate(replica.programs[0]) if op[0] == "F" and tokens[op[1]] > self.room_tokens]
        durations, parts = [], []
        for stage, (program, layers) in enumerate(zip(replica.programs, replica.layers_per_stage or (), strict=True)):
            mine: list[float] = []
            costs: list[list[PartCost]] = []
            for operation in program:
                costs.append([])
                if operation[0] == "S":
                    mine.append(OPTIMIZER)
                    continue
                m, kind = operation[1], int(operation[0] == "B")
                split: dict[Any, float] = {"layers": layers * layer_seconds(tokens[m], members[m])[kind]}
                if not kind:
                    split = {"input": INPUT, **split}
                if stage == replica.num_stages - 1:
                    split |= {"head": HEAD[kind] * tokens[m], "loss": LOSS[kind] * tokens[m]}
                a, n = replica.micro_batches[m].samples[0]
                last = n // jobs[a].global_batch_size == instance.num_steps(instance.adapter_index(jobs[a].name)) - 1
                split = {part: s * (self.mixed_factor if last else 1.0) for part, s in split.items()}
                costs[-1] += [
                    PartCost(kind="FB"[kind], micro_batch=m, part=part, seconds=s, held_bytes=None if kind else 100)
                    for part, s in split.items()
                ]
                mine.append(sum(split.values()))
            durations.append(np.array(mine) * self.slower)
            parts.append(costs)
        count = len(tokens)
        work = Workload(
            np.array(tokens), (frozenset(),) * count, np.zeros(count), np.zeros(count),
            TRANSFER[0] + TRANSFER[1] * np.array(tokens), 0.0, frozenset(), MemoryModel(0.0, 0.0, 0.0),
        )  # fmt: skip
        line = run_programs(replica.programs, work, 0, durations)
        self._tell(options["watch"], line, parts, too_large[0] if too_large else None)
        return RunResult({}, [line], {}, Path("trace.json"), {}, {}, {}, {}, {})

    def at_pause(self) -> None:
        """Do what a test wants to happen at every pause, before the profiler sees it."""

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def _tell(self, watch: Watch, line: Timeline, parts: list[list[list[PartCost]]], fails_at: int | None) -> None:
        """Write the journals pause by pause, as time goes by."""
        writers = [LineWriter(journal_file(watch.journal, s)) for s in range(len(line.programs))]
        self.now += self.start_s
        begin, last = self.now, [0] * len(writers)
        for positions in zip(*watch.pauses, strict=True):
            if fails_at is not None and positions[0] > fails_at:
                raise RunError(0, 0, "torch.OutOfMemoryError: CUDA out of memory.", fails_at)
            for s, (a, b) in enumerate(zip(last, positions, strict=True)):
                entry = JournalEntry(
                    starts=tuple(line.starts[s][a:b].tolist()),
                    ends=tuple(line.ends[s][a:b].tolist()),
                    memory_gib=(1.0,) * (b - a),
                    parts=tuple(
                        cost.model_copy(update={"seconds": cost.seconds * self.slower})
                        for costs in parts[s][a:b]
                        for cost in costs
                    ),
                    reference_s=(REFERENCE_S * self.slower,) * 3,
                )
                writers[s].write(entry)
                if b:
                    self.now = max(self.now, begin + float(line.ends[s][b - 1]))
            last = list(positions)
            self.at_pause()
            watch.on_poll()
