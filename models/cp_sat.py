"""How CP-SAT models are solved: within limits, repeatable where no wall clock limits them."""

from ortools.sat.python import cp_model


def limited_solver(
    *, time_limit_s: float | None, deterministic_limit: float | None, seed: int, workers: int = 1
) -> cp_model.CpSolver:
    """Return a solver.

    Parameters
    ----------
    time_limit_s
        Wall-clock limit; None leaves only the deterministic one, so that equal seeds give equal results.
    deterministic_limit
        Limit in CP-SAT's deterministic seconds; None leaves only the other.
    workers
        Threads.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    if deterministic_limit is not None:
        solver.parameters.max_deterministic_time = deterministic_limit
    if time_limit_s is not None:
        solver.parameters.max_time_in_seconds = max(0.05, time_limit_s)
    return solver
