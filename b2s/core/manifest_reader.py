"""Manifests read as untrusted input: bounded, checked against their key and against themselves.

`docs/format.md` is the specification; where this code and it disagree, one of them has a bug.
"""

from __future__ import annotations

import re
from typing import Any

from b2s.core.layout import chunk_relative, parse_backup_id
from b2s.core.limits import (
    CHUNKS_PER_BACKUP_MAX,
    MANIFEST_BYTES_MAX,
    OBJECT_BYTES_MAX,
    PART_BYTES_MAX,
    PARTS_PER_UPLOAD_MAX,
    SEQUENCE_MAX,
)
from b2s.core.manifest import (
    FORMAT_VERSION,
    Host,
    Manifest,
    ManifestChunk,
    ManifestLink,
    SendParent,
    SnapshotIdentity,
    SourceIdentity,
    Storage,
    StreamFacts,
)
from b2s.core.manifest_fields import Fields, is_safe_text, shown
from b2s.core.model import Kind
from b2s.core.sizing import composite_sha256, segments_in
from b2s.core.untrusted_json import UntrustedJsonError, parse_object
from b2s.errors import ManifestDamaged

NESTED_MAX = 10_000
NESTED_CHARACTERS_MAX = 1024 * 1024  # of all nested paths together

_HOST_ID = re.compile(r"[0-9a-f]{16,128}", re.ASCII)
_NAME_LENGTH_MAX = 4 * 255  # a file name of 255 bytes, each escaped
_PATH_LENGTH_MAX = 4 * 4096  # PATH_MAX bytes, each escaped
_SHORT_LENGTH_MAX = 64
_ETAG_LENGTH_MAX = 256
_U64_MAX = 2**64 - 1
_NEWER_HINT = "a newer b2s wrote it; install that version or a later one"


def decode(body: bytes, *, key_sequence: int, source: str) -> Manifest:
    """Return the manifest that these bytes describe, after checking all that can be checked without the bucket.

    Args:
        body: The stored bytes, untrusted.
        key_sequence: The sequence in the key they were stored under.
        source: The source in that key.

    Raises:
        ManifestDamaged: They are no manifest, break a bound, or contradict themselves or their key.
    """
    where = f"manifest {key_sequence} of source {source[:80]!r}"
    if len(body) > MANIFEST_BYTES_MAX:
        raise ManifestDamaged(f"{where}: {len(body)} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
    try:
        top = Fields(parse_object(body), where)
    except UntrustedJsonError as error:
        raise ManifestDamaged(f"{where}: {error}") from error
    _check_version(top)
    if top.integer("sequence", 1, SEQUENCE_MAX) != key_sequence:
        top.fail("sequence", f"is {top.raw('sequence')}, but its key says {key_sequence}", finding="manifest_foreign")
    manifest = Manifest(
        b2s_version=top.text("b2s_version", _SHORT_LENGTH_MAX),
        backup_id=_backup_id(top, "backup_id"),
        sequence=key_sequence,
        previous=_previous(top, key_sequence),
        kind=_kind(top),
        created_at=top.moment("created_at"),
        committed_at=top.moment("committed_at"),
        host=_host(top.fields("host")),
        source=_source(top.fields("source"), source),
        snapshot=_snapshot(top.fields("snapshot")),
        send_parent=_send_parent(top, key_sequence),
        stream=_stream(top.fields("stream")),
        segment_size_bytes=top.integer("segment_size_bytes", 1, PART_BYTES_MAX),
        encoding=(),
        chunks=tuple(_read_chunk(top, value, index) for index, value in enumerate(_chunk_values(top))),
        storage=_storage(top.fields("storage")),
    )
    _check_identity(top, manifest)
    _check_cutting(top, manifest)
    return manifest


def _check_version(top: Fields) -> None:
    """Refuse what this reader cannot know how to read."""
    version = top.integer("format_version", 1, _U64_MAX)
    if version > FORMAT_VERSION:
        raise ManifestDamaged(
            f"{top.where}: format_version is {version}, this b2s reads up to {FORMAT_VERSION}", hint=_NEWER_HINT
        )
    if top.items("encoding", 16):
        names = ", ".join(shown(name) for name in top.raw("encoding"))
        raise ManifestDamaged(f"{top.where}: encoding {names} is not known to this b2s", hint=_NEWER_HINT)


def _backup_id(fields: Fields, name: str) -> str:
    value = fields.text(name, _SHORT_LENGTH_MAX)
    if parse_backup_id(value) is None:
        fields.fail(name, f"is {shown(value)}, not a backup id")
    return value


def _kind(top: Fields) -> Kind:
    value = top.raw("kind")
    if not isinstance(value, str) or value not in Kind.__members__.values():
        top.fail("kind", f"is {shown(value)}, neither full nor incremental")
    return Kind(value)


def _previous(top: Fields, sequence: int) -> ManifestLink | None:
    if top.is_null("previous"):
        if sequence != 1:
            top.fail("previous", "is null, which only sequence 1 may have")
        return None
    fields = top.fields("previous")
    return ManifestLink(fields.integer("sequence", 1, sequence - 1), fields.sha256_hex("manifest_sha256"))


def _send_parent(top: Fields, sequence: int) -> SendParent | None:
    if top.is_null("send_parent"):
        return None
    fields = top.fields("send_parent")
    return SendParent(
        backup_id=_backup_id(fields, "backup_id"),
        sequence=fields.integer("sequence", 1, sequence - 1),
        manifest_sha256=fields.sha256_hex("manifest_sha256"),
        snapshot_uuid=fields.uuid("snapshot_uuid"),
    )


def _host(fields: Fields) -> Host:
    return Host(
        name=fields.text("name", _NAME_LENGTH_MAX, least=0),
        id=fields.matching("id", _HOST_ID, "16 to 128 lower-case hex digits"),
    )


def _source(fields: Fields, source: str) -> SourceIdentity:
    if fields.raw("name") != source:
        said = shown(fields.raw("name"))
        finding = "manifest_foreign" if isinstance(fields.raw("name"), str) else "manifest_damaged"
        fields.fail("name", f"is {said}, but its key says {source[:80]!r}", finding=finding)
    return SourceIdentity(
        source, fields.text("path", _PATH_LENGTH_MAX), fields.uuid("uuid"), fields.uuid("filesystem_uuid")
    )


def _snapshot(fields: Fields) -> SnapshotIdentity:
    name = fields.text("name", _NAME_LENGTH_MAX)
    if "/" in name or name in (".", ".."):
        fields.fail("name", f"is {shown(name)}, not the name of one directory entry")
    nested = fields.items("nested_subvolumes", NESTED_MAX)
    room = NESTED_CHARACTERS_MAX
    for path in nested:
        if not is_safe_text(path, 1, _PATH_LENGTH_MAX) or any(part in ("", ".", "..") for part in path.split("/")):
            fields.fail("nested_subvolumes", f"contains {shown(path)}, not a relative path")
        room -= len(path)
    if room < 0:
        fields.fail("nested_subvolumes", f"has more than {NESTED_CHARACTERS_MAX} characters")
    return SnapshotIdentity(
        name,
        fields.text("path", _PATH_LENGTH_MAX),
        fields.uuid("uuid"),
        fields.integer("ctransid", 0, _U64_MAX),
        tuple(nested),
    )


def _stream(fields: Fields) -> StreamFacts:
    return StreamFacts(
        bytes=fields.integer("bytes", 1, CHUNKS_PER_BACKUP_MAX * OBJECT_BYTES_MAX),
        protocol=fields.integer("protocol", 1, 255),
        compressed_data=fields.boolean("compressed_data"),
    )


def _storage(fields: Fields) -> Storage:
    return Storage(fields.text("class", _SHORT_LENGTH_MAX), fields.text("sse", _SHORT_LENGTH_MAX))


def _chunk_values(top: Fields) -> list[Any]:
    values = top.items("chunks", CHUNKS_PER_BACKUP_MAX)
    if not values:
        top.fail("chunks", "is empty")
    return values


def _read_chunk(top: Fields, value: Any, index: int) -> ManifestChunk:
    if not isinstance(value, dict):
        top.fail(f"chunks[{index}]", f"is {shown(value)}, not an object")
    fields = Fields(value, top.where, f"chunks[{index}].")
    hashes = fields.raw("segment_sha256")
    if not isinstance(hashes, tuple):  # what `parse_object` makes of a well-formed, bounded list
        most = PARTS_PER_UPLOAD_MAX
        fields.fail("segment_sha256", f"is {shown(hashes)}, not a list of 1 to {most} SHA-256 in lower-case hex")
    composite = composite_sha256(hashes)
    if fields.raw("sha256_composite") != composite:
        fields.fail("sha256_composite", f"is {shown(fields.raw('sha256_composite'))}, its segments give {composite}")
    return ManifestChunk(
        key=fields.text("key", _PATH_LENGTH_MAX),
        bytes=fields.integer("bytes", 1, OBJECT_BYTES_MAX),
        sha256_composite=composite,
        etag=fields.text("etag", _ETAG_LENGTH_MAX, least=0) if "etag" in value else "",  # other writers may not know it
        segment_sha256=hashes,
    )


def _check_identity(top: Fields, manifest: Manifest) -> None:
    """Compare what the manifest says twice."""
    backup_id = parse_backup_id(manifest.backup_id)
    assert backup_id is not None  # `_backup_id` looked
    if backup_id.kind is not manifest.kind:
        top.fail("backup_id", f"says {backup_id.kind.value}, but kind is {manifest.kind.value}")
    if backup_id.created_at != manifest.created_at.replace(microsecond=0):
        top.fail("backup_id", "names another moment than created_at")
    if (manifest.send_parent is None) is not (manifest.kind is Kind.FULL):
        top.fail("send_parent", f"is {'null' if manifest.send_parent is None else 'given'}, kind {manifest.kind.value}")


def _check_cutting(top: Fields, manifest: Manifest) -> None:
    """Check that the chunks are the stream, cut as the format says: all of it, in order, nothing else."""
    full_bytes = manifest.chunks[0].bytes
    last = len(manifest.chunks) - 1
    for index, chunk in enumerate(manifest.chunks):
        name = f"chunks[{index}]"
        if chunk.key != chunk_relative(manifest.backup_id, index):
            top.fail(f"{name}.key", f"is {shown(chunk.key)}, not the key of chunk {index} of this backup")
        if chunk.bytes > full_bytes or (index < last and chunk.bytes < full_bytes):
            top.fail(
                f"{name}.bytes", f"is {chunk.bytes}; all chunks are as long as the first, only the last is shorter"
            )
        if len(chunk.segment_sha256) != segments_in(chunk.bytes, manifest.segment_size_bytes):
            top.fail(f"{name}.segment_sha256", f"has {len(chunk.segment_sha256)} entries, not one per segment")
    if last and full_bytes % manifest.segment_size_bytes:
        top.fail("chunks[0].bytes", f"is {full_bytes}, not a multiple of segment_size_bytes")
    total = sum(chunk.bytes for chunk in manifest.chunks)
    if total != manifest.stream.bytes:
        top.fail("stream.bytes", f"is {manifest.stream.bytes}, but the chunks have {total} bytes together")
