"""What hypothesis draws: cost tables as `cappuccino profile` writes them, and sweeps of unlike jobs on them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from cappuccino.backbone import LayerShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.memory import adapter_memory_gib, mask_memory_gib
from cappuccino.costs.stages import balanced_layers
from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.plan import Objective, Recompute
from cappuccino.runtime.profiling.grid import ALL_LINEAR, Point, ProfileGrid
from cappuccino.runtime.profiling.rows import point_columns
from cappuccino.solvers.planning import PlanOptions

BACKBONE, EVALUATED = "drawn", "e"
TARGETS = (
    ("q_proj",),
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ALL_LINEAR,
)


def _scale(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of all magnitudes between two."""
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))


@dataclass(frozen=True)
class Machine:
    """What a table is measured on: how long parts of an operation take, seconds."""

    shape: LayerShape
    num_layers: int
    depths: tuple[int, ...]
    floor_s: float
    """Of a layer."""
    token_s: float
    """Of a layer and token."""
    square_s: float
    """Relative to a token, per token of the sample."""
    adapter: tuple[float, float, float, float]
    """Per module, relative to the floor; per width, parameter and mask of the whole layer, relative to a token."""
    backward: float
    """Over forward."""
    head: float
    """Of head and loss, in layers."""
    optimizer_s: float
    transfer_s: float
    mixed: float
    """Among other micro-batches over alone."""
    noise: float
    """Standard deviation of the logarithm of every time."""
    gib_per_layer: float
    gib_per_token: float
    largest: int
    """Tokens of the largest micro-batch that fits one stage."""
    recompute: tuple[str, ...]
    """Kinds of recomputation that are measured; none: the table does not say."""
    seed: int

    def layer_s(self, point: Point) -> float:
        """Return the forward time of a layer."""
        size = AdapterSize.of(self.shape, point.rank, point.target_modules, point.dropout)
        whole = AdapterSize.of(self.shape, 16, ALL_LINEAR, 0.05)
        module, width, parameter, mask = self.adapter
        floor = self.floor_s * (1 + module * size.modules * point.num_adapters)
        relative = 1 + width * size.widths / whole.widths + parameter * size.parameters / whole.parameters
        relative += mask * size.dropped / whole.dropped
        work = point.tokens * self.token_s * (relative + self.square_s * point.length)
        return float((floor**4 + work**4) ** 0.25)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Engines and GPUs of every kind: launch-bound or not, with a heavy head or a light one."""
    hidden = draw(st.sampled_from([64, 256, 2048]))
    shape = LayerShape(hidden, hidden * 11 // 4, hidden, hidden // draw(st.sampled_from([1, 2, 8])))
    share = st.sampled_from([0.0, 0.02, 0.2])
    return Machine(
        shape=shape,
        num_layers=draw(st.sampled_from([4, 7, 13, 30])),
        depths=draw(st.sampled_from([(1,), (1, 2), (2, 3), (1, 2, 4)])),
        floor_s=draw(_scale(1e-4, 2e-2)),
        token_s=draw(_scale(1e-7, 1e-4)),
        square_s=draw(st.sampled_from([0.0, 1e-4, 1e-2])),
        adapter=(draw(share), draw(share), draw(share), draw(share)),
        backward=draw(st.floats(0.8, 2.5)),
        head=draw(st.sampled_from([0.1, 1.0, 8.0])),
        optimizer_s=draw(st.sampled_from([0.0, 1e-3, 0.05])),
        transfer_s=draw(st.sampled_from([0.0, 1e-3, 0.02])),
        mixed=draw(st.floats(0.4, 1.7)),
        noise=draw(st.sampled_from([0.0, 0.05, 0.4])),
        gib_per_layer=draw(_scale(1e-3, 0.5)),
        gib_per_token=draw(_scale(1e-6, 1e-3)),
        largest=draw(st.sampled_from([512, 1536, 10**9])),
        recompute=draw(st.sampled_from([(), ("full",), ("none", "full")])),
        seed=draw(st.integers(0, 2**16)),
    )


def write_table(folder: Path, machine: Machine, gpus: dict[str, float]) -> Path:
    """Write the table that a profile of a machine gives, on several GPU types by how much slower they are."""
    rng = np.random.default_rng(machine.seed)
    grid = ProfileGrid(
        num_stages=machine.depths,
        tokens=(64, 192, 384, 768, 1536),
        sequence_lengths=(32, 96),
        target_modules=TARGETS[1:],
    )

    def measured(seconds: float) -> float:
        return float(seconds * np.exp(machine.noise * rng.standard_normal()))

    rows = []
    for gpu, slowness, mode in ((g, s, m) for g, s in gpus.items() for m in machine.recompute or ("",)):
        for stages in machine.depths:
            layers = balanced_layers(machine.num_layers, 1.0, [0.0] * (stages - 1) + [machine.head])
            factors = {f"{kind}_mixed_factor": measured(machine.mixed) for kind in ("forward", "backward")}
            for point in grid.points():
                row = {
                    "param_name": BACKBONE, "gpu": gpu, "source": "measured", "device": "cpu", "dtype": "float32",
                    "num_layers": machine.num_layers, "hidden_size": machine.shape.hidden,
                    "intermediate_size": machine.shape.intermediate, "query_size": machine.shape.query,
                    "key_value_size": machine.shape.key_value, **point_columns(point, layers, grid),
                }  # fmt: skip
                row |= {"recompute": mode} if mode else {}
                if point.tokens > machine.largest * stages:
                    rows.append({**row, "status": "OOM"})
                    continue
                layer, head = slowness * machine.layer_s(point), slowness * machine.head * machine.layer_s(point)
                parts = {
                    "input_forward_time_s": measured(0.1 * layer),
                    "layer_forward_time_s": measured(layer),
                    "layer_backward_time_s": measured(layer * machine.backward),
                    "head_forward_time_s": measured(0.9 * head),
                    "head_backward_time_s": measured(0.9 * head * machine.backward),
                    "loss_forward_time_s": measured(0.1 * head),
                    "loss_backward_time_s": measured(0.1 * head * machine.backward),
                }
                slowest = max(layers[-1] * layer + head, max(layers) * layer)
                forward, backward = measured(slowest), measured(slowest * machine.backward)
                held = machine.gib_per_token * max(layers)
                if mode == "full":  # a forward more, and a tenth is kept
                    backward += forward
                    held *= 0.1
                slots = grid.grad_acc_steps + stages - 1
                memory = machine.gib_per_layer * max(layers) + held * point.tokens
                size = AdapterSize.of(machine.shape, point.rank, point.target_modules, point.dropout)
                memory += point.num_adapters * adapter_memory_gib(size, max(layers), "float32")
                in_flight = point.tokens * min(stages, grid.grad_acc_steps)
                memory += in_flight * mask_memory_gib(size, max(layers), Recompute(mode) if mode else None)
                rows.append(
                    {
                        **row,
                        **parts,
                        **factors,
                        "status": "OK",
                        "forward_time_s": forward,
                        "backward_time_s": backward,
                        "optimizer_time_s": measured(slowness * machine.optimizer_s),
                        "transfer_time_s": measured(machine.transfer_s) if stages > 1 else 0.0,
                        "time_per_step_s": measured(slots * (forward + backward)),
                        "peak_memory_mb": 1024 * memory,
                    }
                )
    table = pd.DataFrame(rows)
    path = folder / "table.csv"
    table.to_csv(path, index=False, float_format="%.6g")
    return path


@dataclass(frozen=True)
class Sweep:
    """Jobs on pools, without their cost table."""

    lengths: dict[str, list[int]]
    adapters: tuple[Adapter, ...]
    gpus: dict[str, tuple[int, float | None]]
    """Count and price by GPU type."""
    slowness: dict[str, float]
    memory: float
    """Of a GPU, in multiples of what one stage takes with the largest micro-batch profiled there."""

    def instance(self, table: Path, memory_gib: float) -> Instance:
        """Return the instance on a table."""
        return Instance(
            name="drawn",
            backbone=BACKBONE,
            cost_table=table,
            gpu_pools=tuple(
                GpuPool(gpu=gpu, count=count, memory_gib=memory_gib, price_per_hour=price)
                for gpu, (count, price) in self.gpus.items()
            ),
            max_sequence_length=512,
            dataset_lengths={name: np.array(values) for name, values in self.lengths.items()},
            adapters=self.adapters,
        )


@st.composite
def adapters(draw: st.DrawFn, names: list[str], most_batch: int, most_steps: int) -> Adapter:
    """A job of any size on one of the data sets."""
    return Adapter(
        name="a",
        dataset=draw(st.sampled_from(names)),
        global_batch_size=draw(st.integers(1, most_batch)),
        micro_batch_size=draw(st.integers(1, 4)),
        num_steps=draw(st.integers(1, most_steps)),
        rank=draw(st.integers(2, 128)),
        target_modules=draw(st.sampled_from(TARGETS)),
        dropout=draw(st.sampled_from([0.0, 0.05])),
        learning_rate=draw(st.sampled_from([1e-4, 1e-3])),
        max_grad_norm=draw(st.sampled_from([None, 1.0])),
        **draw(st.sampled_from([{}, {}, {"eval_dataset": EVALUATED}, {"eval_dataset": EVALUATED, "eval_every": 2}])),
    )


@st.composite
def sweeps(
    draw: st.DrawFn,
    most: int = 40,
    most_gpus: int = 64,
    most_batch: int = 8,
    most_steps: int = 6,
    most_length: int = 512,
) -> Sweep:
    """Unlike jobs, many of which share a data set, on one or two pools of GPUs."""
    names = [f"d{i}" for i in range(draw(st.integers(1, 3)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    lengths = {n: np.exp(rng.uniform(np.log(4), np.log(most_length), 60)).astype(int).tolist() for n in names}
    if draw(st.booleans()):  # data sets that begin alike
        lengths = {n: lengths[names[0]][: 60 - i] for i, n in enumerate(names)}
    lengths[EVALUATED] = rng.integers(4, most_length, int(rng.integers(1, 4))).tolist()
    jobs = draw(st.lists(adapters(names, most_batch, most_steps), min_size=1, max_size=most))
    price = st.sampled_from([None, 0.0, 1.5])
    gpus = {"x": (draw(st.integers(1, most_gpus)), draw(price))}
    if draw(st.booleans()):
        gpus["y"] = (draw(st.integers(1, most_gpus)), draw(price))
    return Sweep(
        lengths=lengths,
        adapters=tuple(job.model_copy(update={"name": f"a{i}"}) for i, job in enumerate(jobs)),
        gpus=gpus,
        slowness={"x": 1.0, "y": draw(st.sampled_from([0.5, 1.0, 3.0]))},
        memory=draw(st.sampled_from([0.7, 1.5, 20.0])),
    )


@st.composite
def plan_options(draw: st.DrawFn, sweep: Sweep) -> tuple[PlanOptions, float | None]:
    """Options of a plan, and what to multiply for its deadline; None for none."""
    priced = all(price is not None for _, price in sweep.gpus.values())
    objectives = [Objective.GPU_TIME, Objective.MAKESPAN, *([Objective.COST] if priced else [])]
    options = PlanOptions(
        objective=draw(st.sampled_from(objectives)),
        time_limit_s=0.2,
        num_stages=draw(st.sampled_from([None, None, 1, 2, 3])),
        profiled_only=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
    return options, draw(st.sampled_from([None, None, 1.0, 1.2, 1.5]))
