"""Typed, bounded access to the fields of a parsed manifest, and the text form of what goes into one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeGuard

from b2s.errors import ManifestDamaged

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6})?Z", re.ASCII)
# C0 and C1 controls, DEL, line and paragraph separators, and lone surrogates (what Python makes of bytes that are
# not UTF-8).
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSAFE_OR_BACKSLASH = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of a manifest; every access checks presence, type and bounds.

    Raises:
        ManifestDamaged: (every method) the field is missing or not what the format allows.
    """

    values: dict[str, Any]
    where: str  # what the message begins with: which manifest, and which object in it
    path: str = ""  # dotted names of the objects around it, ends with a dot

    def fail(self, name: str, problem: str, *, finding: str = "manifest_damaged") -> NoReturn:
        """Raise the error that names this field; `finding` is what `verify` calls it."""
        raise ManifestDamaged(f"{self.where}: {self.path}{name} {problem}", finding=finding)

    def raw(self, name: str) -> Any:
        """Return the value as JSON gave it."""
        if name not in self.values:
            self.fail(name, "is missing")
        return self.values[name]

    def is_null(self, name: str) -> bool:
        """Return whether the field is null; it has to be there."""
        return self.raw(name) is None

    def integer(self, name: str, least: int, most: int) -> int:
        """Return an integer within bounds, both inclusive; a boolean is none."""
        value = self.raw(name)
        if type(value) is not int or not least <= value <= most:
            self.fail(name, f"is {shown(value)}, not an integer from {least} to {most}")
        return value

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        value = self.raw(name)
        if not isinstance(value, bool):
            self.fail(name, f"is {shown(value)}, neither true nor false")
        return value

    def text(self, name: str, most: int, *, least: int = 1) -> str:
        """Return a string of bounded length, in characters, without control characters."""
        value = self.raw(name)
        if not is_safe_text(value, least, most):
            self.fail(name, f"is {shown(value)}, not a string of {least} to {most} characters without control ones")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        """Return a string that matches the pattern as a whole."""
        value = self.raw(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self.fail(name, f"is {shown(value)}, not {what}")
        return value

    def uuid(self, name: str) -> str:
        """Return a UUID in its usual form, lower-case."""
        return self.matching(name, _UUID, "a UUID in lower case")

    def sha256_hex(self, name: str) -> str:
        """Return a SHA-256 in hex, lower-case."""
        return self.matching(name, _SHA256, "a SHA-256 in lower-case hex")

    def moment(self, name: str) -> datetime:
        """Return a point in time, aware UTC."""
        text = self.matching(name, _TIME, "a time like 2026-11-22T02:00:00Z")
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            self.fail(name, f"is {text}, which no calendar has")

    def fields(self, name: str) -> Fields:
        """Return an object."""
        value = self.raw(name)
        if not isinstance(value, dict):
            self.fail(name, f"is {shown(value)}, not an object")
        return Fields(value, self.where, f"{self.path}{name}.")

    def items(self, name: str, most: int) -> list[Any]:
        """Return a list of bounded length; its items are not checked yet."""
        value = self.raw(name)
        if not isinstance(value, list):
            self.fail(name, f"is {shown(value)}, not a list")
        if len(value) > most:
            self.fail(name, f"has {len(value)} entries; at most {most} are allowed")
        return value


def is_safe_text(value: object, least: int, most: int) -> TypeGuard[str]:
    """Return whether this is a string of bounded length, in characters, that may be printed in one line."""
    return isinstance(value, str) and least <= len(value) <= most and not _UNSAFE.search(value)


def shown(value: object) -> str:
    """Return a short form of an untrusted value for a message: bounded, escaped, in one line."""
    if isinstance(value, dict | list | tuple):
        return f"a {'list' if isinstance(value, list | tuple) else 'object'} of {len(value)}"
    if isinstance(value, str):
        return ascii(value[:60])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ascii(value)[:60]


def escaped(text: str) -> str:
    r"""Return a name or path of the host as the format writes it.

    Any byte that is not UTF-8, any control character and the backslash itself become `\xNN` per byte, so that every
    name a Linux file can have is one printable line.

    Args:
        text: As Python decodes file names: bytes that are not UTF-8 are lone surrogates (`os.fsdecode`).
    """
    return _UNSAFE_OR_BACKSLASH.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    errors = "surrogateescape" if "\udc80" <= match[0] <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", errors))


def moment_text(moment: datetime) -> str:
    """Return a point in time as the format writes it; microseconds only where there are any."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
