"""What a page of `cappuccino report` holds, read from its HTML."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import numpy as np


def page_models(html: str) -> list[dict[str, Any]]:
    """Return all models of the page's plots, arrays decoded."""
    text = re.search(r"const docs_json = '(.*?)';\n", html).group(1)
    documents = json.loads(unescape(text.replace("\\\\", "\\")))
    return [m for document in documents.values() for m in _models(document)]


def columns_named(html: str, name: str) -> dict[str, Any]:
    """Return the columns of the data called so."""
    (found,) = (m for m in page_models(html) if m["attributes"].get("name") == name)
    return {key: _decoded(value) for key, value in found["attributes"]["data"]["entries"]}


def _models(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("type") == "object" and "attributes" in value:
            yield value
        for inside in value.values():
            yield from _models(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _models(inside)


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "ndarray":
        raw = base64.b64decode(value["array"]["data"])
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return np.frombuffer(raw, dtype=value["dtype"]).reshape(value["shape"])
    return value
