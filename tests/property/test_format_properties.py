"""What holds for every manifest, every mutation of one, every key and every cut of a stream."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from b2s.core.layout import Layout, new_backup_id, parse_backup_id, parse_chunk_relative, source_of_manifest_key
from b2s.core.manifest import Host, Manifest, ManifestLink, SendParent, SnapshotIdentity, Storage, StreamFacts
from b2s.core.manifest_codec import decode, encode
from b2s.core.manifest_fields import escaped, is_safe_text
from b2s.core.model import Kind
from b2s.core.sizing import Sizes
from b2s.core.stream import END_HEADER, StreamFrames, StreamVerdict
from b2s.errors import ManifestDamaged
from tests.format import sample

BODIES = (encode(sample.full()), encode(sample.incremental()))

uuids = st.uuids().map(str)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
moments = st.integers(0, 250_000_000_000_000_000).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\"), max_size=40)
nested = st.from_regex(r"[a-z ]{1,9}(/[a-z]{1,9}){0,2}", fullmatch=True)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Return any manifest the format allows, in small."""
    kind = draw(st.sampled_from(Kind))
    sequence = draw(st.integers(2 if kind is Kind.INCREMENTAL else 1, 99_999_999))
    created_at = draw(moments)
    backup_id = new_backup_id(created_at, kind, draw(st.from_regex("[0-9a-f]{8}", fullmatch=True)))
    full_chunks = draw(st.integers(0, 3))
    per_chunk = draw(st.integers(1, 3))
    last = draw(st.integers(1, per_chunk * sample.SEGMENT))
    sizes = (per_chunk * sample.SEGMENT,) * full_chunks + (last,)
    older = st.integers(1, max(1, sequence - 1))
    parent = SendParent("20260101T000000Z-full-00000000", draw(older), draw(hashes), draw(uuids))
    return replace(
        sample.full(),
        b2s_version=draw(texts.filter(bool)),
        backup_id=backup_id,
        sequence=sequence,
        previous=ManifestLink(draw(older), draw(hashes)) if sequence > 1 else None,
        kind=kind,
        created_at=created_at,
        committed_at=draw(moments),
        host=Host(draw(texts), draw(hashes)),
        snapshot=SnapshotIdentity(
            draw(texts.filter(lambda text: text not in ("", ".", "..") and "/" not in text)),
            draw(texts.filter(bool)),
            draw(uuids),
            draw(st.integers(0, 2**64 - 1)),
            tuple(draw(st.lists(nested, max_size=3))),
        ),
        send_parent=parent if kind is Kind.INCREMENTAL else None,
        stream=StreamFacts(sum(sizes), draw(st.integers(1, 3)), draw(st.booleans())),
        chunks=sample.sample_chunks(backup_id, sizes),
        storage=Storage(draw(texts.filter(bool)), draw(texts.filter(bool))),
    )


def decode_or_refuse(body: bytes, sequence: int) -> Manifest | None:
    """Return the manifest, or None when it was refused in the one allowed way: by one printable, bounded line."""
    message = ""
    try:
        return decode(body, key_sequence=sequence, source="data")
    except ManifestDamaged as error:
        message = error.message
    assert message.isprintable()
    assert len(message) < 500
    return None


@given(manifests())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_manifests_round_trip(manifest: Manifest) -> None:
    """Whatever is encoded decodes to the same values, and encodes to the same bytes again."""
    body = encode(manifest)
    decoded = decode(body, key_sequence=manifest.sequence, source="data")
    assert decoded == manifest
    assert encode(decoded) == body


@given(
    st.sampled_from((0, 1)), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), min_size=1, max_size=4)
)
@settings(deadline=None)
def test_mutated_bytes(which: int, mutations: list[tuple[int, bytes]]) -> None:
    """Bytes overwritten anywhere are either refused or still a manifest; nothing else is ever raised."""
    body = bytearray(BODIES[which])
    for position, junk in mutations:
        start = position % len(body)
        body[start : start + len(junk)] = junk
    decode_or_refuse(bytes(body), which + 1)


@given(st.binary(max_size=300))
def test_random_bytes(body: bytes) -> None:
    """Random bytes are refused, never worse."""
    decode_or_refuse(body, 1)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for name, inner in steps:
        found.append((*path, name))
        found.extend(paths_of(inner, (*path, name)))
    return found


@given(st.sampled_from((0, 1)), st.data())
@settings(deadline=None)
def test_mutated_values(which: int, data: st.DataObject) -> None:
    """Any value replaced by any other is refused in one printable line, or the manifest is still in order."""
    manifest = json.loads(BODIES[which])
    *path, name = data.draw(st.sampled_from(paths_of(manifest)))
    holder = manifest
    for step in path:
        holder = holder[step]
    holder[name] = data.draw(values)
    decoded = decode_or_refuse(json.dumps(manifest).encode(), which + 1)
    assert decoded is None or encode(decoded)


@given(st.binary(max_size=60))
def test_any_file_name_becomes_safe_text(name: bytes) -> None:
    """Every byte string a file name can be becomes printable text that still tells the bytes apart."""
    text = escaped(name.decode("utf-8", "surrogateescape"))
    assert is_safe_text(text, 0, 4 * len(name))
    assert (
        b"".join(
            bytes.fromhex(piece[:2]) + piece[2:].encode() if index else piece.encode()
            for index, piece in enumerate(text.split("\\x"))
        )
        == name
    )


@given(st.text(max_size=80))
def test_parsers_take_only_what_builders_make(text: str) -> None:
    """Parsing anything at all gives None, or parts from which the same key is built again."""
    layout = Layout("p", "data")
    for key in (text, layout.manifests_prefix + text, layout.chunks_prefix + text):
        sequence = layout.parse_manifest_key(key)
        assert sequence is None or layout.manifest_key(sequence) == key
        chunk = layout.parse_chunk_key(key)
        assert chunk is None or layout.chunk_key(*chunk) == key
        source_of_manifest_key("", key)
    assert parse_backup_id(text) is None
    assert parse_chunk_relative(text) is None


@given(moments, st.sampled_from(Kind), st.from_regex("[0-9a-f]{8}", fullmatch=True))
def test_backup_ids_round_trip(moment: datetime, kind: Kind, random_hex: str) -> None:
    """A backup id gives back what it was made of."""
    parsed = parse_backup_id(new_backup_id(moment, kind, random_hex))
    assert parsed is not None
    assert (parsed.created_at, parsed.kind, parsed.random_hex) == (moment.replace(microsecond=0), kind, random_hex)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 10**4))
def test_cuts_cover_the_stream(segment: int, per_chunk: int, stream: int) -> None:
    """Counts and places agree for every stream."""
    sizes = Sizes(segment, segment * per_chunk)
    counts = sizes.count(stream)
    if stream:
        last = sizes.place(counts.segments - 1)
        assert last.chunk_index == counts.chunks - 1
        assert (counts.chunks - 1) * sizes.chunk_size_bytes + counts.last_chunk_bytes == stream
        assert 0 < counts.last_segment_bytes <= segment


def walk(stream: bytes, cuts: list[int]) -> StreamVerdict:
    """Return the verdict on a stream fed in pieces."""
    frames = StreamFrames()
    position = 0
    for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        frames.feed(memoryview(stream)[position:cut])
        position = cut
    return frames.finish()


commands = st.tuples(st.integers(0, 30).filter(lambda number: number != 21), st.binary(max_size=40))


@given(st.lists(commands, max_size=12), st.lists(st.integers(0, 10**6), max_size=12), st.integers(0, 10**6))
def test_cut_points_do_not_matter(middle: list[tuple[int, bytes]], cuts: list[int], length: int) -> None:
    """A stream, whole or cut short, gives the same verdict however it is fed."""
    stream = b"btrfs-stream\0" + struct.pack("<I", 1)
    for number, payload in [(1, b"name"), *middle]:
        stream += struct.pack("<IHI", len(payload), number, 7) + payload
    stream += END_HEADER
    assert walk(stream, cuts) == StreamVerdict(True, "", len(stream), len(middle) + 2)
    short = stream[: length % len(stream)]
    assert not walk(short, cuts).whole
    assert walk(short, cuts) == walk(short, [])


@given(st.binary(max_size=200), st.lists(st.integers(0, 10**6), max_size=8), st.booleans())
def test_random_streams(junk: bytes, cuts: list[int], with_opening: bool) -> None:
    """Garbage is never whole by accident, never raises, and reads the same however it is cut."""
    stream = (b"btrfs-stream\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0" if with_opening else b"") + junk
    verdict = walk(stream, cuts)
    assert verdict == walk(stream, [])
    assert verdict.stream_bytes == len(stream)
    assert verdict.whole is (with_opening and junk == END_HEADER) or junk.endswith(END_HEADER)
