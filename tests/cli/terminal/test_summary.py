from cappuccino.cli.data_commands import _lengths_line
from cappuccino.cli.terminal.summary import print_run
from cappuccino.errors import counted


def test_there_is_no_zero_below_zero(capsys):
    times = {"predicted_s": 10.0, "measured_s": 9.9999, "difference": -1e-5}
    print_run(
        {
            "makespan": times,
            "gpu_time": times,
            "replicas": [],
            "adapters": {},
            "trace": "trace.json",
            "metrics": "m.jsonl",
        }
    )
    assert capsys.readouterr().out.startswith("makespan: measured 10.000 s, predicted 10.000 s (+0.0%)\n")


def test_lengths_are_whole_tokens():
    numbers = {"num_samples": 1, "p50": 43.5, "p99": 118.76999999999995}
    assert _lengths_line("notes", numbers) == "notes: 1 sample, median 44, p99 119 tokens"


def test_one_is_no_plural():
    assert [counted(n, "stage") for n in (0, 1, 2)] == ["0 stages", "1 stage", "2 stages"]
    assert [counted(n, "micro-batch", "micro-batches") for n in (1, 3)] == ["1 micro-batch", "3 micro-batches"]
