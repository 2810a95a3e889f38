"""YAML text as plain values that remember their lines.

ruamel.yaml does the parsing; building the values from its events keeps the line of every key, tells all duplicate
keys and tags at once, and bounds depth and size, so that no document can take long or construct an object.
The scalars are those of YAML 1.2's core schema: `yes`, `on` and `02:00` are strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from b2s.core.contradictions import KeyPath

DEPTH_MAX = 16
EVENTS_MAX = 20_000

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,30}", re.ASCII)
_INT_BASED = re.compile(r"0o[0-7]{1,30}|0x[0-9A-Fa-f]{1,30}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_FLOAT_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file."""

    line: int  # 1-based
    key: KeyPath  # empty for the whole file
    text: str


@dataclass(slots=True)
class Document:
    """What a YAML text says, and where."""

    value: Any = None  # dict, list, str, int, float, bool or None
    lines: dict[KeyPath, int] = field(default_factory=dict)  # 1-based line of every key and list item
    problems: list[Problem] = field(default_factory=list)
    unusable: list[KeyPath] = field(default_factory=list)  # have a problem and no value that means anything

    def line_of(self, key: KeyPath) -> int:
        """Return the line of a key, or of the nearest thing around it that is there."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


class _TooMuch(Exception):
    """The document is nested too deep or too big."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def read_yaml(text: str) -> Document:
    """Return what a YAML text says; a text that is no YAML gives a document with problems and no value."""
    document = Document()
    try:
        _Builder(document, _events(text)).build()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        detail = " ".join(filter(None, (error.context, error.problem)))
        document.problems.append(Problem(mark.line + 1 if mark else 1, (), f"is not YAML: {detail}"))
        document.value = None
    except YAMLError as error:
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
        reason = getattr(error, "reason", None) or "it cannot be parsed"
        document.problems.append(Problem(line, (), f"is not YAML: {reason}"))
        document.value = None
    except _TooMuch as error:
        document.problems.append(Problem(error.line, (), error.text))
        document.value = None
    return document


def _events(text: str) -> Iterator[Any]:
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        if count > EVENTS_MAX:
            raise _TooMuch(event.start_mark.line + 1, "holds too much to be a config file")
        yield event


class _Builder:
    """Builds values from parser events."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self._document = document
        self._events = events
        self._event: Any = None

    def build(self) -> None:
        """Fill the document from the first YAML document of the events; a second one is a problem."""
        documents = 0
        while self._next() != "StreamEnd":
            if self._kind() != "DocumentStart":
                continue
            documents += 1
            if documents > 1:
                self._problem((), "holds more than one document (---)")
                return
            self._next()
            self._document.value = self._value(())

    def _next(self) -> str:
        self._event = next(self._events)
        return self._kind()

    def _kind(self) -> str:
        return type(self._event).__name__.removesuffix("Event")

    def _problem(self, key: KeyPath, text: str) -> None:
        self._document.problems.append(Problem(self._event.start_mark.line + 1, key, text))

    def _value(self, key: KeyPath) -> Any:
        if len(key) > DEPTH_MAX:
            raise _TooMuch(self._event.start_mark.line + 1, "is nested too deep to be a config file")
        if self._kind() == "Alias":
            self._document.unusable.append(key)
            self._problem(key, "has an alias (*); write the value out")
            return None
        if getattr(self._event, "tag", None) is not None:
            self._document.unusable.append(key)
            self._problem(key, f"has a tag ({str(self._event.tag)[:80]}); allowed: values without tags")
        if self._kind() == "MappingStart":
            return self._mapping(key)
        if self._kind() == "SequenceStart":
            return self._sequence(key)
        plain = self._event.style in (None, "")
        return _plain_scalar(self._event.value) if plain else self._event.value

    def _mapping(self, key: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while self._next() != "MappingEnd":
            name_event = self._event
            line = name_event.start_mark.line + 1
            if self._kind() != "Scalar":
                self._problem(key, "has a key that is not a word")
                self._value((*key, "?"))
                self._next()
                self._value((*key, "?"))
                continue
            name = str(name_event.value)
            path = (*key, name)
            twice = name in mapping
            if twice:
                self._problem(path, f"is there twice, first in line {self._document.lines[path]}")
            else:
                self._document.lines[path] = line
            self._next()
            lines = dict(self._document.lines) if twice else None
            value = self._value(path)
            if lines is None:
                mapping[name] = value
            else:
                self._document.lines = lines
        return mapping

    def _sequence(self, key: KeyPath) -> list[Any]:
        items: list[Any] = []
        while self._next() != "SequenceEnd":
            path = (*key, len(items))
            self._document.lines[path] = self._event.start_mark.line + 1
            items.append(self._value(path))
        return items


def _plain_scalar(text: str) -> str | int | float | bool | None:
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _INT_BASED.fullmatch(text):
        return int(text, 0)
    if len(text) <= _FLOAT_LENGTH_MAX and _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
