"""The keys of the bucket: the only place that builds or parses one.

    <prefix>/<source>/manifests/<sequence, 8 digits>.json
    <prefix>/<source>/chunks/<backup_id>/<chunk index, 6 digits>

Every parser is strict: a key that the builders here would not have built is not ours and gives None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from b2s.core.limits import CHUNKS_PER_BACKUP_MAX, KEY_BYTES_MAX, SEQUENCE_MAX, SOURCE_NAME_LENGTH_MAX
from b2s.core.model import Kind
from b2s.errors import ManifestDamaged, UsageError

_SOURCE_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{SOURCE_NAME_LENGTH_MAX - 1}}}", re.ASCII)
_BACKUP_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)-(full|inc)-([0-9a-f]{8})", re.ASCII)
_MANIFEST_NAME = re.compile(r"([0-9]{8})\.json", re.ASCII)
_CHUNK_NAME = re.compile(r"[0-9]{6}", re.ASCII)
_ID_TIME = "%Y%m%dT%H%M%SZ"
_ID_WORDS = {Kind.FULL: "full", Kind.INCREMENTAL: "inc"}
_ID_KINDS = {word: kind for kind, word in _ID_WORDS.items()}

_LONGEST_RELATIVE = "chunks/yyyymmddThhmmssZ-full-01234567/000000"
PREFIX_BYTES_MAX = KEY_BYTES_MAX - len(_LONGEST_RELATIVE) - SOURCE_NAME_LENGTH_MAX - 2  # two slashes


@dataclass(frozen=True, slots=True)
class BackupId:
    """The parts of a backup id."""

    created_at: datetime  # aware UTC, whole seconds
    kind: Kind
    random_hex: str  # 8 digits


def new_backup_id(created_at: datetime, kind: Kind, random_hex: str) -> str:
    """Return the id of a new backup.

    Args:
        created_at: The snapshot's moment, aware.
        kind: Full or incremental.
        random_hex: 8 random lower-case hex digits; they keep two hosts in the same second apart.
    """
    moment = created_at.astimezone(UTC)
    backup_id = f"{moment.year:04d}{moment:%m%dT%H%M%SZ}-{_ID_WORDS[kind]}-{random_hex}"
    if parse_backup_id(backup_id) is None:
        raise ValueError(f"not a backup id: {backup_id!r}")
    return backup_id


@lru_cache(maxsize=64)  # a LIST or a manifest asks for the same few ids thousands of times
def parse_backup_id(text: str) -> BackupId | None:
    """Return the parts of a backup id, or None when it is none."""
    match = _BACKUP_ID.fullmatch(text)
    if match is None:
        return None
    try:
        created_at = datetime.strptime(match[1], _ID_TIME).replace(tzinfo=UTC)
    except ValueError:  # a thirteenth month
        return None
    return BackupId(created_at, _ID_KINDS[match[2]], match[3])


def source_name_problem(name: str) -> str | None:
    """Return why this cannot be a source's name, as a sentence without a full stop, or None."""
    if _SOURCE_NAME.fullmatch(name):
        return None
    return (
        f"source name {name[:80]!r} is not allowed; use 1 to {SOURCE_NAME_LENGTH_MAX} of A-Z a-z 0-9 . _ -"
        " and begin with neither . nor -"
    )


@lru_cache(maxsize=64)  # every key that is built or parsed asks again
def prefix_problem(prefix: str) -> str | None:
    """Return why this cannot be a prefix, as a sentence without a full stop, or None; it may be empty."""
    if not prefix:
        return None
    shown = f"prefix {prefix[:80]!r}"
    if not prefix.isprintable():
        return f"{shown} contains a control character or one that cannot be printed"
    if len(prefix.encode()) > PREFIX_BYTES_MAX:
        return f"{shown} is too long; at most {PREFIX_BYTES_MAX} bytes leave room for the keys below it"
    components = prefix.split("/")
    if "" in components:
        return f"{shown} must have no leading, trailing or double slash"
    if "." in components or ".." in components:
        return f"{shown} must not contain the components . or .."
    return None


def check_source_name(name: str) -> str:
    """Return the name, if a source may have it.

    Raises:
        UsageError: It may not.
    """
    problem = source_name_problem(name)
    if problem:
        raise UsageError(problem)
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix, if keys may begin with it.

    Raises:
        UsageError: They may not.
    """
    problem = prefix_problem(prefix)
    if problem:
        raise UsageError(problem)
    return prefix


def sources_prefix(prefix: str) -> str:
    """Return what every key of every source under a prefix begins with: the prefix and a slash, or nothing."""
    return f"{check_prefix(prefix)}/" if prefix else ""


def source_of_manifest_key(prefix: str, key: str) -> str | None:
    """Return the source that a manifest key directly under the prefix belongs to, or None for any other key.

    A LIST of `sources_prefix(prefix)` also shows chunks, and the keys of longer prefixes (`hosts` and `hosts/web1`
    may both be in use); those give None, so every name that comes back is a source of exactly this prefix.
    """
    start = sources_prefix(prefix)
    if not key.startswith(start):
        return None
    name, slash, _rest = key[len(start) :].partition("/")
    if not slash or source_name_problem(name) or Layout(prefix, name).parse_manifest_key(key) is None:
        return None
    return name


def chunk_relative(backup_id: str, chunk_index: int) -> str:
    """Return a chunk's key relative to `<prefix>/<source>/`, as manifests name it."""
    if parse_backup_id(backup_id) is None:
        raise ValueError(f"not a backup id: {backup_id!r}")
    if not 0 <= chunk_index < CHUNKS_PER_BACKUP_MAX:
        raise ValueError(f"chunk index out of range: {chunk_index}")
    return f"chunks/{backup_id}/{chunk_index:06d}"


def parse_chunk_relative(relative: str) -> tuple[str, int] | None:
    """Return backup id and chunk index of a relative chunk key, or None when it is none."""
    parts = relative.split("/")
    if len(parts) != 3 or parts[0] != "chunks" or not _CHUNK_NAME.fullmatch(parts[2]):
        return None
    return (parts[1], int(parts[2])) if parse_backup_id(parts[1]) else None


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys of one source.

    Raises:
        UsageError: (on construction) prefix or source name is not allowed.
    """

    prefix: str  # may be empty
    source: str

    def __post_init__(self) -> None:
        """Refuse a prefix or a name that could make a key of something else."""
        check_prefix(self.prefix)
        check_source_name(self.source)

    @property
    def source_prefix(self) -> str:
        """Return what every key of this source begins with, unfinished uploads included; ends with a slash."""
        return f"{sources_prefix(self.prefix)}{self.source}/"

    @property
    def manifests_prefix(self) -> str:
        """Return what every manifest key begins with; ends with a slash."""
        return f"{self.source_prefix}manifests/"

    @property
    def chunks_prefix(self) -> str:
        """Return what every chunk key begins with; ends with a slash."""
        return f"{self.source_prefix}chunks/"

    @property
    def probe_key(self) -> str:
        """Return the key of the probe's multipart upload, which is never completed."""
        return f"{self.source_prefix}probe"

    def manifest_key(self, sequence: int) -> str:
        """Return the key of the manifest with this sequence, from 1."""
        if not 1 <= sequence <= SEQUENCE_MAX:
            raise ValueError(f"sequence out of range: {sequence}")
        return f"{self.manifests_prefix}{sequence:08d}.json"

    def chunk_key(self, backup_id: str, chunk_index: int) -> str:
        """Return the key of one chunk."""
        return self.source_prefix + chunk_relative(backup_id, chunk_index)

    def chunk_relative(self, backup_id: str, chunk_index: int) -> str:
        """Return a chunk's key as manifests name it: relative to `source_prefix`."""
        return chunk_relative(backup_id, chunk_index)

    def absolute(self, relative: str) -> str:
        """Return the key of a chunk that a manifest names.

        Raises:
            ManifestDamaged: It is not the relative key of a chunk.
        """
        if parse_chunk_relative(relative) is None:
            raise ManifestDamaged(f"{relative[:80]!r} is not the key of a chunk")
        return self.source_prefix + relative

    def parse_manifest_key(self, key: str) -> int | None:
        """Return the sequence of a manifest key of this source, or None for any other key."""
        if not key.startswith(self.manifests_prefix):
            return None
        match = _MANIFEST_NAME.fullmatch(key[len(self.manifests_prefix) :])
        return int(match[1]) or None if match else None

    def parse_chunk_key(self, key: str) -> tuple[str, int] | None:
        """Return backup id and chunk index of a chunk key of this source, or None for any other key."""
        if not key.startswith(self.chunks_prefix):
            return None
        return parse_chunk_relative(key[len(self.source_prefix) :])
