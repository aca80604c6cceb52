"""Adapters on their way to the Hugging Face hub; needs no torch."""

from collections.abc import Callable
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.runtime.backbone.hub import is_hub_name
from cappuccino.runtime.lora.adapter_folder import CARD, CONFIG, WEIGHTS, require_adapter


def push_adapter(folder: Path, repository: str, *, private: bool, on_note: Callable[[str], None] | None = None) -> str:
    """Upload an adapter and its model card, and return the address of the repository.

    Parameters
    ----------
    folder
        Of the adapter.
    repository
        NAME or ORGANISATION/NAME; it is made where there is none.
    private
        Whether nobody else may see it; a repository that everybody sees already is refused then.
    on_note
        Told when others cannot find the backbone by the name that the adapter has for it.

    Raises
    ------
    InputError
        When the folder holds no adapter, there is no token, or the hub refuses; nothing was uploaded.
    """
    config = require_adapter(folder)
    from huggingface_hub import HfApi, get_token  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # noqa: PLC0415

    if get_token() is None:
        remedy = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        raise InputError("push", "", "the Hugging Face hub wants to know who you are, and there is no token", remedy)
    base = str(config.get("base_model_name_or_path"))
    if on_note is not None and not is_hub_name(base):
        on_note(
            f'{folder / CONFIG}: base_model_name_or_path: "{base}" is no model of the hub, so others cannot load the '
            "adapter by it; give `run` the option --base-model-name, or correct it there"
        )
    api = HfApi()
    try:
        made = api.create_repo(repository, private=True if private else None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise InputError("--private", "", f"{made} is there and public", "make it private there, or name another")
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
            commit_message="Upload adapter trained with Cappuccino",
        )
    except (HFValidationError, HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f'the hub does not take "{repository}" ({reason})'
        raise InputError("push", "", problem, "check the name, what the token may do, and the connection") from error
    return str(made)
