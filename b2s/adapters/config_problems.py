"""What the models say of a config file, told with its lines and keys."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from b2s.adapters.yaml_text import Document, Problem
from b2s.core.contradictions import Contradiction, KeyPath, key_name
from b2s.core.settings import Settings, SourceSettings

HostCheck = Callable[[Settings], list[Contradiction]]

_SHOWN_LENGTH_MAX = 80
_SECRET_KEY = re.compile(
    r"access_?key|secret|passw|passphrase|token|credential|private_?key|api_?key", re.ASCII | re.IGNORECASE
)
# Source: AWS IAM User Guide, "IAM identifiers", unique prefixes of access key ids (read 2026-11).
_SECRET_VALUE = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", re.ASCII)
_URL_LOGIN = re.compile(r"//[^/\s]*@")
_NO_SECRETS = "secrets are not accepted in this file; boto3 takes them from the environment, ~/.aws or a role"


def validate(document: Document, host_check: HostCheck | None) -> tuple[Settings | None, list[Problem]]:
    """Check a document against the models.

    Args:
        document: Its value is a mapping.
        host_check: Finds contradictions that only this host can show, or None.

    Returns:
        The settings, or None, and every problem. What contradicts something else is also looked for where
        other keys are wrong: those are left out for that, and nothing is said of them twice.
    """
    data = copy.deepcopy(document.value)
    problems = list(_take_secrets(document, data, ()))
    bad: list[KeyPath] = [problem.key for problem in problems]
    for key in document.unusable:
        bad.append(key)
        _leave_out(data, key)
    settings, contradictions, errors = _attempt(data, host_check)
    if errors:
        for error in errors:
            if error["type"] == "too_short" and _value_at(data, tuple(error["loc"])):
                continue  # pydantic counts only the items that are right
            key = tuple(error["loc"])
            bad.append(key)
            problems.append(Problem(document.line_of(key), key, _explain(error, key, _value_at(data, key))))
        for key in bad:
            _leave_out(data, key)
        _, contradictions, _ = _attempt(data, host_check)
    for found in contradictions:
        if not any(key[: len(wrong)] == wrong for key in found.keys for wrong in bad):
            text = f"found {found.found}; allowed: {found.allowed}"
            problems.append(Problem(document.line_of(found.keys[0]), found.keys[0], text))
    return settings, problems


def _attempt(data: Any, host_check: HostCheck | None) -> tuple[Settings | None, list[Contradiction], list[Any]]:
    contradictions: list[Contradiction] = []
    try:
        settings = Settings.model_validate(data, context={"contradictions": contradictions})
    except ValidationError as error:
        return None, [], error.errors(include_url=False, include_context=False)
    if host_check is not None:
        contradictions.extend(host_check(settings))
    return settings, contradictions, []


def _take_secrets(document: Document, value: Any, key: KeyPath) -> Iterator[Problem]:
    """Yield what looks like a secret, and take it out of the data so that nothing shows it."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for step, item in items:
        path = (*key, step)
        named = isinstance(step, str) and _SECRET_KEY.search(step) and step not in _keys_at(key)
        if named or (isinstance(item, str) and _SECRET_VALUE.search(item)):
            yield Problem(document.line_of(path), path, _NO_SECRETS)
            value[step] = None
            if isinstance(step, str) and step not in _keys_at(key):
                del value[step]
        else:
            yield from _take_secrets(document, item, path)


def explain_store_option(error: Any) -> str:
    """Return what pydantic says of a wrong `--bucket` or its like."""
    key: KeyPath = ("s3", *error["loc"])
    return f"--{str(key[-1]).replace('_', '-')}: {_explain(error, key, error['input'])}"


def _explain(error: Any, key: KeyPath, value: Any) -> str:
    field = _field(key)
    allowed = field.json_schema_extra["allowed"] if field is not None else "a mapping with name and path"
    if error["type"] == "extra_forbidden":
        return _explain_unknown(key)
    if error["type"] == "missing":
        return f"missing; needed: {allowed}"
    reason = ""
    if error["type"] == "value_error":
        reason = f" ({error['msg'].removeprefix('Value error, ')})"
    return f"found {show(value)}{reason}; allowed: {allowed}"


def _explain_unknown(key: KeyPath) -> str:
    siblings = _keys_at(key[:-1])
    wrong = str(key[-1])
    near = difflib.get_close_matches(wrong.lower(), siblings, n=1, cutoff=0.6)
    elsewhere = [path for path in all_keys(Settings, ()) if path[-1] == wrong and path != key]
    if near:
        advice = f"did you mean {near[0]}?"
    elif elsewhere:
        advice = f"did you mean {key_name(elsewhere[0])}?"
    else:
        distant = {str(path[-1]): path for path in reversed(list(all_keys(Settings, ())))}
        nearest = difflib.get_close_matches(wrong.lower(), distant, n=1, cutoff=0.75)
        advice = f"did you mean {key_name(distant[nearest[0]])}?" if nearest else ""
    return "; ".join(filter(None, ("unknown key", advice, f"allowed: {', '.join(siblings)}")))


def show(value: Any) -> str:
    """Return a value of the file on one short line, without the login in a URL."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        value = _URL_LOGIN.sub("//***@", value)
        if len(value) > _SHOWN_LENGTH_MAX:
            return f"{json.dumps(value[:_SHOWN_LENGTH_MAX])}... ({len(value)} characters)"
    return json.dumps(value)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field's annotation holds (`Model`, `Model | None`, `tuple[Model, ...]`), or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(model_in, get_args(annotation)) if model is not None), None)


def _model_at(key: KeyPath) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Settings
    for step in key:
        if isinstance(step, int):
            continue
        if model is None or step not in model.model_fields:
            return None
        model = model_in(model.model_fields[step].annotation)
    return model


def _keys_at(key: KeyPath) -> list[str]:
    model = _model_at(key)
    return list(model.model_fields) if model is not None else []


def _field(key: KeyPath) -> Any:
    model = _model_at(key[:-1])
    return model.model_fields.get(str(key[-1])) if model is not None and isinstance(key[-1], str) else None


def all_keys(model: type[BaseModel], key: KeyPath) -> Iterator[KeyPath]:
    """Yield the path of every key below a model, sections before what is in them; sources only by their name."""
    for name, field in model.model_fields.items():
        yield (*key, name)
        inner = model_in(field.annotation)
        if inner is not None and inner is not SourceSettings:
            yield from all_keys(inner, (*key, name))


def _value_at(data: Any, key: KeyPath) -> Any:
    """Return the value at a key of the data, or None."""
    for step in key:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _leave_out(data: Any, key: KeyPath) -> None:
    """Take a wrong value out of the data; what is needed gets a stand-in that contradicts nothing."""
    index = next((step for step in key if isinstance(step, int)), 0)
    source = {"name": f"stand-in-{index}", "path": f"/.stand-in/{index}"}
    stand_ins: dict[KeyPath, Any] = {
        ("sources",): [source],
        ("sources", index): source,
        ("sources", index, "name"): source["name"],
        ("sources", index, "path"): source["path"],
        ("s3",): {"bucket": "stand-in"},
        ("s3", "bucket"): "stand-in",
    }
    container: Any = _value_at(data, key[:-1])
    if key in stand_ins and container is not None:
        container[key[-1]] = stand_ins[key]
    elif isinstance(container, dict):
        container.pop(key[-1], None)
