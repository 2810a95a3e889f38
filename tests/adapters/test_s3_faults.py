"""What the bucket does when the network or the store misbehaves: rows S of the fault table, one call at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from b2s.adapters.s3_listing import PAGES_BARREN_MAX
from b2s.adapters.s3_replies import composite_of
from b2s.core.model import Retrieval
from b2s.errors import (
    AccessDenied,
    BucketMissing,
    ChunkDamaged,
    ClockSkewed,
    CredentialsMissing,
    KeyTaken,
    ObjectArchived,
    PartRejected,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)
from tests.adapters.conftest import PREFIX, SEGMENT_BYTES, Store, segments_of
from tests.parts.faults import Drip, DropReply, Fault, FlipUp, Hold, ResetDown, ResetUp, Respond, RewriteHeaders

KEY = f"{PREFIX}/data/chunks/20260101T000000Z-full-00000001/000000"
MANIFEST = f"{PREFIX}/data/manifests/00000001.json"
CUT_XML = b'<?xml version="1.0"?><CompleteMultipartUploadResult><Loc'


def upload_whole(store: Store) -> bytes:
    """Store one chunk of two segments and check that exactly its bytes are there."""
    bucket = store.bucket()
    segments = segments_of(SEGMENT_BYTES, 70_000)
    upload_id, receipts, facts = store.put(bucket, KEY, segments)
    done = bucket.complete_upload(KEY, upload_id, receipts, facts)
    whole = b"".join(each.body for each in segments)
    assert (done.bytes, done.sha256_composite) == (len(whole), composite_of(receipts))
    assert store.stored(KEY) == whole
    return whole


@pytest.mark.parametrize("name", ["seaweed", "moto"])
@pytest.mark.parametrize("offset", [0, 1, 69_999])
def test_flipped_bit_of_a_part_is_sent_again(store_on: Callable[[str], Store], name: str, offset: int) -> None:
    """S05: a bit flipped on the way up is noticed, by the store or by us, and the part is sent again."""
    store = store_on(name)
    store.proxy.rule("UploadPart", FlipUp(offset=offset, bit=3), part_number=2)
    upload_whole(store)
    assert [type(error) for error in store.retries] == [PartRejected]
    store.calls("UploadPart", 3, key="000000")


@pytest.mark.parametrize("offset", [0, 1, 69_999])
def test_flipped_bit_of_a_part_ends_the_upload_on_rclone(store_on: Callable[[str], Store], offset: int) -> None:
    """S05: rclone refuses the wrong part and drops the whole upload with it; a new upload of the chunk succeeds."""
    store = store_on("rclone")
    store.proxy.rule("UploadPart", FlipUp(offset=offset, bit=3), part_number=2)
    with pytest.raises(UploadGone):
        upload_whole(store)
    assert [type(error) for error in store.retries] == [PartRejected]
    upload_whole(store)


def test_part_that_cannot_be_replaced_ends_the_upload(store_on: Callable[[str], Store]) -> None:
    """A part with other bytes under the same number, which rclone cannot take, calls for a new upload."""
    store = store_on("rclone")
    bucket = store.bucket()
    one, other = segments_of(1000, 1000)
    upload_id, _, facts = store.put(bucket, KEY, [one])
    with pytest.raises(UploadGone):
        bucket.put_part(KEY, upload_id, 1, memoryview(other.body), other.sha256, other.md5, facts)
    assert not store.retries


@pytest.mark.parametrize("name", ["seaweed", "moto"])
def test_bits_that_always_flip_end_in_an_error(store_on: Callable[[str], Store], name: str) -> None:
    """S05: a part that never arrives whole is given up after a few tries, not after half an hour."""
    store = store_on(name)
    store.proxy.rule("UploadPart", FlipUp(offset=5), part_number=1, key="000000", times=None)
    bucket = store.bucket(retry_for="10m")
    with pytest.raises(PartRejected):
        store.put(bucket, KEY, segments_of(1000))
    assert len(store.retries) == 7


@pytest.mark.parametrize("offset", [0, 2, 9])
def test_flipped_bit_of_a_manifest_is_sent_again(real_store: Store, offset: int) -> None:
    """S05: a bit of a manifest flipped on the way up is refused by the store and the manifest sent again."""
    real_store.proxy.rule("PutObject", FlipUp(offset=offset))
    real_store.bucket().put_new(MANIFEST, b'{"a": 1234}')
    assert real_store.stored(MANIFEST) == b'{"a": 1234}'
    assert [type(error) for error in real_store.retries] == [PartRejected]


def test_damaged_manifest_is_noticed_where_the_store_checks_nothing(store_on: Callable[[str], Store]) -> None:
    """S05: moto stores the wrong bytes; reading back shows it."""
    store = store_on("moto")
    store.proxy.rule("PutObject", FlipUp(offset=2))
    with pytest.raises(KeyTaken):
        store.bucket().put_new(MANIFEST, b'{"a": 1234}')


COMPLETE_REPLIES = [
    Respond(200, "InternalError"),
    Respond(200, body=b"   \n  "),
    Respond(200, body=CUT_XML),
    Respond(200, body=b""),
    Respond(500, "InternalError"),
    Respond(409, "OperationAborted"),
]


@pytest.mark.parametrize("reply", COMPLETE_REPLIES, ids=["error", "blank", "cut", "empty", "500", "409"])
@pytest.mark.parametrize("done", [True, False], ids=["done", "not-done"])
def test_complete_with_a_useless_reply(real_store: Store, reply: Respond, done: bool) -> None:
    """S03: whatever Complete answers, the object is there in the end, and only once it is, that is reported."""
    real_store.proxy.rule("CompleteMultipartUpload", Respond(reply.status, reply.code, body=reply.body, forward=done))
    upload_whole(real_store)
    real_store.calls("CompleteMultipartUpload", 1 if done else 2)


def test_complete_that_never_happens_is_never_reported(real_store: Store) -> None:
    """S03: a store that always says 200 and does nothing does not make us believe it."""
    real_store.proxy.rule("CompleteMultipartUpload", Respond(200, body=b""), times=None)
    bucket = real_store.bucket(retry_for="1s")
    upload_id, receipts, facts = real_store.put(bucket, KEY, segments_of(1000))
    with pytest.raises(StoreUnavailable):
        bucket.complete_upload(KEY, upload_id, receipts, facts)


def test_complete_reply_lost(store: Store) -> None:
    """S04: Complete was done, its reply lost: one copy, success, also where the second Complete says 404."""
    store.proxy.rule("CompleteMultipartUpload", DropReply())
    upload_whole(store)
    assert [each.key for each in store.bucket().list_objects(PREFIX)] == [KEY]
    assert store.bucket().list_uploads(PREFIX) == []


def test_complete_and_head_replies_lost(store: Store) -> None:
    """S04: also when the HEAD that should have decided got lost, so that Complete is asked again."""
    store.proxy.rule("CompleteMultipartUpload", DropReply())
    store.proxy.rule("HeadObject", DropReply(), key="000000")
    upload_whole(store)


def test_manifest_reply_lost(store: Store) -> None:
    """S04: a manifest was written, its reply lost: success, written once where the store allows to tell."""
    store.proxy.rule("PutObject", DropReply())
    store.bucket().put_new(MANIFEST, b"{}")
    assert store.stored(MANIFEST) == b"{}"
    store.calls("PutObject", 1)


def test_object_with_another_content_is_damage(store: Store) -> None:
    """A chunk whose stored object is not what was sent is reported as damaged, not completed."""
    bucket = store.bucket()
    upload_id, receipts, facts = store.put(bucket, KEY, segments_of(1000))
    bucket.complete_upload(KEY, upload_id, receipts, facts)
    store.server.client().put_object(Bucket=store.name, Key=KEY, Body=b"x" * 999)
    with pytest.raises(ChunkDamaged):
        bucket.complete_upload(KEY, upload_id, receipts, facts)


UP_FAULTS = [
    ResetUp(0),
    ResetUp(1_000_000),
    DropReply(),
    Respond(503),
    Respond(500, "InternalError"),
    Respond(429, None),
]


@pytest.mark.parametrize("fault", UP_FAULTS, ids=["reset-0", "reset-1M", "reply-lost", "503", "500", "429"])
def test_part_is_sent_again(real_store: Store, fault: Fault) -> None:
    """S01, S02: a part that fails for now is sent once more, nothing else is."""
    real_store.proxy.rule("UploadPart", fault, part_number=1, key="000000")
    upload_whole(real_store)
    real_store.calls("UploadPart", 3, key="000000")
    assert [type(error) for error in real_store.retries] == [StoreUnavailable]


def test_get_goes_on_where_it_broke_off(store: Store) -> None:
    """S02: after a reset in mid-body only the rest is asked for, and the object must still be the same."""
    whole = upload_whole(store)
    bucket = store.bucket()
    etag = bucket.head(KEY).etag
    store.proxy.bytes_per_second = 20_000_000  # a reset throws away what is still on its way
    store.proxy.rule("GetObject", ResetDown(3 << 20))
    buffer = bytearray(len(whole))
    bucket.get_range(KEY, etag, 0, memoryview(buffer))
    assert buffer == whole
    first, second = store.calls("GetObject", 2)
    assert first.headers["range"] == f"bytes=0-{len(whole) - 1}"
    assert 0 < int(second.headers["range"].removeprefix("bytes=").split("-")[0]) <= 3 << 20
    assert second.headers["if-match"] == f'"{etag}"'


LIES = [
    RewriteHeaders({"content-range": "bytes 1-70000/5312880"}),
    RewriteHeaders({"content-range": None}),
    RewriteHeaders({"content-range": "bytes x"}),
    RewriteHeaders({"content-length": "5"}),
]


@pytest.mark.parametrize("lie", LIES, ids=["shifted", "without", "nonsense", "length"])
def test_get_does_not_believe_a_lying_range(store_on: Callable[[str], Store], lie: RewriteHeaders) -> None:
    """H05: a reply that is not the range that was asked for is thrown away and asked for again."""
    store = store_on("seaweed")
    whole = upload_whole(store)
    bucket = store.bucket()
    etag = bucket.head(KEY).etag
    store.proxy.rule("GetObject", lie)
    buffer = bytearray(1000)
    bucket.get_range(KEY, etag, 60, memoryview(buffer))
    assert buffer == whole[60:1060]
    assert [type(error) for error in store.retries] == [StoreUnavailable]


REFUSALS: list[tuple[Respond, type[StoreError], str]] = [
    (Respond(403, "AccessDenied"), AccessDenied, "s3:PutObject"),
    (Respond(403, "InvalidAccessKeyId"), CredentialsMissing, "InvalidAccessKeyId"),
    (Respond(403, "SignatureDoesNotMatch"), CredentialsMissing, "SignatureDoesNotMatch"),
    (Respond(400, "ExpiredToken"), CredentialsMissing, "expired"),
    (Respond(403, "RequestTimeTooSkewed"), ClockSkewed, "clock"),
    (Respond(404, "NoSuchBucket"), BucketMissing, "does not exist"),
    (Respond(400, "EntityTooLarge"), StoreRefused, "EntityTooLarge"),
    (Respond(307, "TemporaryRedirect", headers={"Location": "http://192.0.2.1/x"}), StoreRefused, "elsewhere"),
]


@pytest.mark.parametrize(("reply", "expected", "says"), REFUSALS, ids=[str(each[0].code) for each in REFUSALS])
def test_refusals_are_final(
    store_on: Callable[[str], Store], reply: Respond, expected: type[StoreError], says: str
) -> None:
    """S07 to S09, H05: what trying again cannot change ends at once, named, with the key and without secrets."""
    store = store_on("moto")
    bucket = store.bucket()
    upload_id = bucket.create_upload(KEY)
    facts = bucket.probe(f"{PREFIX}/probe")
    store.proxy.rule("UploadPart", reply, times=None)
    (segment,) = segments_of(100)
    with pytest.raises(expected, match=says) as caught:
        bucket.put_part(KEY, upload_id, 1, memoryview(segment.body), segment.sha256, segment.md5, facts)
    assert type(caught.value) is expected
    assert store.server.secret_key not in repr((caught.value.message, caught.value.hint, caught.value.context))
    assert not store.retries


def test_foreign_text_is_one_bounded_line(store_on: Callable[[str], Store]) -> None:
    """H04: a megabyte of control characters in an error body, and our own secret in it, never reach a message."""
    store = store_on("moto")
    body = (
        f"<Error><Code>Bad\x85Code</Code><Message>{store.server.secret_key} a&#10;b {'x' * 1_000_000}</Message></Error>"
    )
    store.proxy.rule("HeadObject", Respond(400, body=body.encode()))
    store.proxy.rule("GetObject", Respond(400, body=body.encode()))
    with pytest.raises(StoreRefused) as caught:
        store.bucket().get(KEY, 10)
    message = caught.value.message
    assert len(message) < 800 and message.isprintable() and "a\\nb" in message
    assert store.server.secret_key not in repr((message, caught.value.context))


def test_endless_error_body_is_bounded(store_on: Callable[[str], Store]) -> None:
    """H05: a reply that says it is larger than any honest one is not read into memory."""
    store = store_on("moto")
    store.proxy.rule("ListObjectsV2", Respond(200, body=b"x" * (33 << 20)))
    with pytest.raises(StoreRefused, match="more than"):
        list(store.bucket().list_objects(PREFIX))


def test_endless_pages_are_refused(store_on: Callable[[str], Store]) -> None:
    """H05: a listing whose next page is always the same one ends in an error."""
    store = store_on("moto")
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        b"<Contents><Key>hosts/web1/a</Key><Size>1</Size></Contents></ListBucketResult>"
    )
    store.proxy.rule("ListObjectsV2", Respond(200, body=page), times=None)
    with pytest.raises(StoreRefused, match="no next page"):
        list(store.bucket().list_objects(PREFIX))


def test_pages_that_bring_nothing_new_come_to_an_end(store_on: Callable[[str], Store]) -> None:
    """H05: a store that names another next page each time, and the same keys on all of them, is given up."""
    store = store_on("moto")
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>%s</NextContinuationToken>"
        b"<Contents><Key>hosts/web1/a</Key><Size>1</Size></Contents></ListBucketResult>"
    )
    for number in range(PAGES_BARREN_MAX):
        store.proxy.rule("ListObjectsV2", Respond(200, body=page % (b"odd", b"even")[number % 2]))
    store.proxy.rule("ListObjectsV2", Respond(200, body=page % b"last"), times=None)
    with pytest.raises(StoreRefused, match="does not end"):
        list(store.bucket().list_objects(PREFIX))
    assert PAGES_BARREN_MAX <= len(store.proxy.history("ListObjectsV2")) <= PAGES_BARREN_MAX + 1  # the last just ends


def test_foreign_keys_in_a_listing_are_refused(store_on: Callable[[str], Store]) -> None:
    """H05: a key outside of the prefix that was asked for makes the listing worthless."""
    store = store_on("moto")
    page = b"<ListBucketResult><Contents><Key>etc/passwd</Key><Size>1</Size></Contents></ListBucketResult>"
    store.proxy.rule("ListObjectsV2", Respond(200, body=page), times=None)
    with pytest.raises(StoreRefused, match="not asked for"):
        list(store.bucket().list_objects(PREFIX))


@pytest.mark.parametrize("status", [403, 503])
def test_head_without_a_body_is_understood(store_on: Callable[[str], Store], status: int) -> None:
    """A HEAD has no error body: its status alone decides between denied and try again."""
    store = store_on("seaweed")
    store.proxy.rule("HeadObject", Respond(status, None), times=None)
    with pytest.raises(AccessDenied if status == 403 else StoreUnavailable):
        store.bucket(retry_for="0s").head(KEY)


def test_head_with_a_skewed_clock(store_on: Callable[[str], Store]) -> None:
    """S07: a HEAD that is forbidden by a server whose clock is far off blames the clock."""
    store = store_on("seaweed")
    store.proxy.rule("HeadObject", Respond(403, None, headers={"Date": "Thu, 01 Jan 2015 00:00:00 GMT"}))
    with pytest.raises(ClockSkewed):
        store.bucket().head(KEY)


def test_check_finds_the_reason(store_on: Callable[[str], Store]) -> None:
    """`check` names wrong keys, a missing bucket and a refused listing, and is content with a refused HEAD."""
    store = store_on("seaweed")
    with pytest.raises(BucketMissing):
        store.bucket(bucket="b2s-is-not-there").check()
    store.proxy.rule("HeadBucket", Respond(403, None))
    store.bucket().check()
    store.proxy.rule("HeadBucket", Respond(403, None))
    store.proxy.rule("ListObjectsV2", Respond(403, "AccessDenied"))
    with pytest.raises(AccessDenied, match="s3:ListBucket"):
        store.bucket().check()


def test_wrong_keys(store_on: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server that refuses our keys is reported as wrong credentials, without the secret."""
    store = store_on("seaweed")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong-secret")
    with pytest.raises(CredentialsMissing) as caught:
        store.bucket().check()
    assert "canary-wrong-secret" not in repr((caught.value.message, caught.value.hint, caught.value.context))


def test_archived_object_is_named_as_such(store_on: Callable[[str], Store]) -> None:
    """S14: reading a cold object and asking for one that is on its way are both understood."""
    store = store_on("seaweed")
    bucket = store.bucket()
    bucket.put_new(MANIFEST, b"{}")
    store.proxy.rule("GetObject", Respond(403, "InvalidObjectState"))
    with pytest.raises(ObjectArchived):
        bucket.get(MANIFEST, 10)
    ongoing = RewriteHeaders({"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'})
    store.proxy.rule("HeadObject", ongoing)
    assert bucket.head(MANIFEST).retrieval is Retrieval.ONGOING
    store.proxy.rule("HeadObject", RewriteHeaders({"x-amz-storage-class": "GLACIER_IR"}))
    assert bucket.head(MANIFEST).retrieval is Retrieval.NOT_NEEDED
    tiered = RewriteHeaders(
        {"x-amz-storage-class": "INTELLIGENT_TIERING", "x-amz-archive-status": "DEEP_ARCHIVE_ACCESS"}
    )
    store.proxy.rule("HeadObject", tiered)
    cold = bucket.head(MANIFEST)
    assert cold.retrieval is Retrieval.COLD
    store.proxy.rule("RestoreObject", Respond(409, "RestoreAlreadyInProgress"), times=2)
    bucket.request_retrieval(cold, 3, "Standard")
    bucket.request_retrieval(replace(cold, storage_class="GLACIER"), 3, "Standard")
    tiered_bytes, glacier_bytes = (call.request_bytes for call in store.proxy.history("RestoreObject"))
    assert glacier_bytes - tiered_bytes == len("<Days>3</Days>")  # which S3 refuses for the former
    store.proxy.rule("RestoreObject", Respond(503, "GlacierExpeditedRetrievalNotAvailable"))
    with pytest.raises(StoreRefused) as caught:
        bucket.request_retrieval(cold, 3, "Expedited")
    assert caught.value.hint is not None and "--tier" in caught.value.hint


def test_store_without_conditional_writes(store_on: Callable[[str], Store]) -> None:
    """S11: a store that answers 501 to If-None-Match is written to without it."""
    store = store_on("seaweed")
    store.proxy.rule("PutObject", Respond(501, "NotImplemented"))
    store.bucket().put_new(MANIFEST, b"{}")
    first, second = store.calls("PutObject", 2)
    assert first.headers["if-none-match"] == "*" and "if-none-match" not in second.headers


def test_conditional_conflict_is_looked_at_again(store_on: Callable[[str], Store]) -> None:
    """S11: 409 and 412 on a manifest that was written after all are success."""
    store = store_on("seaweed")
    store.proxy.rule("PutObject", Respond(409, "ConditionalRequestConflict", forward=True), key="1.json")
    store.proxy.rule("PutObject", Respond(412, "PreconditionFailed", forward=True), key="2.json")
    for key in (MANIFEST, MANIFEST.replace("1.json", "2.json")):
        store.bucket().put_new(key, b"{}")
        assert store.stored(key) == b"{}"


def test_silent_server_is_bounded(store_on: Callable[[str], Store]) -> None:
    """S07: a server that never answers costs the read timeout, and `retry_for` ends it."""
    store = store_on("seaweed")
    store.proxy.rule("HeadObject", Hold(30), times=None)
    with pytest.raises(StoreUnavailable):
        store.bucket(read_timeout="200ms", retry_for="500ms").head(KEY)
    assert len(store.retries) >= 1


def test_dripping_server_is_given_up(store_on: Callable[[str], Store]) -> None:
    """S07: a connection that moves next to nothing over the stall time is dropped and made again."""
    store = store_on("seaweed")
    whole = upload_whole(store)
    bucket = store.bucket(stall_timeout="1s")
    etag = bucket.head(KEY).etag
    store.proxy.rule("GetObject", Drip(1024.0))
    buffer = bytearray(len(whole))
    bucket.get_range(KEY, etag, 0, memoryview(buffer))
    assert buffer == whole
    assert [type(error) for error in store.retries] == [StoreUnavailable]
