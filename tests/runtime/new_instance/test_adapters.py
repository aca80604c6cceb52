"""Adapters to begin with."""

import pytest

from cappuccino.errors import InputError
from cappuccino.runtime.new_instance.adapters import adapter_name, new_adapter, parse_sweeps


def settings(samples: int, epochs: float | None = None, **sweep: tuple[object, ...]) -> dict[str, object]:
    return new_adapter("a", "data", samples, epochs, sweep).document()


@pytest.mark.parametrize(
    ("samples", "epochs", "passes", "batch"),
    [
        (60, None, 3, 4),  # 180 samples: 45 steps of 4, and no batch leaves 100
        (267, None, 3, 8),  # 801 samples: 100 steps of 8
        (266, None, 3, 4),  # 798 samples: 99 of 8
        (999, None, 3, 16),
        (1_000, None, 2, 16),
        (10_000, None, 1, 16),
        (60, 30, 30, 16),  # 1,800 samples: 112 steps of 16
    ],
)
def test_batches_leave_enough_steps(samples: int, epochs: float | None, passes: float, batch: int) -> None:
    found = settings(samples, epochs)
    assert (found["epochs"], found["global_batch_size"]) == (passes, batch)


def test_what_is_swept_stands_in_the_sweep_only() -> None:
    found = settings(60, rank=(8, 16), global_batch_size=(2, 4))
    assert found["sweep"] == {"rank": [8, 16], "global_batch_size": [2, 4]}
    assert not {"rank", "global_batch_size"} & set(found)
    assert {"epochs", "num_steps"} & set(settings(60, num_steps=(5, 10))) == set()
    swept = new_adapter("a", "data", 60, None, {"epochs": (30.0, 60.0)}).document()
    assert swept["global_batch_size"] == 16  # 112 steps in the fewest passes


@pytest.mark.parametrize(
    ("sweep", "every"), [({}, 12), ({"num_steps": (30, 9)}, 3), ({"global_batch_size": (2, 60)}, 1)]
)
def test_adapters_are_evaluated_four_times(sweep: dict[str, tuple[int, ...]], every: int) -> None:
    found = new_adapter("a", "data", 60, None, sweep, "data-eval").document()
    assert (found["eval_dataset"], found["eval_every"]) == ("data-eval", every)


def test_names_of_datasets_become_names_of_adapters() -> None:
    assert adapter_name("org/chat v2.1", []) == "org-chat-v2-1"
    assert adapter_name("chat", ["chat", "chat-2"]) == "chat-3"
    assert adapter_name("données", []) == "donn-es"
    assert adapter_name("日本語", []) == "adapter"
    assert len(adapter_name("x" * 150, [])) == 100  # leaves room for what a sweep adds


def test_sweeps_are_read_as_an_instance_has_them() -> None:
    options = [
        "learning_rate=1e-4,2e-4",
        "rank=8, 16",
        "target_modules=all-linear,q_proj+v_proj",
        "max_grad_norm=none,1",
    ]
    assert parse_sweeps(options, None) == {
        "rank": (8, 16),
        "target_modules": ("all-linear", ("q_proj", "v_proj")),
        "learning_rate": (1e-4, 2e-4),
        "max_grad_norm": (None, 1.0),
    }
    assert parse_sweeps([], 2.0) == {}


@pytest.mark.parametrize(
    ("options", "epochs", "message"),
    [
        (["rank"], None, '"rank" is not SETTING=VALUE,...'),
        (["rank="], None, '"rank=" is not SETTING=VALUE,...'),
        (["ranks=8"], None, "settings: rank, alpha"),
        (["rank=8", "rank=16"], None, '"rank" is given twice'),
        (["rank=8,8"], None, "two of them would be called r8"),
        (["rank=8,0"], None, "--sweep: rank[1]: 0 is not allowed"),
        (["rank=8.5"], None, "--sweep: rank[0]: 8.5 is not allowed"),
        (["lr_scheduler=cosine,flat"], None, '--sweep: lr_scheduler[1]: "flat" is not allowed'),
        (["epochs=1,2"], 3.0, "epochs is swept, and --epochs given besides"),
        (["num_steps=10,20"], 3.0, "num_steps is swept, and --epochs given besides"),
        (["epochs=1,2", "num_steps=10"], None, "epochs is swept, and num_steps given besides"),
    ],
)
def test_sweeps_that_mean_nothing_are_refused(options: list[str], epochs: float | None, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_sweeps(options, epochs)
    assert message in str(error.value)
