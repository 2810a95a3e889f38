"""Manifests as stored bytes: written in one canonical form, read back before anyone sees them.

`docs/format.md` is the specification; where this code and it disagree, one of them has a bug.
"""

from __future__ import annotations

import hashlib
import json

from b2s.core.manifest import FORMAT_VERSION, Manifest, ManifestChunk
from b2s.core.manifest_fields import escaped, moment_text
from b2s.core.manifest_reader import NESTED_CHARACTERS_MAX, NESTED_MAX, decode

__all__ = ["decode", "encode", "sha256_of"]


def sha256_of(body: bytes) -> str:
    """Return `manifest_sha256`: the hex SHA-256 of the stored bytes."""
    return hashlib.sha256(body).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Return the bytes to store: the same for the same manifest, always.

    ASCII, one field per line at the top and one chunk per line, so that people and line tools can read it. The result
    is decoded again before it is returned: b2s never commits what it would refuse to read.

    Raises:
        ManifestDamaged: The manifest breaks a bound or contradicts itself.
    """
    lines = [f"{_json(name)}: {_json(value)}" for name, value in _head(manifest).items()]
    chunks = ",\n".join(_json(_chunk(chunk)) for chunk in manifest.chunks)
    lines.append(f'"chunks": [\n{chunks}\n]')
    storage = {"class": manifest.storage.storage_class, "sse": manifest.storage.sse}
    lines.append(f'"storage": {_json(storage)}')
    body = ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")
    decode(body, key_sequence=manifest.sequence, source=manifest.source.name)
    return body


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _head(manifest: Manifest) -> dict[str, object]:
    """Return every field but `chunks` and `storage`, in the order they are written."""
    previous, parent = manifest.previous, manifest.send_parent
    source, snapshot, stream = manifest.source, manifest.snapshot, manifest.stream
    return {
        "format_version": FORMAT_VERSION,
        "b2s_version": manifest.b2s_version,
        "backup_id": manifest.backup_id,
        "sequence": manifest.sequence,
        "previous": previous and {"sequence": previous.sequence, "manifest_sha256": previous.manifest_sha256},
        "kind": manifest.kind.value,
        "created_at": moment_text(manifest.created_at),
        "committed_at": moment_text(manifest.committed_at),
        "host": {"name": escaped(manifest.host.name), "id": manifest.host.id},
        "source": {
            "name": source.name,
            "path": escaped(source.path),
            "uuid": source.uuid,
            "filesystem_uuid": source.filesystem_uuid,
        },
        "snapshot": {
            "name": escaped(snapshot.name),
            "path": escaped(snapshot.path),
            "uuid": snapshot.uuid,
            "ctransid": snapshot.ctransid,
            "nested_subvolumes": _bounded_nested(snapshot.nested_subvolumes),
        },
        "send_parent": parent
        and {
            "backup_id": parent.backup_id,
            "sequence": parent.sequence,
            "manifest_sha256": parent.manifest_sha256,
            "snapshot_uuid": parent.snapshot_uuid,
        },
        "stream": {
            "bytes": stream.bytes,
            "protocol": stream.protocol,
            "compressed_data": stream.compressed_data,
        },
        "segment_size_bytes": manifest.segment_size_bytes,
        "encoding": list(manifest.encoding),
    }


def _chunk(chunk: ManifestChunk) -> dict[str, object]:
    return {
        "key": chunk.key,
        "bytes": chunk.bytes,
        "sha256_composite": chunk.sha256_composite,
        "etag": chunk.etag,
        "segment_sha256": [digest.hex() for digest in chunk.segment_sha256],
    }


def _bounded_nested(paths: tuple[str, ...]) -> list[str]:
    """Return the nested subvolumes to name; the first ones where there are more than the format allows."""
    kept: list[str] = []
    room = NESTED_CHARACTERS_MAX
    for path in map(escaped, paths[:NESTED_MAX]):
        room -= len(path)
        if room < 0:
            break
        kept.append(path)
    return kept
