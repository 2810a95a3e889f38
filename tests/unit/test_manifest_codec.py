"""Manifests as untrusted input: everything wrong is refused, bounded in time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from b2s.core.limits import MANIFEST_BYTES_MAX
from b2s.core.manifest import ManifestLink, SendParent
from b2s.core.manifest_codec import decode, encode
from b2s.core.model import Kind
from b2s.errors import ManifestDamaged
from tests.format import sample

HASH = "ab" * 32
FULL = encode(sample.full())
INCREMENTAL = encode(sample.incremental())
CHUNK_KEY = "chunks/20261122T010000Z-full-00c0ffee/00000{}"


def refused(body: bytes, *, sequence: int = 1, source: str = "data") -> ManifestDamaged:
    """Return the error that refuses these bytes; it is one bounded, printable line."""
    with pytest.raises(ManifestDamaged) as caught:
        decode(body, key_sequence=sequence, source=source)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    return caught.value


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit that sets one value, given as path components and the value."""
    *path, name, value = path_and_value

    def edit(manifest: Any) -> None:
        for step in path:
            manifest = manifest[step]
        manifest[name] = value

    return edit


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit that removes one value."""

    def edit(manifest: Any) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        del manifest[path[-1]]

    return edit


def edited(body: bytes, *edits: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the manifest with the edits made."""
    parsed = json.loads(body)
    for edit in edits:
        edit(parsed)
    return json.dumps(parsed).encode()


WRONG_INTEGERS = [-1, 10**18, 10**40, 1.0, True, "1", None, [], {}]


@pytest.mark.parametrize("value", [*WRONG_INTEGERS, 0])
@pytest.mark.parametrize(
    "path",
    [("sequence",), ("stream", "bytes"), ("segment_size_bytes",), ("chunks", 0, "bytes"), ("chunks", 2, "bytes")],
)
def test_wrong_integers(path: tuple[Any, ...], value: Any) -> None:
    """A size or number that is none, or out of bounds, is refused; true is not 1."""
    error = refused(edited(FULL, put(*path, value)))
    assert str(path[-1]) in error.message or "digits" in error.message


@pytest.mark.parametrize("value", [v for v in WRONG_INTEGERS if v != 10**18])
def test_wrong_ctransid(value: Any) -> None:
    """The transaction id is an unsigned 64-bit integer."""
    refused(edited(FULL, put("snapshot", "ctransid", value)))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_no_constants(constant: str) -> None:
    """NaN and the infinities are not JSON, not even in a field nobody reads."""
    body = FULL.replace(b'"format_version": 1', f'"later": {constant}, "format_version": 1'.encode())
    assert constant in refused(body).message


TEXT_PATHS = [
    ("b2s_version",),
    ("backup_id",),
    ("kind",),
    ("created_at",),
    ("committed_at",),
    ("host", "name"),
    ("host", "id"),
    ("source", "name"),
    ("source", "path"),
    ("source", "uuid"),
    ("source", "filesystem_uuid"),
    ("snapshot", "name"),
    ("snapshot", "path"),
    ("snapshot", "uuid"),
    ("storage", "class"),
    ("storage", "sse"),
    ("chunks", 0, "key"),
    ("chunks", 0, "etag"),
    ("chunks", 0, "sha256_composite"),
]


@pytest.mark.parametrize("path", TEXT_PATHS)
@pytest.mark.parametrize(
    "value", ["a\nb", "\0", "\x1b[2J", "\x7f", "\u2028", "\ud800", "x" * 1_000_000, 1, None, ["a"], {}]
)
def test_wrong_texts(path: tuple[Any, ...], value: Any) -> None:
    """Control characters, lone surrogates, megabytes and other types are refused in every text field."""
    refused(edited(FULL, put(*path, value)))


@pytest.mark.parametrize(
    "path", [*TEXT_PATHS, ("previous",), ("send_parent",), ("encoding",), ("chunks",), ("storage",)]
)
def test_missing_fields(path: tuple[Any, ...]) -> None:
    """Every field has to be there; null is not absence. Only the ETag may be missing."""
    body = edited(FULL, drop(*path))
    if path[-1] == "etag":
        assert decode(body, key_sequence=1, source="data").chunks[0].etag == ""
    else:
        assert "missing" in refused(body).message


@pytest.mark.parametrize("version", [2, 10**18])
def test_newer_version(version: int) -> None:
    """A newer format is refused with a hint to upgrade, whatever else it contains."""
    error = refused(f'{{"format_version": {version}}}'.encode())
    assert error.hint is not None
    assert "newer b2s" in error.hint


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_wrong_version(version: Any) -> None:
    """A version that is not a positive integer is refused."""
    refused(edited(FULL, put("format_version", version)))


def test_unknown_encoding() -> None:
    """A transform that this reader cannot undo is refused with a hint to upgrade."""
    error = refused(edited(FULL, put("encoding", ["zstd"])))
    assert error.hint is not None
    assert "'zstd'" in error.message


def test_key_decides() -> None:
    """A manifest under another sequence or source than its own is refused."""
    assert "its key says 2" in refused(FULL, sequence=2).message
    assert "its key says" in refused(FULL, source="other").message


CONTRADICTIONS = {
    "sum": [put("stream", "bytes", 26226746)],
    "hole": [drop("chunks", 1)],
    "twice": [put("chunks", 1, "key", CHUNK_KEY.format(0))],
    "order": [put("chunks", 0, "key", CHUNK_KEY.format(1)), put("chunks", 1, "key", CHUNK_KEY.format(0))],
    "other backup": [put("chunks", 0, "key", CHUNK_KEY.format(0).replace("00c0ffee", "00c0ffef"))],
    "escape": [put("chunks", 0, "key", "chunks/../../../etc/passwd")],
    "absolute": [put("chunks", 0, "key", "/etc/passwd")],
    "encoded": [put("chunks", 0, "key", "chunks%2f..%2fx")],
    "short chunk in the middle": [put("chunks", 1, "bytes", 10485759), put("stream", "bytes", 26226744)],
    "last chunk longer": [put("chunks", 2, "bytes", 10485761), put("stream", "bytes", 31457281)],
    "segment count": [put("segment_size_bytes", 5242879)],
    "segments swapped": [lambda m: m["chunks"][0]["segment_sha256"].reverse()],
    "segment missing": [lambda m: m["chunks"][0]["segment_sha256"].pop()],
    "no segments": [put("chunks", 0, "segment_sha256", [])],
    "segments no list": [put("chunks", 0, "segment_sha256", HASH)],
    "segments mixed": [put("chunks", 0, "segment_sha256", [HASH, 1])],
    "segments upper case": [put("chunks", 0, "segment_sha256", [HASH.upper(), HASH])],
    "no chunks": [put("chunks", []), put("stream", "bytes", 0)],
    "chunk no object": [put("chunks", 0, "x")],
    "chunks no list": [put("chunks", {})],
    "kind": [put("kind", "incremental")],
    "kind unknown": [put("kind", "differential")],
    "full with parent": [
        put("send_parent", {"backup_id": "x", "sequence": 1, "manifest_sha256": HASH, "snapshot_uuid": "x"})
    ],
    "moment": [put("created_at", "2026-11-22T01:00:01Z")],
    "no moment": [put("created_at", "2026-02-30T01:00:00Z")],
    "moment without zone": [put("committed_at", "2026-11-22T03:14:15")],
    "first with previous": [put("previous", {"sequence": 1, "manifest_sha256": HASH})],
    "snapshot name a path": [put("snapshot", "name", "../x")],
    "snapshot name dots": [put("snapshot", "name", "..")],
    "nested absolute": [put("snapshot", "nested_subvolumes", ["/etc"])],
    "nested escape": [put("snapshot", "nested_subvolumes", ["a/../../b"])],
    "nested no text": [put("snapshot", "nested_subvolumes", [1])],
    "nested many": [put("snapshot", "nested_subvolumes", ["a"] * 10_001)],
    "nested long": [put("snapshot", "nested_subvolumes", ["a" * 16_000] * 100)],
    "host a list": [put("host", [])],
    "boolean as text": [put("stream", "compressed_data", "false")],
    "uuid upper case": [put("source", "uuid", "7C1F2A58-0A38-4A8C-9F0E-000000000001")],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    """A manifest that contradicts itself is refused."""
    refused(edited(FULL, *CONTRADICTIONS[name]))


@pytest.mark.parametrize(
    "edit",
    [
        put("previous", None),
        put("previous", "sequence", 2),
        put("previous", "sequence", 0),
        put("previous", "manifest_sha256", "x"),
        put("send_parent", None),
        put("send_parent", "sequence", 2),
        put("send_parent", "sequence", 3),
        put("send_parent", "backup_id", "../x"),
        put("send_parent", "snapshot_uuid", "x"),
        drop("send_parent", "manifest_sha256"),
    ],
)
def test_wrong_links(edit: Callable[[dict[str, Any]], None]) -> None:
    """Links point to lower sequences only, so no cycle can exist, and are complete."""
    refused(edited(INCREMENTAL, edit), sequence=2)


LIST = b'{"segment_sha256":[' + b",".join([b'"%s"' % HASH.encode()] * 100) + b"]},"
HOSTILE: dict[str, Callable[[], bytes]] = {  # made when needed: some are large
    "empty": lambda: b"",
    "no object": lambda: b"[]",
    "cut": lambda: FULL[: len(FULL) // 2],
    "two documents": lambda: FULL + FULL,
    "BOM": lambda: b"\xef\xbb\xbf" + FULL,
    "UTF-16": lambda: FULL.decode().encode("utf-16"),
    "bad UTF-8": lambda: FULL.replace(b"/srv/data", b"/srv/\xff\xfe", 1),
    "NUL": lambda: FULL + b"\0",
    "duplicate key": lambda: FULL.replace(b'"sequence": 1', b'"sequence": 1, "sequence": 1', 1),
    "duplicate key deep": lambda: FULL.replace(b'"sse":"AES256"', b'"sse":"AES256","sse":"AES256"', 1),
    "deep lists": lambda: b"[" * 1_000_000,
    "deep enough": lambda: b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deep objects": lambda: b'{"a":' * 12_000,
    "200 MB": lambda: b" " * 200_000_000,
    "128 MiB of brackets": lambda: b"[" * MANIFEST_BYTES_MAX,
    "objects": lambda: b"[" + b"{}," * 5_000_000 + b"{}]",
    "digits": lambda: FULL.replace(b'"sequence": 1', b'"sequence": ' + b"9" * 5_000_000, 1),
    "float digits": lambda: FULL.replace(b'"sequence": 1', b'"sequence": 1e' + b"9" * 5_000_000, 1),
    "long list": lambda: b'{"segment_sha256":[' + b'"%s",' % HASH.encode() * 1_000_000 + b'"%s"]}' % HASH.encode(),
    "many lists": lambda: b'{"a":[' + LIST * 10_600 + b"0]}",
    "almost a list": lambda: b'"segment_sha256":["' * 2_000_000,
    "forged mark": lambda: FULL.replace(b'"segment_sha256":[', b'"segment_sha256":"0","x":[', 1),
    "quotes": lambda: b'"\\' * 5_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes(name: str) -> None:
    """Whatever the bytes are, they are refused within 2 s and with 200 MB, their own size included."""
    body = HOSTILE[name]()
    started = time.process_time()
    refused(body)
    assert time.process_time() - started < 2
    tracemalloc.start()
    try:
        refused(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if len(body) <= MANIFEST_BYTES_MAX:  # what is longer is never fetched
        assert len(body) + peak < 200_000_000


def test_names_of_the_host_become_printable() -> None:
    """A nested subvolume may have any name Linux allows; it never keeps a backup from being committed."""
    manifest = sample.full()
    nested = ("new\nline", "bytes\udcff\udcfe", "back\\slash", "esc\x1b[m", "\u2028")
    odd = replace(manifest, snapshot=replace(manifest.snapshot, nested_subvolumes=nested))
    decoded = decode(encode(odd), key_sequence=1, source="data")
    assert decoded.snapshot.nested_subvolumes == (
        r"new\x0aline",
        r"bytes\xff\xfe",
        r"back\x5cslash",
        r"esc\x1b[m",
        r"\xe2\x80\xa8",
    )


def test_too_many_nested_subvolumes_are_cut() -> None:
    """A source with more nested subvolumes than the format names is backed up all the same."""
    manifest = sample.full()
    nested = tuple(f"docker/{number}" for number in range(20_000))
    decoded = decode(
        encode(replace(manifest, snapshot=replace(manifest.snapshot, nested_subvolumes=nested))),
        key_sequence=1,
        source="data",
    )
    assert decoded.snapshot.nested_subvolumes == nested[:10_000]


def test_encode_refuses_what_decode_would() -> None:
    """A manifest that could not be read back is never written."""
    manifest = sample.full()
    with pytest.raises(ManifestDamaged):
        encode(replace(manifest, sequence=2))
    with pytest.raises(ManifestDamaged):
        encode(replace(manifest, chunks=manifest.chunks[:2]))
    with pytest.raises(ManifestDamaged):
        encode(replace(manifest, kind=Kind.INCREMENTAL))
    parent = SendParent(manifest.backup_id, 5, HASH, manifest.snapshot.uuid)
    with pytest.raises(ManifestDamaged):
        encode(replace(sample.incremental(), send_parent=parent, previous=ManifestLink(1, HASH)))


@pytest.mark.long
def test_largest_manifest() -> None:
    """A manifest of 1,048,576 segments is read with less than 200 MB, its own size included."""
    manifest = sample.full()
    size = 8192 * sample.SEGMENT
    chunks = sample.sample_chunks(manifest.backup_id, (size,) * 128)
    body = encode(replace(manifest, chunks=chunks, stream=replace(manifest.stream, bytes=128 * size)))
    del chunks
    tracemalloc.start()
    try:
        decoded = decode(body, key_sequence=1, source="data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(chunk.segment_sha256) for chunk in decoded.chunks) == 1_048_576
    assert len(body) + peak < 200_000_000
