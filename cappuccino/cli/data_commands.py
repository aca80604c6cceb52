"""init, lengths, inspect: what training data hold, what of it is learnt, and an instance made of it."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.run_commands import BackboneOption, DataOption
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_folder, require_writable

if TYPE_CHECKING:
    from cappuccino.runtime.data.inspection import InspectedDataset
    from cappuccino.runtime.data.lengths import MeasuredDataset
    from cappuccino.runtime.encoding.forms import Form


OPEN, CLOSE = "⟦", "⟧"
"""Around what is learnt, where there is no colour."""


class LossChoice(StrEnum):
    """Which tokens are learnt."""

    ASSISTANT = "assistant"
    COMPLETION = "completion"
    ALL = "all"


class TooLongChoice(StrEnum):
    """What becomes of longer samples."""

    CUT = "cut"
    DROP = "drop"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(lengths)
    app.command()(inspect)


FormOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FORM",
        help="messages, prompt_completion, sharegpt, alpaca, text or input_ids; default: by the columns.",
    ),
]
LossOption = Annotated[
    LossChoice | None, typer.Option(help="Tokens that are learnt; default: the assistant's or the completion's.")
]


def init(
    backbone: BackboneOption,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="[NAME=]SOURCE...", help="Training data: files, saved data sets, hub names."),
    ] = None,
    more_data: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]SOURCE...", help="More of them, as behind --data.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="INSTANCE", help="Where the instance goes: .yaml or .json.")
    ] = Path("instance.yaml"),
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COUNT[:MEMORY_GIB]", help="GPUs to plan for; default: those of this machine."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING=VALUE,...", help="Values to try, e.g. rank=8,16; every combination is trained."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=1e-6, help="Passes over the data; default: by their size.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a sample; default: of the longest, as the backbone allows.")
    ] = None,
    too_long: Annotated[TooLongChoice, typer.Option(help="What becomes of longer samples.")] = TooLongChoice.CUT,
    num_samples: Annotated[int | None, typer.Option(min=1, help="First rows of every source; default: all.")] = None,
    form: FormOption = None,
    loss_on: LossOption = None,
    cost_table: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Cost table, there or to come; default: cost-table.csv.")
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--eval", metavar="[DATASET=]SOURCE", help="Held-out data that a data set's adapters are evaluated on."
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Write the cost table from the specifications of catalogued GPUs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an instance that is there.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write an instance from raw data, an adapter a data set, and say which commands come next."""
    from cappuccino.runtime.encoding.forms import LossOn  # noqa: PLC0415
    from cappuccino.runtime.new_instance.making import NewInstanceOptions, make_instance  # noqa: PLC0415
    from cappuccino.runtime.new_instance.next_commands import next_commands  # noqa: PLC0415

    common, forms = _forms(form or [])
    options = NewInstanceOptions(
        gpus=gpu or (),
        sweeps=sweep or (),
        epochs=epochs,
        max_length=max_length,
        num_samples=num_samples,
        form=common,
        forms=forms,
        loss_on=None if loss_on is None else LossOn(loss_on.value),
        too_long="drop" if too_long is TooLongChoice.DROP else "cut",
        cost_table=cost_table,
        evaluation=evaluation or (),
        estimate=estimate,
    )
    notes: list[str] = []
    sources = [*(data or ()), *(more_data or ())]
    with console.progress_bar("tokenizing") as show:
        made = make_instance(backbone, sources, output, options, force=force, on_progress=show, on_note=notes.append)
    commands = next_commands(backbone, output, made.instance, made.shape, profiled=estimate)
    steps = {a.name: made.instance.num_steps(i) for i, a in enumerate(made.instance.adapters)}
    if json:
        console.print_json(
            {
                "instance": str(output),
                "lengths": str(made.lengths),
                "cost_table": str(made.instance.cost_table),
                "gpu_pools": [pool.model_dump(exclude_none=True) for pool in made.instance.gpu_pools],
                "datasets": {name: _counted(found) for name, found in made.measured.items()},
                "steps": steps,
                "notes": notes,
                "next": commands,
            }
        )
        return
    for name, found in made.measured.items():
        print(_lengths_line(name, found.statistics))
    for note in notes:
        print(note)
    pools = ", ".join(f"{f.pool.count} x {f.pool.gpu} of {f.pool.memory_gib:g} GiB ({f.why})" for f in made.pools)
    print(f"plans may use {pools}")
    size = f"{counted(len(steps), 'adapter')}, {counted(sum(steps.values()), 'step')}"
    print(f"{size} in {output}, lengths in {made.lengths}")
    if estimate:
        print(f"costs in {made.instance.cost_table}, computed from specifications: profile before much depends on them")
    print("next:")
    for command in commands:
        print(f"  {command}")


def lengths(
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Folder with a tokenizer, e.g. the backbone's.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the distribution file is written.")],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=SOURCE", help="Dataset: a .jsonl, .json or .parquet file, a saved data set, or a hub name."
        ),
    ],
    num_samples: Annotated[int, typer.Option(min=1, help="Samples per dataset.")] = 1000,
    max_length: Annotated[int, typer.Option(min=1, help="Longer samples are cut or dropped.")] = 4096,
    too_long: Annotated[TooLongChoice, typer.Option(help="What becomes of longer samples.")] = TooLongChoice.CUT,
    form: FormOption = None,
    loss_on: LossOption = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field of the text, where rows are to be read so; several joined by +.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset that has several.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 42,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Take the first samples in their order, not drawn at random.")
    ] = False,
    end: Annotated[
        bool, typer.Option("--end/--no-end", help="End samples that have no end with the end-of-sequence (eos) token.")
    ] = True,
    data_out: Annotated[
        Path | None, typer.Option(help="Folder for the samples' tokens and labels: the data of `run`.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Tokenize datasets and write their length distributions in the seed's format."""
    from cappuccino.runtime.data.lengths import measure_lengths  # noqa: PLC0415
    from cappuccino.runtime.data.reading import ReadingRules  # noqa: PLC0415
    from cappuccino.runtime.encoding.forms import LossOn  # noqa: PLC0415

    require_writable(output)
    if data_out is not None:
        require_folder(data_out)
    common, forms = _forms(form or [])
    if text_field is not None and (common or forms):
        raise InputError("--text-field", "", "is given with --form", "give one of the two")
    rules = ReadingRules(
        longest=max_length,
        form=common,
        loss_on=None if loss_on is None else LossOn(loss_on.value),
        too_long="drop" if too_long is TooLongChoice.DROP else "cut",
        end=end,
        text_fields=None if text_field is None else tuple(text_field.split("+")),
    )
    notes: list[str] = []
    with console.progress_bar("tokenizing") as show:
        measured = measure_lengths(
            data,
            tokenizer,
            output,
            num_samples=num_samples,
            rules=rules,
            forms=forms,
            split=split,
            seed=seed,
            in_order=in_order,
            data=data_out,
            on_progress=show,
            on_note=notes.append,
        )
    if json:
        summary = {name: _counted(found) for name, found in measured.items()}
        console.print_json({"output": str(output), "datasets": summary, "notes": notes})
        return
    for dataset, record in measured.items():
        print(_lengths_line(dataset, record.statistics))
    for note in notes:
        print(note)
    print(f"lengths in {output}")


def _lengths_line(dataset: str, numbers: dict[str, Any]) -> str:
    samples = counted(numbers["num_samples"], "sample")
    return f"{dataset}: {samples}, median {numbers['p50']:.0f}, p99 {numbers['p99']:.0f} tokens"


def _counted(found: "MeasuredDataset") -> dict[str, Any]:
    """Return what was found in a source, but for the lengths themselves."""
    report = found.report
    return {k: v for k, v in found.statistics.items() if not k.startswith("permutation")} | {
        "form": report.form,
        "loss_on": report.loss_on,
        "tokens": report.tokens,
        "loss_tokens": report.loss_tokens,
        "cut": report.cut,
        "dropped": report.dropped,
        "empty": report.empty,
        "without_loss": report.unlearnt,
        "special_tokens": found.edges,
    }


def inspect(
    instance: Annotated[Path, typer.Argument(help="Instance file.")],
    backbone: BackboneOption,
    data: DataOption = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples shown of every dataset.")] = 3,
    dataset: Annotated[str | None, typer.Option(help="Look at this dataset only.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write a page of HTML.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what would be trained: counts of every dataset, and which tokens of its first samples are learnt."""
    from cappuccino.files import write_atomically  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.runtime.backbone.config import read_trainable_shape  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import find_backbone  # noqa: PLC0415
    from cappuccino.runtime.data.inspection import inspect_data, instance_of_dataset  # noqa: PLC0415
    from cappuccino.runtime.data.page import inspection_page  # noqa: PLC0415

    if output is not None:
        require_writable(output)
    loaded = Instance.load(instance)
    if dataset is not None:
        loaded = instance_of_dataset(loaded, dataset)
    folder = find_backbone(backbone)
    shape = read_trainable_shape(folder)
    found = inspect_data(loaded, data, folder, shape.vocab, samples, console.warn)
    if output is not None:
        write_atomically(output, inspection_page(f"Training data of {loaded.name}", found))
    if json:
        console.print_json({"datasets": [asdict(d) for d in found]} | ({} if output is None else {"page": str(output)}))
        return
    for inspected in found:
        _print_inspected(inspected)
    if output is not None:
        print(f"page {output}")


def _print_inspected(inspected: "InspectedDataset") -> None:
    """Print the counts and samples of a dataset, what is learnt in colour and, where there is none, in brackets."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from cappuccino.runtime.data.page import visible  # noqa: PLC0415

    counts = inspected.counts
    print(f"{inspected.name}: {inspected.source}")
    print(f"  rows of {counts['form']}, loss on {counts['loss_on']}; {inspected.ends}")
    numbers = ", ".join(f"{counts[k]} {k.replace('_', ' ')}" for k in list(counts)[2:])
    print(f"  {numbers}")
    screen = Console(highlight=False, soft_wrap=True)
    coloured = screen.color_system is not None and not screen.no_color
    for number, sample in enumerate(inspected.samples):
        learnt = sum(token.learnt for token in sample)
        marks = "green" if coloured else f"{OPEN} {CLOSE}"
        print(f"  sample {number}: {counted(len(sample), 'token')}, {learnt} learnt ({marks})")
        line = Text("    ")
        for k, token in enumerate(sample):
            before = k > 0 and sample[k - 1].learnt
            if not coloured and token.learnt and not before:
                line.append(OPEN)
            line.append(visible(token.text), "bold green" if token.learnt else "dim")
            if not coloured and token.learnt and not (k + 1 < len(sample) and sample[k + 1].learnt):
                line.append(CLOSE)
            line.append("\n    " if "\n" in token.text and k + 1 < len(sample) else "|", "dim")
        screen.print(line)
        screen.print(Text("    ids " + " ".join(f"{t.id}{'*' if t.learnt else ''}" for t in sample), "dim"))


def _forms(options: list[str]) -> tuple["Form | None", dict[str, "Form"]]:
    """Return the form of all datasets, if one is given, and those by name."""
    from cappuccino.runtime.encoding.forms import Form  # noqa: PLC0415

    common: Form | None = None
    named: dict[str, Form] = {}
    for option in options:
        name, _, word = option.rpartition("=")
        try:
            found = Form(word)
        except ValueError:
            raise InputError("--form", "", f'"{word}" is no form', f"use one of {', '.join(Form)}") from None
        if name in named or (not name and common is not None):
            raise InputError("--form", "", f'"{option}" is given besides another', "give one form a dataset")
        if name:
            named[name] = found
        else:
            common = found
    return common, named
