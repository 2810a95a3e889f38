"""The config file: read without hanging, checked as a whole, every problem told at once."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any

from ruamel.yaml import YAML

from b2s.adapters.config_problems import validate
from b2s.adapters.source_paths import host_contradictions
from b2s.adapters.yaml_text import Problem, read_yaml
from b2s.core.contradictions import key_name
from b2s.core.limits import CONFIG_BYTES_MAX
from b2s.core.settings import Settings
from b2s.core.text import escaped
from b2s.core.units import format_bytes
from b2s.errors import ConfigError

DEFAULT_PATH = "/etc/b2s/config.yaml"
PATH_VARIABLE = "B2S_CONFIG"


class _Unreadable(Exception):
    """The file gives no text."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def load(path: str | os.PathLike[str], *, check_host: bool = True) -> Settings:
    """Return the settings of a config file.

    Args:
        path: The file; anything but a regular file is refused, without waiting for a FIFO's writer.
        check_host: Also look where the paths lie on this host: a snapshot directory must not be part of a
            source, two paths must not be the same directory. False where only the bucket matters.

    Raises:
        ConfigError: With every problem, one per line: `file:line: key: found X; allowed: ...`.
    """
    shown = os.fspath(path)
    try:
        text = _read(shown)
    except _Unreadable as error:
        hint = f"write one like {_sample()}, or name another with --config or ${PATH_VARIABLE}"
        raise ConfigError(f"{escaped(shown)}:{error.line}: {error.text}", hint=hint) from None
    settings, problems = check_text(text, check_host=check_host)
    if settings is None or problems:
        hint = f"`b2s config schema` and {_sample()} show every key"
        raise ConfigError("\n".join(_line(shown, problem) for problem in problems), hint=hint)
    return settings


def check_text(text: str, *, check_host: bool = False) -> tuple[Settings | None, list[Problem]]:
    """Return the settings of a YAML text, and every problem in the order of the lines."""
    document = read_yaml(text)
    if document.value is None and not document.problems:
        document.problems.append(Problem(1, (), "is empty; needed are at least sources and s3"))
    if document.value is not None and not isinstance(document.value, dict):
        document.problems.append(Problem(1, (), "is not a mapping of keys to values"))
    if not isinstance(document.value, dict):
        return None, document.problems
    settings, problems = validate(document, host_contradictions if check_host else None)
    return settings, sorted({*document.problems, *problems}, key=lambda problem: (problem.line, str(problem.key)))


def dump_effective(settings: Settings) -> str:
    """Return the settings in force as YAML that `load` reads back; a source's section shows what it comes to."""
    data: dict[str, Any] = settings.model_dump(mode="json")
    for shown, source in zip(data["sources"], settings.sources, strict=True):
        shown["schedule"] = settings.schedule_of(source).model_dump(mode="json")
        shown["snapshots"] = settings.snapshots_of(source).model_dump(mode="json")
        shown["send"] = settings.send_of(source).model_dump(mode="json")
    data["s3"]["sse"] = settings.s3.effective_sse
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the config file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def _sample() -> str:
    """Return where the sample was installed; only its name in a checkout, where nobody needs to look for it."""
    installed = os.path.join(sys.prefix, "share/b2s/sample-config.yaml")
    return installed if os.path.isfile(installed) else "sample-config.yaml"


def _line(path: str, problem: Problem) -> str:
    key = f"{key_name(problem.key)}: " if problem.key else ""
    return escaped(f"{path}:{problem.line}: {key}{problem.text}")


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _Unreadable(1, f"cannot be opened: {reason}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _Unreadable(1, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            content = file.read(CONFIG_BYTES_MAX + 1)
        except OSError as error:
            raise _Unreadable(1, f"cannot be read: {error.strerror}") from error
    if len(content) > CONFIG_BYTES_MAX:
        raise _Unreadable(1, f"is bigger than {format_bytes(CONFIG_BYTES_MAX)}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unreadable(content.count(b"\n", 0, error.start) + 1, "is not a text file in UTF-8") from error
