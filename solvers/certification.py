"""What proves a bound, as a plan carries it: by name instead of by kind, with what the search was restricted to."""

from cappuccino.certificate import Certificate, StageLayers
from cappuccino.plan import Recompute
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.pricing import BoundProof


def certificate_of(
    proof: BoundProof | None,
    space: ReplicaSpace,
    *,
    num_stages: int | None = None,
    profiled_only: bool = False,
    recompute: Recompute | None = None,
) -> Certificate | None:
    """Return the certificate of a proof; None for none.

    Parameters
    ----------
    space
        The replicas that the proof is about.
    num_stages, profiled_only, recompute
        What they were restricted to.
    """
    if proof is None:
        return None
    kinds = space.kinds.of_adapter.tolist()
    splits = [(pool.gpu, b.costs.recompute, b.costs.layers_per_stage(b.num_stages)) for pool, b in space.bounds]
    return Certificate(
        bound=max(0.0, proof.bound),
        prices={a.name: float(proof.prices[k]) for a, k in zip(space.instance.adapters, kinds, strict=True)},
        charges={gpu: float(proof.charges[gpu]) for gpu in space.pools},
        limit_s=proof.limit_s,
        num_stages=num_stages,
        profiled_only=profiled_only,
        recompute=None if recompute is None else recompute.value,
        layers=tuple(
            StageLayers(gpu=gpu, recompute=None if mode is None else mode.value, layers=layers)
            for gpu, mode, layers in splits
            if layers is not None
        ),
    )
