"""Whether the reference kernel takes the machine's drift out of a profile: one point again and again, half under load.

`python benchmarks/drift.py --backbone FOLDER` measures the same point many times in one run of processes; from the
middle on, other processes keep cores busy. Printed are the spreads of the point's times, as measured and divided by the
factors of `runtime/profiling/drift.py`: standard deviation over mean, and largest over smallest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from cappuccino.plan import even_layers
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.launch.local import Watch, run_plan
from cappuccino.runtime.profiling.drift import Drift
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.plan import profile_plan
from cappuccino.runtime.profiling.rows import ProfileRun
from cappuccino.runtime.profiling.samples import PointSamples

_BUSY = "while True: sum(range(10**6))"


def measure(backbone: Path, stages: int, point: Point, times: int, load: int, repeats: int) -> list[PointSamples]:
    """Measure a point so many times, the second half while as many processes as `load` says are busy."""
    shape = read_trainable_shape(backbone)
    layers = even_layers(shape.num_layers, stages)
    grid = replace(ProfileGrid(), repeats=repeats)
    points = [point] * times
    found: list[PointSamples] = []
    busy: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="cappuccino-drift-") as folder:
        data = Path(folder)
        profile = profile_plan(points, grid, layers, name="drift", gpu="cpu", vocab=shape.vocab, data=data)
        run = ProfileRun(profile, data / "journal", shape, grid, points, layers, "float32")

        def poll() -> None:
            found.extend(samples for _, samples in run.new_points())
            if len(found) >= times // 2 and not busy:
                busy.extend(subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(load))

        watch = Watch(data / "journal", profile.pauses, poll)
        try:
            run_plan(profile.plan, profile.instance, backbone, data, data / "out", measure_parts=True, watch=watch)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        found.extend(samples for _, samples in run.new_points())
    return found


def spreads(samples: list[PointSamples], point: Point, column: str) -> dict[str, tuple[float, float]]:
    """Return standard deviation over mean, and largest over smallest, as measured and corrected."""
    measured = np.array([found.columns(point, ProfileGrid().grad_acc_steps)["time_per_step_s"] for found in samples])

    def disagreement(factors: np.ndarray) -> float:
        logs = np.log(measured / factors)
        return float(np.abs(logs - np.median(logs)).mean())

    drift = Drift([found.references() for found in samples], disagreement=disagreement)
    result = {}
    for name, corrected in (("measured", False), ("corrected", True)):
        values = []
        for found in samples:
            used = found.scaled(drift.factors(found.references())) if corrected else found
            values.append(used.columns(point, ProfileGrid().grad_acc_steps)[column])
        result[name] = (float(np.std(values) / np.mean(values)), max(values) / min(values))
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, required=True, help="folder of a checkpoint, or a config.json")
    parser.add_argument("--num-stages", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--times", type=int, default=12, help="that the point is measured")
    parser.add_argument("--load", type=int, default=1, help="busy processes in the second half")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=Path, help="where to write all that was measured, JSON")
    arguments = parser.parse_args()
    point = Point(arguments.tokens // 32, 32)
    samples = measure(
        arguments.backbone, arguments.num_stages, point, arguments.times, arguments.load, arguments.repeats
    )
    if arguments.samples is not None:
        arguments.samples.write_text(json.dumps([found.model_dump(mode="json") for found in samples]))
    for column in ("time_per_step_s", "forward_time_s", "backward_time_s"):
        found = spreads(samples, point, column)
        texts = [f"{name} {100 * deviation:.1f}% / {ratio:.2f}" for name, (deviation, ratio) in found.items()]
        print(f"{column}: {', '.join(texts)}")


if __name__ == "__main__":
    main()
