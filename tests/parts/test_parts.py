"""Prove the parts the other tests stand on."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, ResponseStreamingError

from . import faults, invariants, workspace
from .loopfs import LoopFilesystem
from .proxy import FaultProxy
from .s3_requests import parse_request
from .servers import ACCESS_KEY, CANARY_SECRET, MotoServer, RcloneServer, S3Server, SeaweedServer, s3_client
from .tree import change_tree, differences, nasty_tree, tree_digest

MIB = 1 << 20
BucketOn = Callable[[S3Server], str]
ProxyTo = Callable[[S3Server], FaultProxy]


def test_loop_filesystem_leaves_nothing(loopfs: Callable[..., LoopFilesystem]) -> None:
    """A filesystem has subvolumes and options, and close takes mount, device and image away, also when busy."""
    filesystem = loopfs(size_bytes=256 * MIB, options=("compress=zstd",))
    nested = filesystem.subvolume("data").joinpath("x")
    filesystem.subvolume("data/x")
    assert nested.stat().st_ino == 256
    filesystem.remount("ro")
    with pytest.raises(OSError, match="Read-only"):
        (nested / "file").touch()
    filesystem.remount("rw")
    filesystem.remount()
    user = subprocess.Popen(["sleep", "60"], cwd=nested)
    filesystem.close()
    assert user.wait(timeout=5) == -signal.SIGKILL
    assert not filesystem.directory.exists()
    assert not workspace.mounts_below(filesystem.directory)
    workspace.poll(lambda: not workspace.loops_backed_by(filesystem.directory), seconds=5, what="loop device detached")


def test_leftovers_of_a_killed_run_are_removed(loopfs: Callable[..., LoopFilesystem]) -> None:
    """What a killed run left is swept by the next, what a living one has is not."""
    mine = loopfs(size_bytes=128 * MIB)
    code = "import os; from tests.parts.loopfs import *; print(LoopFilesystem(size_bytes=128 * MIB).directory); "
    code += "import sys; sys.stdout.flush(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert workspace.mounts_below(left)
    workspace.remove_leftovers()
    assert not left.exists()
    assert not workspace.mounts_below(left)
    assert workspace.mounts_below(mine.directory)


def test_nasty_tree_survives_send_and_receive(loopfs: Callable[..., LoopFilesystem]) -> None:
    """A full and two incrementals received on a second filesystem have the digest of their snapshots."""
    source, target = loopfs(), loopfs()
    data = source.subvolume("data")
    nasty_tree(data, seed=1, size_bytes=4 * MIB)
    previous: Path | None = None
    for number in range(3):
        if number:
            change_tree(data, seed=number)
        snapshot = source.snapshot(data, f"snapshot-{number}")
        parent = ["-p", str(previous)] if previous else []
        send = subprocess.Popen(["btrfs", "-q", "send", *parent, str(snapshot)], stdout=subprocess.PIPE)
        subprocess.run(["btrfs", "-q", "receive", str(target.path)], stdin=send.stdout, check=True)
        assert send.stdout is not None
        send.stdout.close()
        assert send.wait(timeout=10) == 0
        before, after = tree_digest(snapshot), tree_digest(target.path / snapshot.name)
        assert len(before) > 150
        assert differences(before, after) == []
        assert before == after
        previous = snapshot


def test_digest_sees_every_kind_of_change(loopfs: Callable[..., LoopFilesystem]) -> None:
    """Each attribute a restore could lose changes the digest, and a nested subvolume is left out."""
    filesystem = loopfs()
    data = filesystem.subvolume("data")
    nasty_tree(data, size_bytes=MIB)
    nasty = tree_digest(data)
    kinds = {entry.kind for entry in nasty.values()}
    assert kinds == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK}
    xattrs = {name for entry in nasty.values() for name, _ in entry.xattrs}
    assert {"security.capability", "system.posix_acl_access", "system.posix_acl_default", "user.text"} <= xattrs
    filesystem.subvolume("data/nested")
    os.utime(data)
    assert differences(nasty, tree_digest(data)) == []
    file = data / "data/random-0"
    time_before = file.stat().st_mtime_ns
    with file.open("r+b") as stream:
        stream.write(b"\0")
    os.utime(file, ns=(time_before, time_before))
    changed = tree_digest(data)
    assert [line.split(" was")[0] for line in differences(nasty, changed)] == ["b'data/random-0': content_sha256"]
    (data / "hard-link-1").unlink()
    (data / "hard-link-1").write_bytes((data / "hard-link-2").read_bytes())
    lines = differences(changed, tree_digest(data))
    assert any("hard-link-1': linked_to" in line for line in lines)


@pytest.fixture(params=["seaweed", "rclone", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each server in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, S3Server)
    return found


def test_server_stores_parts(server: S3Server, bucket_on: BucketOn) -> None:
    """Each server takes a multipart upload and gives it back whole."""
    client, bucket = server.client(), bucket_on(server)
    upload = client.create_multipart_upload(Bucket=bucket, Key="a/b")["UploadId"]
    assert [key for key, _ in invariants.open_uploads(client, bucket)] == ["a/b"]
    bodies = [os.urandom(5 * MIB), b"end"]
    parts = []
    for number, body in enumerate(bodies, start=1):
        part = client.upload_part(Bucket=bucket, Key="a/b", UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    client.complete_multipart_upload(
        Bucket=bucket,
        Key="a/b",
        UploadId=upload,
        MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
    )
    assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"".join(bodies)
    assert invariants.open_uploads(client, bucket) == []
    assert invariants.object_keys(client, bucket) == ["a/b"]


def test_server_checks_signatures(seaweed: SeaweedServer, rclone: RcloneServer) -> None:
    """A wrong secret is refused, so a test that passes did use the canary."""
    for server in (seaweed, rclone):
        client = s3_client(server.endpoint_url, secret_key="wrong")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client.list_objects_v2(Bucket="b2s-ready")
        client.close()
    invariants.assert_not_in_process_list(CANARY_SECRET)


def test_moto_knows_archive_classes(moto: MotoServer, bucket_on: BucketOn) -> None:
    """An archived object answers InvalidObjectState until RestoreObject."""
    client, bucket = moto.client(), bucket_on(moto)
    client.put_object(Bucket=bucket, Key="cold", Body=b"x", StorageClass="DEEP_ARCHIVE")
    with pytest.raises(ClientError, match="InvalidObjectState"):
        client.get_object(Bucket=bucket, Key="cold")
    client.restore_object(Bucket=bucket, Key="cold", RestoreRequest={"Days": 1})
    assert client.get_object(Bucket=bucket, Key="cold")["Body"].read() == b"x"


def test_server_dies_with_its_parent() -> None:
    """A server of a test run that was killed ends by itself."""
    code = (
        "import os; from tests.parts.servers import *; print(RcloneServer().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(killed.stdout)
    workspace.poll(lambda: not psutil.pid_exists(pid), seconds=5, what="server gone")
    workspace.remove_leftovers()


def test_requests_are_told_apart() -> None:
    """Every operation b2s uses is recognised."""
    known = {
        ("PUT", "/b/k/1?partNumber=7&uploadId=u"): "UploadPart",
        ("PUT", "/b/k%20x"): "PutObject",
        ("POST", "/b/k?uploads"): "CreateMultipartUpload",
        ("POST", "/b/k?uploadId=u"): "CompleteMultipartUpload",
        ("DELETE", "/b/k?uploadId=u"): "AbortMultipartUpload",
        ("GET", "/b/k?uploadId=u&max-parts=5"): "ListParts",
        ("GET", "/b?uploads&prefix=x"): "ListMultipartUploads",
        ("GET", "/b?list-type=2&prefix=x"): "ListObjectsV2",
        ("GET", "/b/k"): "GetObject",
        ("HEAD", "/b/k"): "HeadObject",
        ("HEAD", "/b"): "HeadBucket",
        ("POST", "/b/k?restore"): "RestoreObject",
        ("DELETE", "/b/k"): "DeleteObject",
    }
    assert {request: parse_request(*request).operation for request in known} == known
    assert parse_request("PUT", "/b/k/1?partNumber=7&uploadId=u").part_number == 7
    assert parse_request("PUT", "/b/k%20x").key == "k x"


class ProxiedBucket:
    """A bucket on rclone seen through a proxy, by a client that never repeats a call."""

    def __init__(self, server: S3Server, proxy: FaultProxy, bucket: str) -> None:
        self.proxy, self.bucket, self.direct = proxy, bucket, server.client()
        self.client = s3_client(proxy.endpoint_url, retries=1)

    def put(self, key: str, body: bytes) -> None:
        """PutObject."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        """GetObject, read to its end."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


@pytest.fixture
def proxied(rclone: RcloneServer, proxy: ProxyTo, bucket_on: BucketOn) -> Iterator[ProxiedBucket]:
    """A fresh bucket behind a fresh proxy."""
    found = ProxiedBucket(rclone, proxy(rclone), bucket_on(rclone))
    yield found
    found.client.close()


def test_proxy_passes_and_records(proxied: ProxiedBucket) -> None:
    """Without a rule everything passes unchanged and the history tells what did."""
    body = os.urandom(3 * MIB)
    proxied.put("key", body)
    assert hashlib.sha256(proxied.get("key")).digest() == hashlib.sha256(body).digest()
    put, get = proxied.proxy.history()
    assert (put.operation, put.key, put.status, put.request_bytes) == ("PutObject", "key", 200, len(body))
    assert (get.operation, get.status, get.response_bytes) == ("GetObject", 200, len(body))
    assert ACCESS_KEY in put.headers["authorization"]


def test_proxy_answers_instead(proxied: ProxiedBucket) -> None:
    """The n-th call gets the given answer, and reaches the server only if it is to be forwarded."""
    refuse = proxied.proxy.rule("PutObject", faults.Respond(403, "AccessDenied"), nth=2)
    proxied.put("first", b"1")
    with pytest.raises(ClientError, match="AccessDenied"):
        proxied.put("second", b"2")
    proxied.put("third", b"3")
    assert (refuse.seen, refuse.hits) == (3, 1)
    proxied.proxy.rule("PutObject", faults.Respond(500, "InternalError", forward=True))
    with pytest.raises(ClientError, match="InternalError"):
        proxied.put("fourth", b"4")
    assert invariants.object_keys(proxied.direct, proxied.bucket) == ["first", "fourth", "third"]
    # A call ends after its answer was sent, and so perhaps after the client has read it.
    workspace.poll(lambda: len(proxied.proxy.history("PutObject")) == 4, seconds=5, what="four calls have ended")
    assert [call.upstream_status for call in proxied.proxy.history("PutObject")] == [200, None, 200, 200]


def test_proxy_breaks_connections(proxied: ProxiedBucket) -> None:
    """A reply is dropped after the call was done, and bodies break off after so many bytes either way."""
    proxied.proxy.rule("PutObject", faults.DropReply(), key="dropped")
    proxied.proxy.rule("PutObject", faults.ResetUp(MIB), key="half")
    with pytest.raises(HTTPClientError):
        proxied.put("dropped", b"x")
    with pytest.raises(HTTPClientError):
        proxied.put("half", os.urandom(4 * MIB))
    assert invariants.object_keys(proxied.direct, proxied.bucket) == ["dropped"]
    assert proxied.proxy.history(key="half")[0].request_bytes == MIB
    proxied.put("whole", os.urandom(4 * MIB))
    proxied.proxy.rule("GetObject", faults.ResetDown(MIB))
    with pytest.raises((ResponseStreamingError, HTTPClientError)):
        proxied.get("whole")
    assert proxied.proxy.history("GetObject")[0].response_bytes == MIB
    assert len(proxied.get("whole")) == 4 * MIB


def test_proxy_flips_bits(proxied: ProxiedBucket) -> None:
    """Exactly the chosen bit changes, once or always."""
    proxied.put("key", bytes(1000))
    proxied.proxy.rule("GetObject", faults.FlipDown(offset=700, bit=3))
    assert proxied.get("key") == bytes(700) + b"\x08" + bytes(299)
    assert proxied.get("key") == bytes(1000)
    proxied.proxy.rule("PutObject", faults.FlipUp(offset=9), times=None)
    for key in ("one", "two"):
        proxied.put(key, bytes(10))
        stored = proxied.direct.get_object(Bucket=proxied.bucket, Key=key)["Body"].read()
        assert stored == bytes(9) + b"\x01"  # rclone verifies nothing it is not asked to


def test_proxy_holds_until_released(proxied: ProxiedBucket) -> None:
    """A held call is in flight and not done; released it goes on."""
    hold = faults.Hold()
    proxied.proxy.rule("PutObject", hold)
    thread = threading.Thread(target=proxied.put, args=("key", b"x"))
    thread.start()
    workspace.poll(lambda: bool(proxied.proxy.in_flight("PutObject")), seconds=5, what="call held")
    assert invariants.object_keys(proxied.direct, proxied.bucket) == []
    hold.release()
    thread.join(5)
    assert proxied.get("key") == b"x"


def test_proxy_rewrites_head_and_drips(proxied: ProxiedBucket) -> None:
    """Headers of the answer change, and a body comes no faster than told."""
    proxied.put("key", bytes(2000))
    archive = {"x-amz-storage-class": "DEEP_ARCHIVE", "x-amz-restore": 'ongoing-request="true"'}
    proxied.proxy.rule("HeadObject", faults.RewriteHeaders(archive))
    head = proxied.client.head_object(Bucket=proxied.bucket, Key="key")
    assert (head["StorageClass"], head["Restore"]) == ("DEEP_ARCHIVE", 'ongoing-request="true"')
    proxied.proxy.rule("GetObject", faults.Drip(10_000))
    started = time.monotonic()
    assert proxied.get("key") == bytes(2000)
    assert time.monotonic() - started > 0.15


def test_proxy_refuses_and_fails_at_random(proxied: ProxiedBucket) -> None:
    """A refusing proxy lets nothing through; random faults are the same for the same seed."""
    proxied.proxy.refusing = True
    with pytest.raises(BotoCoreError):
        proxied.put("key", b"x")
    proxied.proxy.refusing = False
    assert proxied.proxy.history() == []
    first, second = faults.RandomFaults(7, 0.3), faults.RandomFaults(7, 0.3)
    drawn = [first.next() for _ in range(100)]
    assert drawn == [second.next() for _ in range(100)]
    assert 15 < sum(fault is not None for fault in drawn) < 45
    proxied.proxy.fail_randomly(1, 1.0)
    with pytest.raises((BotoCoreError, ClientError)):
        proxied.put("key", b"x")


def test_complete_answers_an_error_with_status_200(proxied: ProxiedBucket) -> None:
    """Complete can answer 200 with an error inside, or with nothing."""
    upload = proxied.client.create_multipart_upload(Bucket=proxied.bucket, Key="k")["UploadId"]
    part = proxied.client.upload_part(Bucket=proxied.bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
    proxied.proxy.rule("CompleteMultipartUpload", faults.Respond(200, "InternalError"))
    proxied.proxy.rule("CompleteMultipartUpload", faults.Respond(200, body=b""))
    arguments = {"MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}, "UploadId": upload}
    with pytest.raises(ClientError, match="InternalError"):
        proxied.client.complete_multipart_upload(Bucket=proxied.bucket, Key="k", **arguments)  # type: ignore[arg-type]
    empty = proxied.client.complete_multipart_upload(Bucket=proxied.bucket, Key="k", **arguments)  # type: ignore[arg-type]
    assert "ETag" not in empty
    assert proxied.proxy.received_part_bytes() == 1
    assert invariants.object_keys(proxied.direct, proxied.bucket) == []


def test_leftovers_are_noticed(tmp_path: Path) -> None:
    """A process, a memory spool and a lock that stay are named, and a clean end is not."""
    before = invariants.observe()
    invariants.no_leftovers(before, tmp_path / "lock")
    process = subprocess.Popen(["sleep", "60"])
    with pytest.raises(AssertionError, match=f"process {process.pid} sleep 60"):
        invariants.no_leftovers(before, seconds=0)
    process.kill()
    process.wait()
    spool = Path(f"/dev/shm/b2s-test-parts-{os.getpid()}")
    spool.mkdir()
    (tmp_path / "lock").touch()
    with pytest.raises(AssertionError, match=rf"spool {spool}; path .*lock"):
        invariants.no_leftovers(before, tmp_path / "lock", seconds=0)
    spool.rmdir()
    invariants.no_leftovers(before)


def test_secrets_are_noticed(tmp_path: Path, aws_env: Callable[[S3Server], None], rclone: RcloneServer) -> None:
    """The canary is in the environment, and found in a text, a file and a tree."""
    aws_env(rclone)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == CANARY_SECRET
    invariants.assert_no_secret(CANARY_SECRET, "text", b"bytes", tmp_path)
    (tmp_path / "log").write_text(f"x {CANARY_SECRET} y")
    for place in (f"a{CANARY_SECRET}", tmp_path, tmp_path / "log"):
        with pytest.raises(AssertionError, match="the secret is in"):
            invariants.assert_no_secret(CANARY_SECRET, place)
