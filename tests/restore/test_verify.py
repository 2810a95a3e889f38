"""`b2s verify`: each damage is one finding of its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from b2s.adapters.s3 import Bucket
from b2s.core.chain import Stored
from b2s.core.manifest_codec import encode
from b2s.core.settings import LogSettings
from b2s.core.store_settings import S3Settings
from b2s.processes.child import ChildBoot
from b2s.processes.signals import StopRequest
from b2s.restore.data_check import StreamDump
from b2s.restore.verify import Verifier, VerifyReport
from tests.parts.faults import FlipDown
from tests.parts.proxy import FaultProxy
from tests.parts.servers import MotoServer, RcloneServer, S3Server, SeaweedServer
from tests.restore import send_stream
from tests.restore.conftest import Origin, Recorder

MakeOrigin = Callable[..., Origin]


def verify(origin: Origin, *, data: bool = False, backup_id: str | None = None, endpoint: str = "") -> VerifyReport:
    """Verify everything under the origin's prefix, or one backup."""
    s3 = S3Settings(
        bucket=origin.uploader.bucket,
        prefix=origin.uploader.prefix,
        endpoint_url=endpoint or origin.uploader.server.endpoint_url,
        region="us-east-1",
        retry_for=timedelta(seconds=10),
    )
    stop, log = StopRequest(), Recorder()
    boot = ChildBoot(f"verify-{id(origin)}", "supervisor", LogSettings(level="warning", format="json"))
    dump = StreamDump(s3, 2, boot, stop, log, lambda pid, process: None)
    bucket = Bucket.connect(s3)
    verifier = Verifier(bucket, s3.prefix, stop.check, log, dump if data else None)
    try:
        for source in verifier.sources():
            verifier.check(source, backup_id)
    finally:
        bucket.close()
    assert [event["finding"] for event in log.named("verify_found")] == [
        found.finding for found in verifier.report.findings
    ]
    return verifier.report


def found(report: VerifyReport) -> list[tuple[str, str | None]]:
    """Return the findings by name and backup."""
    return [(each.finding, each.backup_id) for each in report.findings]


@pytest.fixture
def origin(make_origin: MakeOrigin, seaweed: SeaweedServer) -> Origin:
    """An origin with a full and two incrementals on SeaweedFS."""
    made = make_origin(seaweed, size_bytes=6 << 20)
    made.change_and_back_up()
    made.change_and_back_up()
    return made


def put(origin: Origin, key: str, body: bytes) -> None:
    """Put an object in the place of another."""
    origin.uploader.client.put_object(Bucket=origin.uploader.bucket, Key=key, Body=body)


def delete(origin: Origin, key: str) -> None:
    """Delete an object."""
    origin.uploader.client.delete_object(Bucket=origin.uploader.bucket, Key=key)


def test_whole_bucket_has_no_findings(origin: Origin) -> None:
    """What is whole gives nothing, with data and without."""
    report = verify(origin, data=True)
    assert report.findings == []
    assert (report.backups_checked, report.streams_checked) == (3, 3)
    assert report.chunks_by_sha256 + report.chunks_by_etag == len(origin.uploader.chunk_keys())


def test_store_without_sha256_is_compared_by_etag(make_origin: MakeOrigin, rclone: RcloneServer) -> None:
    """On rclone only size and ETag can be compared, and the report says of how many chunks."""
    report = verify(make_origin(rclone, size_bytes=1 << 20))
    assert report.findings == []
    assert (report.chunks_by_sha256, report.chunks_by_etag) == (0, 1)


def test_replaced_chunk_on_a_store_without_sha256(make_origin: MakeOrigin, rclone: RcloneServer) -> None:
    """On rclone a chunk of the right size with other content is found by its ETag."""
    origin = make_origin(rclone, size_bytes=1 << 20)
    put(origin, origin.uploader.chunk_keys()[0], b"x" * origin.uploader.stored[0].manifest.chunks[0].bytes)
    assert found(verify(origin)) == [("chunk_checksum", origin.uploader.stored[0].manifest.backup_id)]


def test_data_is_read_where_the_store_knows_no_sha256(
    make_origin: MakeOrigin, rclone: RcloneServer, proxy: Callable[[S3Server], FaultProxy]
) -> None:
    """On rclone too `--data` compares each segment's own hash, and finds what its ETag does not show."""
    origin = make_origin(rclone, size_bytes=6 << 20)
    report = verify(origin, data=True)
    assert (report.findings, report.streams_checked) == ([], 1)
    lying = proxy(rclone)
    lying.rule("GetObject", FlipDown(3, 3), key=origin.uploader.chunk_keys()[0], times=None)
    damaged = verify(origin, data=True, endpoint=lying.endpoint_url)
    assert found(damaged) == [("segment_checksum", origin.uploader.stored[0].manifest.backup_id)]


def test_missing_manifest(origin: Origin) -> None:
    """A manifest that is gone is found, and what cannot be restored without it."""
    delete(origin, origin.uploader.layout.manifest_key(2))
    report = verify(origin)
    last = origin.uploader.stored[2].manifest.backup_id
    assert found(report) == [("manifest_missing", None), ("chain_broken", last)]
    assert report.findings[0].key == origin.uploader.layout.manifest_key(2)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b'{"format_version": 1}'])
def test_damaged_manifest(origin: Origin, body: bytes) -> None:
    """A manifest that cannot be read is found under its key."""
    put(origin, origin.uploader.layout.manifest_key(3), body)
    report = verify(origin)
    assert [each.finding for each in report.findings] == ["manifest_damaged"]
    assert report.findings[0].key == origin.uploader.layout.manifest_key(3)


def test_gap_before_a_damaged_manifest(origin: Origin) -> None:
    """A gap that no readable manifest points to is found too."""
    delete(origin, origin.uploader.layout.manifest_key(2))
    put(origin, origin.uploader.layout.manifest_key(3), b"{}")
    assert sorted(each.finding for each in verify(origin).findings) == ["manifest_damaged", "manifest_missing"]


def test_foreign_manifest(origin: Origin) -> None:
    """A manifest of another source, or of another sequence, under our key is foreign."""
    uploader = origin.uploader
    theirs = replace(uploader.stored[0].manifest, source=replace(uploader.stored[0].manifest.source, name="theirs"))
    put(origin, uploader.layout.manifest_key(4), encode(theirs))
    put(origin, uploader.layout.manifest_key(5), encode(uploader.stored[0].manifest))
    assert [(each.finding, each.key) for each in verify(origin).findings] == [
        ("manifest_foreign", uploader.layout.manifest_key(4)),
        ("manifest_foreign", uploader.layout.manifest_key(5)),
    ]


def test_replaced_manifest_breaks_the_chain(origin: Origin) -> None:
    """A manifest that is readable but not the one the next ones follow is a broken chain."""
    uploader = origin.uploader
    second = replace(uploader.stored[1].manifest, b2s_version="other")
    put(origin, uploader.layout.manifest_key(2), encode(second))
    assert {each.finding for each in verify(origin).findings} == {"chain_broken"}


def test_missing_and_short_chunks(origin: Origin) -> None:
    """Chunks that are gone and chunks of another size are told apart, each under its key."""
    keys = origin.uploader.chunk_keys()
    delete(origin, keys[0])
    put(origin, keys[1], b"short")
    ids = [stored.manifest.backup_id for stored in origin.uploader.stored]
    report = verify(origin)
    assert found(report) == [("chunk_missing", ids[0]), ("chunk_size", ids[1])]
    assert [each.key for each in report.findings] == keys[:2]


def test_one_backup_is_checked_with_its_chain(origin: Origin) -> None:
    """`--backup` looks at the chain of one backup and at nothing newer."""
    ids = [stored.manifest.backup_id for stored in origin.uploader.stored]
    keys = origin.uploader.chunk_keys()
    delete(origin, keys[-1])
    assert found(verify(origin, backup_id=ids[1])) == []
    delete(origin, keys[0])
    assert found(verify(origin, backup_id=ids[1])) == [("chunk_missing", ids[0])]


def test_flipped_bit_is_found_with_data(origin: Origin, proxy: Callable[[S3Server], FaultProxy]) -> None:
    """A bit that differs in every download is a segment_checksum; the other backups are still read."""
    lying = proxy(origin.uploader.server)
    key = origin.uploader.chunk_keys()[0]
    lying.rule("GetObject", FlipDown(77, 1), key=key, times=None)
    report = verify(origin, data=True, endpoint=lying.endpoint_url)
    assert found(report) == [("segment_checksum", origin.uploader.stored[0].manifest.backup_id)]
    assert report.findings[0].key == key
    assert report.streams_checked == 2
    assert verify(origin, endpoint=lying.endpoint_url).findings == []


@pytest.mark.parametrize("what", ["cut", "noise", "crc"])
def test_damaged_stream_is_found_with_data(origin: Origin, what: str) -> None:
    """Bytes that hash right but are no whole stream are stream_damaged."""
    uploader = replace(origin.uploader, source="evil", stored=[])
    facts = origin.uploader.stored[0].manifest.snapshot
    whole = send_stream.stream(b"s", facts.uuid, facts.ctransid, send_stream.make_file(b"f", b"content"))
    content = {"cut": whole[:-10], "noise": b"noise" * 100, "crc": whole.replace(b"content", b"CONTENT")}[what]
    uploader.stream(content, origin.snapshots[0])
    report = verify(origin, data=True)
    assert [each.detail for each in report.findings if each.source == "data"] == []
    assert found(report) == [("stream_damaged", uploader.stored[0].manifest.backup_id)]


def test_archived_objects_are_verified_without_retrieval(make_origin: MakeOrigin, moto: MotoServer) -> None:
    """Without data DEEP_ARCHIVE is verified as it lies there; with data, what was not read is said."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    assert verify(origin).findings == []
    report = verify(origin, data=True)
    assert report.findings == []
    assert report.archived == [origin.uploader.stored[0].manifest.backup_id]


def test_document_is_plain_data(origin: Origin) -> None:
    """The report as `--json` prints it has the fields of the contract."""
    delete(origin, origin.uploader.chunk_keys()[0])
    document: dict[str, Any] = verify(origin).document()
    assert set(document["findings"][0]) == {"finding", "source", "backup_id", "key", "detail"}
    assert document["backups_checked"] == 3
    assert isinstance(origin.uploader.stored[0], Stored)
