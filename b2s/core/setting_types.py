"""What settings are made of: the kinds of values, each with its check, and the rules of every section.

Everything is strict: no value is bent into another type, so `enabled: "false"` and `retain: true` are errors.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable
from datetime import time, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)

from b2s.core.contradictions import Contradiction
from b2s.core.layout import prefix_problem, source_name_problem
from b2s.core.units import DURATION_GRAMMAR, exact_size, format_duration, parse_duration, parse_size

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

PATH_LENGTH_MAX = 4000  # Linux allows 4096 with what b2s adds below it
LOCAL_TIMEZONE = "local"

_RUN_AT = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", re.ASCII)
_IONICE = re.compile(r"idle|best-effort(:[0-7])?", re.ASCII)


class Section(BaseModel):
    """The rules all models share."""

    # defer_build: only the model that is validated is built, with all it contains; not every section once more.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,
    )


def setting(description: str, allowed: str, default: Any = ..., **bounds: Any) -> Any:
    """Return a pydantic field that carries what the docs, the JSON Schema and the error messages say of it.

    Args:
        description: What it does, with its unit; for memory or disk the formula.
        allowed: Which values are allowed, as a phrase that fits after "allowed: ".
        default: Its value when the file does not name it; `...` makes it required.
        bounds: Passed on to `pydantic.Field`.
    """
    return Field(default, description=description, json_schema_extra={"allowed": allowed}, **bounds)


def section(description: str, model: Callable[[], Any]) -> Any:
    """Return a pydantic field for a mapping of settings that may be left out as a whole."""
    return Field(default_factory=model, description=description, json_schema_extra={"allowed": "a mapping"})


def settle(contradictions: list[Contradiction], info: ValidationInfo) -> None:
    """Hand the contradictions to whoever collects them (`context["contradictions"]`), else refuse the first."""
    collected = (info.context or {}).get("contradictions")
    if collected is not None:
        collected.extend(contradictions)
    elif contradictions:
        raise ValueError(str(contradictions[0]))


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("not a size")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(f"not a duration; write {DURATION_GRAMMAR}")


def _run_at(value: object) -> time:
    if isinstance(value, time):
        return value
    match = _RUN_AT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('not a time of day; write "HH:MM"')
    return time(int(match[1]), int(match[2]))


def _timezone(value: str) -> str:
    if value == LOCAL_TIMEZONE:
        return value
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # unknown; "../x"; a directory of zones
        raise ValueError("no time zone of that name is known") from None
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("not an absolute path")
    if not value.isprintable():
        raise ValueError("has a control character")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("has a .. component")
    if len(value.encode("utf-8", "surrogateescape")) > PATH_LENGTH_MAX:
        raise ValueError("is too long")
    return "/" + "/".join(parts)


def _file_path(value: str) -> str:
    path = _path(value)
    if path == "/" or value.endswith("/"):
        raise ValueError("names a directory, not a file")
    return path


def _source_name(value: str) -> str:
    if source_name_problem(value):
        raise ValueError("not a source name")
    return value


def _prefix(value: str) -> str:
    if problem := prefix_problem(value):
        raise ValueError(problem)
    return value


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value) or ".." in value:
        raise ValueError("not a bucket name")
    return value


def _url(value: str) -> str:
    if not value.isprintable() or " " in value or "\\" in value:
        raise ValueError("has a character that no URL has")
    parts = urlsplit(value)  # ValueError for broken brackets
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not a http:// or https:// URL")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise ValueError("contains credentials; they belong in the environment or in ~/.aws")
    if parts.port == 0:  # ValueError for one that is no number or too big
        raise ValueError("has no usable port")
    return value


def _endpoint(value: str) -> str:
    url = _url(value)
    if urlsplit(url).query or urlsplit(url).fragment:
        raise ValueError("has a query or a fragment")
    return url.rstrip("/")


def _plain_word(value: str) -> str:
    if not value.isprintable() or not value.strip() or len(value) > 1024:
        raise ValueError("is empty, too long or has a control character")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"not {what}")
        return value

    return AfterValidator(check)


Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(exact_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9.]+ ?[A-Za-z]*$"}]}
    ),
]  # bytes
Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w))+$"}),
]
RunAt = Annotated[
    time,
    BeforeValidator(_run_at),
    PlainSerializer(lambda value: f"{value:%H:%M}", return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
]
Timezone = Annotated[str, AfterValidator(_timezone)]
DirectoryPath = Annotated[str, AfterValidator(_path)]  # absolute, without trailing or double slashes
FilePath = Annotated[str, AfterValidator(_file_path)]  # absolute
SourceName = Annotated[str, AfterValidator(_source_name)]
Prefix = Annotated[str, AfterValidator(_prefix)]
BucketName = Annotated[str, AfterValidator(_bucket)]
Region = Annotated[str, _matching(_REGION, "a region name")]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Url = Annotated[str, AfterValidator(_url)]
Word = Annotated[str, AfterValidator(_plain_word)]
Ionice = Annotated[str, _matching(_IONICE, "an I/O priority b2s can set")]
