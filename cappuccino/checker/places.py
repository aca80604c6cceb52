"""Where replicas may be that a certificate is about, and what bounds say of them there."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.certificate import Certificate
from cappuccino.costs import CostModel
from cappuccino.costs.memory import MOST_TOKENS
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import GpuPool, Instance
from cappuccino.plan import Objective


@dataclass(frozen=True)
class Place:
    """A pool, a depth and a recomputation; arrays by kind of adapter, shape (K,)."""

    gpu: str
    num_stages: int
    rate: float
    """What a second of a replica adds to the objective; 0 for the makespan."""
    charge: float
    """For all its GPUs."""
    bounds: ReplicaBounds
    ramp_s: float
    shares: np.ndarray
    """Seconds that one adapter keeps a replica busy at least; infinite where it does not fit."""
    paths: np.ndarray
    """Seconds that a replica with one takes at least, likewise: quick bounds, until it is `sharpened`."""

    def sharpened(self) -> "Place":
        """Return the place with path bounds that take time to work out."""
        return replace(self, paths=self.bounds.paths)

    def makespans(self, sets: np.ndarray) -> np.ndarray:
        """Return bounds on the makespans of sets, seconds, shape (N,); infinite where memory does not hold one.

        Parameters
        ----------
        sets
            How many adapters of each kind they hold, shape (N, K).
        """
        result, ok = np.full(len(sets), np.inf), self.bounds.room.holds(sets)
        if ok.any():
            longest = np.where(sets[ok] > 0, self.paths, 0.0).max(axis=1)
            result[ok] = np.maximum(self.bounds.work(sets[ok]), longest)
        return result

    def admits(self, limit_s: float) -> np.ndarray:
        """Return whether an adapter of each kind may end within a limit here."""
        return np.asarray(np.isfinite(self.paths) & (self.paths <= limit_s) & (self.ramp_s + self.shares <= limit_s))


@dataclass(frozen=True)
class Space:
    """Kinds of equal adapters, and the places for them."""

    counts: np.ndarray
    """Adapters of each kind, shape (K,)."""
    prices: np.ndarray
    """Of one of each kind, shape (K,)."""
    places: tuple[Place, ...]
    gpus: dict[str, int]
    """By type."""
    rent: float
    """The charges of all GPUs."""
    limits: tuple[str, ...] = ()
    """What plans it is about are held to by the cost table and the layers by stage, in words."""

    def sharpened(self) -> "Space":
        """Return the space with path bounds that take time to work out."""
        with ThreadPoolExecutor() as executor:  # the compiled search for them releases the lock
            return replace(self, places=tuple(executor.map(Place.sharpened, self.places)))

    @property
    def number_of_sets(self) -> int:
        """How many sets of adapters there are, equal adapters not told apart."""
        result = 1
        for n in self.counts.tolist():
            result *= n + 1
        return result - 1


def space_of(
    certificate: Certificate, objective: Objective, instance: Instance, costs: Mapping[str, CostModel]
) -> Space:
    """Return all places that a certificate is about, as the cost table and its restrictions have them.

    Raises
    ------
    InvalidPlanError
        When costs know nothing of the recomputation or the layers that it names.
    """
    found = list(_models(certificate, instance, costs))
    if not found:
        raise InvalidPlanError("its restrictions leave no depth in any pool")
    numbers = [model.adapter_costs(g, instance.adapters).by_adapter() for _, model, g in found]
    prices = [certificate.prices[a.name] for a in instance.adapters]
    kinds = _kinds(instance, np.concatenate(numbers, axis=1), prices)
    one_of_each = instance.subset([members[0] for members in kinds])
    bounds = [(pool, ReplicaBounds(one_of_each, model, g, pool.memory_gib)) for pool, model, g in found]
    return Space(
        counts=np.array([len(members) for members in kinds]),
        prices=np.array([prices[members[0]] for members in kinds]),
        places=tuple(
            Place(
                gpu=pool.gpu,
                num_stages=b.num_stages,
                rate=_rate(pool, b.num_stages, objective),
                charge=certificate.charges[pool.gpu] * b.num_stages,
                bounds=b,
                ramp_s=b.ramp_s,
                shares=b.shares,
                paths=b.quick_paths,
            )
            for pool, b in bounds
        ),
        gpus={p.gpu: p.count for p in instance.gpu_pools},
        rent=sum(p.count * certificate.charges[p.gpu] for p in instance.gpu_pools),
        limits=tuple(_limits(certificate, found, costs)),
    )


def _limits(
    certificate: Certificate, found: Sequence[tuple[GpuPool, CostModel, int]], costs: Mapping[str, CostModel]
) -> Iterator[str]:
    """Yield what the plans are held to, besides the restrictions of the search."""
    deepest: dict[str, tuple[int, int]] = {}
    for pool, model, g in found:
        deepest[pool.gpu] = max(deepest.get(pool.gpu, (0, 0))[0], g), min(pool.count, model.num_layers or pool.count)
    if certificate.num_stages is None and any(looked < possible for looked, possible in deepest.values()):
        yield f"of at most {max(looked for looked, _ in deepest.values())} stages"
    most = [model.largest_tokens for _, model, _ in found if model.largest_tokens < MOST_TOKENS]
    if most:
        yield f"with micro-batches of at most {max(most)} tokens"
    usual = {
        (gpu, model.recompute and model.recompute.value, g): model.layers_per_stage(g)
        for gpu, fitted in costs.items()
        for model in fitted.choices
        for g in {len(x.layers) for x in certificate.layers}
        if g <= (model.num_layers or g)
    }
    if any(usual.get((x.gpu, x.recompute, len(x.layers)), x.layers) != x.layers for x in certificate.layers):
        yield "with the certificate's layers by stage"


def _models(
    certificate: Certificate, instance: Instance, costs: Mapping[str, CostModel]
) -> Iterator[tuple[GpuPool, CostModel, int]]:
    """Yield every pool, kind of costs and depth within the restrictions."""
    layers: dict[tuple[str, str | None, int], tuple[int, ...]] = {
        (x.gpu, x.recompute, len(x.layers)): x.layers for x in certificate.layers
    }
    for pool in instance.gpu_pools:
        for model in costs[pool.gpu].choices:
            mode = None if model.recompute is None else model.recompute.value
            if certificate.recompute is not None and mode != certificate.recompute:
                continue
            for g in _depths(certificate, pool, model):
                split = layers.get((pool.gpu, mode, g))
                yield pool, model if split is None else model.of_layers(g, split), g


def _depths(certificate: Certificate, pool: GpuPool, model: CostModel) -> Sequence[int]:
    fixed = certificate.num_stages
    if fixed is None:
        return model.stage_counts(pool.count, certificate.profiled_only)
    possible = fixed <= min(pool.count, model.num_layers or pool.count)
    return [fixed] if possible and not (certificate.profiled_only and model.extrapolated(fixed)) else []


def _kinds(instance: Instance, numbers: np.ndarray, prices: Sequence[float]) -> list[list[int]]:
    """Return the adapters that have equal samples, costs and prices, together."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for i, lengths in enumerate(instance.step_lengths):
        evaluations = tuple(instance.evaluated_steps(i)), instance.evaluation_lengths(i).tobytes()
        key = lengths.shape, lengths.tobytes(), evaluations, numbers[i].tobytes(), prices[i]
        kinds.setdefault(key, []).append(i)
    return list(kinds.values())


def _rate(pool: GpuPool, num_stages: int, objective: Objective) -> float:
    if objective is Objective.MAKESPAN:
        return 0.0
    return num_stages * (1.0 if objective is Objective.GPU_TIME else (pool.price_per_hour or 0.0) / 3600)
