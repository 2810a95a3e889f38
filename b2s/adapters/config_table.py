"""The table of every config key, made from the models; docs/configuration.md holds a copy that a test checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from b2s.adapters.config_problems import model_in
from b2s.core.settings import Settings


def config_table() -> str:
    """Return a Markdown table of every key: its default, what is allowed, what it does."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field, default in _fields(Settings, ""):
        extra: Any = field.json_schema_extra
        shown = "(required)" if field.is_required() else f"`{default}`"
        rows.append(f"| `{key}` | {shown} | {_cell(extra['allowed'])} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def _fields(model: type[BaseModel], above: str) -> Iterator[tuple[str, FieldInfo, str]]:
    """Yield every key below a model with its default as it is written in YAML; sections are no keys of their own."""
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None or (above.startswith("sources") and field.default is None):
            yield above + name, field, _default(model, name, field)
        elif name == "sources":
            yield name, field, ""
            yield from _fields(inner, "sources[].")
        else:
            yield from _fields(inner, f"{above}{name}.")


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return ""
    # A model that is built without its required keys still writes its other defaults as the config file would.
    written = model.model_construct().model_dump(mode="json", include={name})[name]
    return written if isinstance(written, str) and written else json.dumps(written)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
