"""What a measurement depends on, and tables that are known by it."""

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from cappuccino.runtime.backbone.config import is_configuration

SETTINGS = "profile_settings"
"""Column with a hash of all that a measurement depends on: by it a finished table is known."""
_HOW = "steps between runs of a reference kernel of products and activations"


def profile_settings(backbone: Path, **options: Any) -> dict[str, Any]:
    """Return all that a measurement depends on, as JSON knows it."""
    file = backbone if is_configuration(backbone) else backbone / "config.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    options["grid"] = asdict(options["grid"])
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "megatron-core")}
    options["how"] = _HOW
    settings = {"backbone": str(backbone.resolve()), "config": digest, "cores": os.cpu_count(), **versions, **options}
    return dict(json.loads(json.dumps(settings)))


def settings_digest(settings: dict[str, Any]) -> str:
    """Return the hash that stands in tables."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def finished_rows(output: Path, settings: dict[str, Any]) -> pd.DataFrame | None:
    """Return the rows of a table that are of a profile with these settings; None where there are none."""
    try:
        table = pd.read_csv(output, dtype={SETTINGS: str})  # a hash of digits alone is no number
    except (OSError, UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
        return None
    if SETTINGS not in table:
        return None
    mine = table[table[SETTINGS] == settings_digest(settings)].reset_index(drop=True)
    return mine if len(mine) else None
