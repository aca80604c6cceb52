import numpy as np
import pytest
from helpers.drawn import seeds
from helpers.spaces import best_objective, random_space

from cappuccino.checker.partitions import ListedSets, can_part
from cappuccino.checker.places import Place, Space
from cappuccino.plan import Objective


@pytest.mark.parametrize("objective", list(Objective))
@seeds(40)
def test_the_best_partition_is_that_of_exhaustion(objective, seed):
    space = random_space(seed)
    places = tuple(
        Place(
            pool.gpu, b.num_stages, space.rate(pool.gpu, b.num_stages, objective), 0.0, b, b.ramp_s, b.shares, b.paths
        )
        for pool, b in space.bounds
    )
    counts = space.kinds.counts
    listed = ListedSets.of(Space(counts, np.ones(len(counts)), places, space.pools, 0.0))
    assert can_part(listed.space)
    finite = listed.makespans[np.isfinite(listed.makespans)]
    for limit in (None, float(np.quantile(finite, 0.4))):
        found = listed.least_objective(np.inf if limit is None else limit, objective is Objective.MAKESPAN)
        assert found == pytest.approx(best_objective(space, objective, limit), rel=1e-9)
