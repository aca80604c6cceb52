"""Examples at the end of every `--help`; they run as printed, in the folder of a checkout."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "cappuccino doctor",
        "cappuccino plan instances/seed4-qwen32b.json -o out/plan.json",
        "cappuccino check out/plan.json --instance instances/seed4-qwen32b.json",
    ),
    "demo": ("cappuccino demo",),
    "run": (
        "cappuccino run out/demo/plan.json --instance out/demo/instance.json \\\n"
        "--backbone out/demo/backbone --data out/demo/data -o out/adapters",
    ),
    "stop": ("cappuccino stop out/adapters docs",),
    "merge": ("cappuccino merge out/demo/adapters/docs --backbone out/demo/backbone \\\n-o out/merged",),
    "push": ("cappuccino push out/demo/adapters/docs ORGANISATION/docs --private",),
    "init": (
        "cappuccino init --backbone out/demo/backbone --data out/demo/data/docs.jsonl \\\n-o out/instance.yaml",
        "cappuccino init --backbone out/demo/backbone --data out/demo/data/docs.jsonl \\\n"
        "--sweep rank=8,16 -o out/sweep.yaml",
    ),
    "lengths": (
        "cappuccino lengths --tokenizer out/demo/backbone -o out/lengths.json \\\ndocs=out/demo/data/docs.jsonl",
    ),
    "inspect": ("cappuccino inspect out/demo/instance.json --backbone out/demo/backbone \\\n--data out/demo/data",),
    "profile": ("cappuccino profile --backbone out/demo/backbone -o out/cost-table.csv \\\n--time-budget 1",),
    "plan": (
        "cappuccino plan instances/seed4-qwen32b.json -o out/plan.json --time-limit 30",
        "cappuccino plan instances/seed4-qwen32b.json -o out/fast.json \\\n--objective makespan",
    ),
    "check": ("cappuccino check out/plan.json --instance instances/seed4-qwen32b.json",),
    "compare": ("cappuccino compare instances/seed4-qwen32b.json --plan out/plan.json",),
    "pareto": (
        "cappuccino pareto instances/seed4-qwen32b.json --points 4 --time-limit 60 \\\n"
        "-o out/pareto --plot out/pareto.svg",
    ),
    "estimate": (
        "cappuccino estimate --backbone Llama-3.1-8B --gpu h200-141gb \\\n--num-stages 1,2 -o out/analytic.csv",
    ),
    "fit": ("cappuccino fit instances/tables/a100-40gb.csv --plot out/fit.svg",),
    "calibrate": (
        "cappuccino calibrate out/demo/plan.json --instance out/demo/instance.json \\\n"
        "--trace out/demo/adapters/trace.json -o out/better.csv",
    ),
    "bench": (
        "cappuccino bench tiny-cpu --time-limit 2 --plans out/plans",
        "cappuccino bench tiny-cpu --verify --plans out/plans",
    ),
    "provision": (
        "cappuccino provision --model_name Qwen2.5-32B-Instruct --total_gpus 16 \\\n"
        "--dataset_path instances/lengths/public.json \\\n--adapter_config docs/adapter-config.json",
    ),
    "schedule": (
        "cappuccino schedule --model_name Qwen2.5-32B-Instruct --output_name qwen32b \\\n"
        "--dataset_path instances/lengths/public.json --num_adapters 2 \\\n"
        "--num_pipeline_stages 4 --adapter_to_dataset_idx 0,1 \\\n"
        "--adapter_to_global_batch_size 8,8 --adapter_to_microbatch_size 1,2",
    ),
    "simulate": (
        "cappuccino simulate out/plan.json --instance instances/seed4-qwen32b.json \\\n"
        "--plot out/plan.svg --from 0 --to 20",
        "cappuccino simulate out/plan.json --instance instances/seed4-qwen32b.json \\\n--trace out/trace.json",
    ),
    "report": ("cappuccino report out/plan.json --instance instances/seed4-qwen32b.json \\\n-o out/report.html",),
    "doctor": ("cappuccino doctor", "cappuccino doctor --json"),
}
"""By command, the command lines, no line wider than a terminal of 80 columns; the empty name is that of the program."""
NEEDED_FIRST: dict[str, str] = {
    **dict.fromkeys(
        ("run", "merge", "push", "init", "lengths", "inspect", "profile", "calibrate"), "after `cappuccino demo`"
    ),
    "stop": "while the example of `cappuccino run --help` goes on",
    **dict.fromkeys(("check", "compare", "simulate", "report"), "after the example of `cappuccino plan --help`"),
}
"""By command, what makes the files that its examples read, where these are not in the checkout."""


def examples_text(command: str) -> str:
    """Return what stands at the end of a command's help.

    Parameters
    ----------
    command
        Its name; empty for the program.
    """
    several = "Examples" if len(EXAMPLES[command]) > 1 else "Example"
    first = f", {NEEDED_FIRST[command]}" if command in NEEDED_FIRST else ""
    lines = [f"  {line}" for example in EXAMPLES[command] for line in example.replace("\n", "\n    ").splitlines()]
    return "\n".join((f" {several}{first}:", *lines))


class ExampleCommand(TyperCommand):
    """A command whose help ends with its examples, in lines that stay as they are: an epilog would be wrapped."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        formatter.write(examples_text(self.name or ""))


class ExampleGroup(TyperGroup):
    """The program, whose help ends likewise."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        formatter.write(examples_text(""))
