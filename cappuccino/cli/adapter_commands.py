"""merge, push: what becomes of adapters that are trained."""

from pathlib import Path
from typing import Annotated

import typer

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag

AdapterArgument = Annotated[Path, typer.Argument(metavar="ADAPTER_FOLDER", help="Folder of an adapter, as of run.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(merge)
    app.command()(push)


def merge(
    adapter: AdapterArgument,
    backbone: Annotated[
        str, typer.Option("--backbone", help="Folder of the Hugging Face backbone, or its name on the hub.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to create for the merged model.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, float64, bfloat16 or float16; by default the backbone's.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write backbone and adapter as one plain transformers model, with the backbone's tokenizer."""
    from cappuccino.runtime.backbone.hub import find_backbone  # noqa: PLC0415
    from cappuccino.runtime.lora.merge import merge_adapter  # noqa: PLC0415

    console.quiet_transformers()
    merge_adapter(adapter, find_backbone(backbone), output, dtype)
    if json:
        console.print_json({"adapter": str(adapter), "model": str(output)})
    else:
        print(f"model {output}")


def push(
    adapter: AdapterArgument,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="On the hub: NAME, or ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Nobody else may see the repository.")] = False,
    json: JsonFlag = False,
) -> None:
    """Upload an adapter with its model card to the Hugging Face hub, making the repository where there is none."""
    from cappuccino.runtime.lora.push import push_adapter  # noqa: PLC0415

    url = push_adapter(adapter, repository, private=private, on_note=console.warn)
    if json:
        console.print_json({"adapter": str(adapter), "url": url})
    else:
        print(url)
