"""What networks and stores do to a backup (rows S): it rides it out, or fails soon, with a hint, resumable."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, SOURCE, Rig
from tests.fault.test_kills import CHUNKS, MANIFESTS, held
from tests.parts import workspace
from tests.parts.faults import DropReply, Fault, FlipUp, Hold, ResetUp, Respond

CUT_XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<CompleteMultipartUploadResult><Loca'
BOTH_STORES = pytest.mark.parametrize("server", ["seaweed", "rclone"])


def metrics_of(rig: Rig) -> dict[str, Any]:
    """Return the metrics of the newest run."""
    (metrics,) = rig.runs[-1].named("backup_metrics")
    return metrics


def test_throttling_and_errors_are_ridden_out(rig: Rig) -> None:
    """S01: SlowDown, 500 on each third call and 429; the run finishes and says what it tried again."""
    rig.proxy.rule("UploadPart", Respond(503, "SlowDown"), times=4, key=CHUNKS)
    for _ in range(4):
        rig.proxy.rule(None, Respond(500, "InternalError"), nth=3)
    rig.proxy.rule(None, Respond(429, "TooManyRequests"), nth=8, times=2)
    run = rig.run_clean()
    assert len(run.named("part_retried")) >= 8
    assert metrics_of(rig)["retries"] >= 4
    rig.check()


def test_waiting_as_asked_is_no_stall(make_rig: MakeRig) -> None:
    """S01: an uploader that waits before another try, or for its turn to send, is not taken for one that hangs."""
    rig = make_rig(data_bytes=11 * MIB, s3={"stall_timeout": "4s", "max_bandwidth": 4 * MIB})
    slow_down = Respond(503, "SlowDown", headers={"Retry-After": "9"})
    rig.proxy.rule("UploadPart", slow_down, key=CHUNKS, times=2)
    run = rig.run_clean()
    assert run.named("part_retried") != []
    assert run.named("worker_stalled") == []
    rig.check()


def test_outage_longer_than_retry_for(rig: Rig) -> None:
    """S01, S07: a store that stays away ends the run, resumable; the next one goes on."""
    rig.write_config(s3={"retry_for": "2s"})
    wait = held(rig, "UploadPart", CHUNKS, nth=4)
    run = rig.start()
    wait(run)
    rig.proxy.refusing = True
    rig.proxy.rule(None, ResetUp(), times=None)
    rig.proxy.clear()
    rig.proxy.rule(None, ResetUp(), times=None)
    run.wait(40)
    last = rig.assert_failed(run)
    assert last["hint"], last
    rig.assert_nothing_runs()
    rig.proxy.clear()
    rig.proxy.refusing = False
    assert rig.run_clean().wait_event("backup_resumed")["reused_bytes"] > 0
    rig.check()


@BOTH_STORES
def test_resets_in_mid_part(make_rig: MakeRig, server: str) -> None:
    """S02: at most one part is sent again per reset."""
    rig = make_rig(data_bytes=22 * MIB, server=server)
    resets = [0, 1, 64 * 1024, MIB, SEGMENT - 1]
    for number, offset in enumerate(resets):
        rig.proxy.rule("UploadPart", ResetUp(offset), key=CHUNKS, nth=1 + number % 2)
    rig.run_clean()
    metrics = metrics_of(rig)
    assert metrics["uploaded_bytes"] == metrics["total_bytes"]
    assert rig.part_bytes() <= metrics["total_bytes"] + len(resets) * SEGMENT
    rig.check()


STRANGE_ANSWERS: list[Fault] = [
    Respond(200, "InternalError", forward=forward) if body is None else Respond(200, body=body, forward=forward)
    for body in (None, b" \n \n", CUT_XML, b"")
    for forward in (False, True)
]


@BOTH_STORES
def test_strange_answers_to_complete(make_rig: MakeRig, server: str) -> None:
    """S03: 200 with an error, with white space, cut, empty, whether it was done or not: only HEAD decides."""
    rig = make_rig(data_bytes=8 * SEGMENT, server=server, s3={"chunk_size": SEGMENT})
    for number, fault in enumerate(STRANGE_ANSWERS):
        rig.proxy.rule("CompleteMultipartUpload", fault, key=f"/{number:06}")
    rig.run_clean()
    hit = [call for call in rig.proxy.history("CompleteMultipartUpload") if call.fault is not None]
    assert len(hit) == len(STRANGE_ANSWERS)
    rig.check()


@pytest.mark.parametrize("body", [None, b"", CUT_XML], ids=["error", "empty", "cut"])
def test_complete_that_never_happens(make_rig: MakeRig, body: bytes | None) -> None:
    """S03: a store that says 200 and has no object never gets a manifest."""
    rig = make_rig(data_bytes=6 * MIB, s3={"retry_for": "1s"})
    rig.proxy.rule("CompleteMultipartUpload", Respond(200, "InternalError", body=body), times=None)
    rig.assert_failed(rig.run())
    assert rig.stored.manifests() == []
    rig.assert_nothing_runs()
    rig.check()


@BOTH_STORES
def test_lost_replies(make_rig: MakeRig, server: str) -> None:
    """S04: every kind of call done with its reply lost; one logical copy, exit 0."""
    rig = make_rig(data_bytes=22 * MIB, server=server)
    for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"):
        rig.proxy.rule(operation, DropReply(), key=CHUNKS)
        rig.proxy.rule(operation, Respond(500, "InternalError", forward=True), key=CHUNKS, nth=2)
    rig.proxy.rule("PutObject", DropReply(), key=MANIFESTS)
    rig.proxy.rule("GetObject", DropReply(), key=MANIFESTS)
    run = rig.run_clean()
    assert len(run.named("manifest_committed")) == 1
    assert len(rig.stored.manifests()) == 1
    rig.check()


def _flip_bits(rig: Rig, offsets: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    for part_number in range(1, 9):
        for offset in (*offsets, rng.randrange(3 * MIB)):
            rig.proxy.rule("UploadPart", FlipUp(offset, rng.randrange(8)), key=CHUNKS, part_number=part_number)
    for offset in (0, 100, 500):
        rig.proxy.rule("PutObject", FlipUp(offset, 3), key=MANIFESTS)


def test_bits_flipped_in_flight(make_rig: MakeRig) -> None:
    """S05: one bit at forty positions of parts, and in the manifest; what is stored is what was sent."""
    rig = make_rig(data_bytes=38 * MIB, s3={"chunk_size": 8 * SEGMENT})
    _flip_bits(rig, (0, 1, SEGMENT // 2, 2 * MIB), seed=5)
    run = rig.run_clean()
    flipped = [call for call in rig.proxy.history() if isinstance(call.fault, FlipUp)]
    assert len(flipped) == 43
    assert len(run.named("part_retried")) >= 40
    rig.check()


def test_bits_flipped_on_the_way_to_the_plainest_store(make_rig: MakeRig) -> None:
    """S05: rclone destroys a multipart upload that got a damaged part: the run begins it anew, or the next one."""
    rig = make_rig(data_bytes=38 * MIB, server="rclone", s3={"chunk_size": 8 * SEGMENT})
    _flip_bits(rig, (), seed=6)
    for _ in range(8):
        if rig.run().process.returncode == 0:
            break
        rig.assert_failed(rig.runs[-1])
    flipped = [call for call in rig.proxy.history() if isinstance(call.fault, FlipUp)]
    assert len(flipped) == 11
    rig.check()


def test_silent_server(make_rig: MakeRig) -> None:
    """S07: a server that stops talking is left after `read_timeout`, and asked again."""
    rig = make_rig(data_bytes=6 * MIB, s3={"read_timeout": "1s"})
    rig.proxy.rule("UploadPart", Hold(20), key=CHUNKS, times=2)
    rig.proxy.rule("PutObject", Hold(20, reply=True), key=MANIFESTS)
    rig.run_clean()
    rig.check()


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Respond(403, "RequestTimeTooSkewed"), "clock"),
        (Respond(403, "SignatureDoesNotMatch"), "secret"),
        (Respond(403, "InvalidAccessKeyId"), "key"),
        (Respond(400, "ExpiredToken"), "credential"),
    ],
    ids=lambda value: value.code if isinstance(value, Respond) else "",
)
def test_rejected_credentials_in_mid_run(make_rig: MakeRig, answer: Respond, word: str) -> None:
    """S07, S08: skew and credentials that nothing renews fail at once, with a hint, and can be resumed."""
    rig = make_rig(data_bytes=22 * MIB)
    rig.proxy.rule("UploadPart", answer, key=CHUNKS, nth=3, times=None)
    run = rig.run(seconds=60)
    last = rig.assert_failed(run)
    assert word in f"{last['error']} {last['hint']}".lower(), last
    assert rig.stored.manifests() == []
    rig.check()


DENIED = {
    "ListObjectsV2": "",
    "ListMultipartUploads": "",
    "CreateMultipartUpload": CHUNKS,
    "UploadPart": CHUNKS,
    "CompleteMultipartUpload": CHUNKS,
    "HeadObject": CHUNKS,
    "PutObject": MANIFESTS,
}


def test_denied_actions(make_rig: MakeRig) -> None:
    """S09: one action after the other is denied: exit 1, at once, naming what may not be done."""
    rig = make_rig(data_bytes=6 * MIB)
    for operation, key in DENIED.items():
        rig.proxy.clear()
        rule = rig.proxy.rule(operation, Respond(403, "AccessDenied"), key=key, times=None)
        run = rig.run(seconds=60)
        assert rule.hits, f"{operation} was never called"
        assert run.process.returncode, f"{operation} was denied and nobody noticed"
        last = rig.assert_failed(run)
        assert operation in f"{last['error']} {last['hint']}", last
        assert last["hint"], last
        assert rule.hits <= 4, f"{operation} was tried again {rule.hits} times"
        assert rig.stored.manifests() == []
    rig.check()


def test_upload_aborted_from_outside(rig: Rig) -> None:
    """S10: a lifecycle rule aborts the upload under way; a new one is made and the run finishes."""
    wait = held(rig, "UploadPart", CHUNKS, nth=4)
    run = rig.start()
    wait(run)
    for key, upload_id in rig.open_uploads():
        rig.client.abort_multipart_upload(Bucket=rig.bucket, Key=key, UploadId=upload_id)
    rig.proxy.clear()
    assert run.wait() == 0, run.tail()
    rig.check()


def test_upload_aborted_between_runs(rig: Rig) -> None:
    """S10: the upload of an interrupted backup is gone when it is resumed."""
    wait = held(rig, "UploadPart", CHUNKS, nth=4)
    run = rig.start()
    wait(run)
    run.kill()
    for key, upload_id in rig.open_uploads():
        rig.client.abort_multipart_upload(Bucket=rig.bucket, Key=key, UploadId=upload_id)
    rig.check()
    assert len(rig.stored.manifests()) == 1


def test_missing_bucket(make_rig: MakeRig) -> None:
    """S10: it fails at once, changes nothing, and the bucket is not made."""
    rig = make_rig(data_bytes=MIB)
    rig.write_config(s3={"bucket": "b2s-not-there"})
    last = rig.assert_failed(rig.run(seconds=60))
    assert "b2s-not-there" in last["error"]
    assert rig.own_snapshots() == []
    assert "b2s-not-there" not in [bucket["Name"] for bucket in rig.client.list_buckets()["Buckets"]]
    rig.write_config(s3={"bucket": rig.bucket})
    rig.check()


def test_uploads_of_others_stay(make_rig: MakeRig) -> None:
    """S13: what lies open under our source is aborted, what belongs to another source or host is not touched."""
    rig = make_rig(data_bytes=MIB)
    keys = {
        "own": f"{rig.prefix}/{SOURCE}/chunks/20200101T000000Z-full-00000000/000000",
        "other source": f"{rig.prefix}/{SOURCE}2/chunks/20200101T000000Z-full-00000000/000000",
        "other prefix": f"{rig.prefix}-other/{SOURCE}/chunks/20200101T000000Z-full-00000000/000000",
    }
    uploads = {
        name: rig.client.create_multipart_upload(Bucket=rig.bucket, Key=key)["UploadId"] for name, key in keys.items()
    }
    rig.run_clean()
    left = {key for key, _ in rig.open_uploads()}
    assert left == {keys["other source"], keys["other prefix"]}
    rig.client.abort_multipart_upload(
        Bucket=rig.bucket, Key=keys["other source"], UploadId=uploads["other source"]
    )  # raises when it is gone
    rig.client.abort_multipart_upload(Bucket=rig.bucket, Key=keys["other prefix"], UploadId=uploads["other prefix"])
    rig.check()


def storm(rig: Rig, backups: int, share: float, seed: int) -> int:
    """Make backups while a share of all calls fails; return how many exited 0."""
    rng = random.Random(seed)
    ended_well = 0
    for number in range(backups):
        rig.fill(rng.choice([1, 6]) * MIB, seed=seed + number)
        rig.proxy.fail_randomly(seed + number, share)
        run = rig.run("--once")
        rig.proxy.clear()
        ended_well += run.process.returncode == 0
        if run.process.returncode == 0:
            rig.check_restores()
        else:
            rig.assert_failed(run)
        rig.assert_nothing_runs()
    return ended_well


def test_random_failures(make_rig: MakeRig) -> None:
    """S15: a sample of the fifty below, with more failures."""
    rig = make_rig(data_bytes=MIB, s3={"retry_for": "20s"})
    assert storm(rig, 3, 0.15, seed=15) >= 1
    rig.check(unreferenced=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_backups_with_random_failures(make_rig: MakeRig) -> None:
    """S15: 5 % of calls fail before or after they worked, fifty backups: every exit 0 restores."""
    rig = make_rig(data_bytes=MIB)
    assert storm(rig, 50, 0.05, seed=50) >= 40
    rig.check(unreferenced=True)


def test_wait_is_used(rig: Rig) -> None:
    """S01: the request rate falls while the store asks to slow down."""
    rig.write_config(s3={"retry_for": "4s"})
    rig.proxy.rule("UploadPart", Respond(503, "SlowDown"), key=CHUNKS, times=None)
    run = rig.run()
    rig.assert_failed(run)
    calls = [call for call in rig.proxy.history("UploadPart", key=CHUNKS) if call.status == 503]
    assert len(calls) < 60, f"{len(calls)} calls in four seconds of back-off by two uploaders"
    workspace.poll(lambda: not rig.proxy.in_flight(), seconds=5, what="the proxy is idle")
    rig.check()
