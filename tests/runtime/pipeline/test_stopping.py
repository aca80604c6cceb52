import numpy as np
import pytest
from helpers.drawn import seeds
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from cappuccino.runtime.pipeline.stopping import out_of_patience


@seeds(50)
def test_patience_is_that_of_transformers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = (3 - 0.1 * np.arange(12) + rng.normal(0, 0.2, 12)).round(1).tolist()
    patience, threshold = int(rng.integers(1, 5)), float(rng.choice([0.0, 0.05, 0.3]))
    assert first_without_patience(losses, patience, threshold) == stopped_by_transformers(losses, patience, threshold)


def first_without_patience(losses: list[float], patience: int, threshold: float) -> int | None:
    return next((k for k in range(len(losses) + 1) if out_of_patience(losses[:k], patience, threshold)), None)


def stopped_by_transformers(losses: list[float], patience: int, threshold: float) -> int | None:
    callback = EarlyStoppingCallback(patience, threshold)
    arguments = TrainingArguments(metric_for_best_model="loss", greater_is_better=False, report_to="none")
    state, control = TrainerState(), TrainerControl()
    for count, loss in enumerate(losses, 1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if control.should_training_stop:
            return count
        if state.best_metric is None or loss < state.best_metric:  # as its trainer notes it, after the callback
            state.best_metric = loss
    return None


@pytest.mark.parametrize(
    ("losses", "over"), [([], False), ([2.0, 2.0], True), ([2.0, float("nan")], True), ([float("nan"), 2.0], False)]
)
def test_what_is_no_improvement(losses: list[float], over: bool) -> None:
    assert out_of_patience(losses, 1, 0.0) is over
