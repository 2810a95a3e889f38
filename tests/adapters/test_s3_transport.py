"""How requests leave this host: TLS, kept connections, refusals, proxies, the rate limit, credentials."""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from b2s.adapters.bandwidth import Bandwidth
from b2s.adapters.http_bodies import BodyView, Pace, PacedReader
from b2s.adapters.s3 import Bucket
from b2s.core.store_settings import S3Settings
from b2s.errors import BucketMissing, CertificateRejected, CredentialsMissing, StoreRefused, StoreUnavailable
from tests.adapters.conftest import PREFIX, Store, segments_of
from tests.parts.faults import ResetDown, Respond
from tests.parts.proxy import FaultProxy
from tests.parts.servers import S3Server, free_ports

KEY = f"{PREFIX}/data/manifests/00000001.json"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "b2s test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def https_store(store_on: Callable[[str], Store], certificate: Path) -> Iterator[Store]:
    """SeaweedFS behind a proxy that speaks TLS."""
    store = store_on("seaweed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultProxy(store.server.endpoint_url, tls=context) as proxy:
        settings = S3Settings.model_validate({**store.settings.model_dump(), "endpoint_url": proxy.endpoint_url})
        yield Store(store.server, settings, proxy)


def test_https_with_its_own_authority(https_store: Store, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE makes a private certificate good, for parts and objects both ways."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    bucket = https_store.bucket()
    segments = segments_of(5 << 20, 3_000_001)
    upload_id, receipts, facts = https_store.put(bucket, KEY, segments)
    done = bucket.complete_upload(KEY, upload_id, receipts, facts)
    buffer = bytearray(done.bytes)
    bucket.get_range(KEY, done.etag, 0, memoryview(buffer))
    assert buffer == segments[0].body + segments[1].body
    bucket.close()


def test_https_that_reads_ahead(https_store: Store, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What downloads reads the same bytes, ranges of every size on one kept connection, and goes on after a reset."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    segments = segments_of(5 << 20, 3_000_001)
    bucket = Bucket.connect(https_store.settings, downloads=True)
    upload_id, receipts, facts = https_store.put(bucket, KEY, segments)
    done = bucket.complete_upload(KEY, upload_id, receipts, facts)
    content = segments[0].body + segments[1].body
    connection = bucket._transport._connection  # type: ignore[union-attr]
    for first, count in [(0, 1), (7, 16_384), (16_383, 65_537), (5, 1 << 20), (0, len(content)), (len(content) - 1, 1)]:
        buffer = bytearray(count)
        bucket.get_range(KEY, done.etag, first, memoryview(buffer))
        assert buffer == content[first : first + count]
    assert bucket._transport._connection is connection  # type: ignore[union-attr]
    https_store.proxy.rule("GetObject", ResetDown(3_000_000), times=2)
    buffer = bytearray(len(content))
    bucket.get_range(KEY, done.etag, 0, memoryview(buffer))
    assert buffer == content
    bucket.close()


@pytest.mark.parametrize("downloads", [False, True], ids=["", "reading ahead"])
def test_certificate_nobody_knows(https_store: Store, downloads: bool) -> None:
    """S07: a certificate that is not trusted ends the call at once, with a hint."""
    with pytest.raises(CertificateRejected) as caught:
        Bucket.connect(
            https_store.settings, downloads=downloads, on_retry=lambda error, *_: https_store.retries.append(error)
        ).check()
    assert caught.value.hint is not None and "AWS_CA_BUNDLE" in caught.value.hint
    assert not https_store.retries


def test_ca_bundle_that_is_not_there(https_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CA bundle that cannot be read is named."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(StoreRefused, match=r"none\.pem"):
        https_store.bucket().check()


def test_https_to_an_http_port(store_on: Callable[[str], Store]) -> None:
    """An https endpoint that speaks http is not tried for half an hour."""
    store = store_on("moto")
    url = store.server.endpoint_url.replace("http://", "https://")
    with pytest.raises((StoreRefused, StoreUnavailable)):
        store.bucket(endpoint_url=url, retry_for="0s").check()


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://no-such-host.invalid:{port}"])
def test_nobody_there(store_on: Callable[[str], Store], url: str) -> None:
    """S07: a refused connection and an unknown name are tried for `retry_for`, then reported."""
    store = store_on("moto")
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.bucket(endpoint_url=url.format(port=port), retry_for="1s", connect_timeout="1s").check()
    assert time.monotonic() - began < 15
    assert store.retries
    assert caught.value.hint is not None


def test_connections_are_kept(store_on: Callable[[str], Store]) -> None:
    """Calls one after the other use one connection, also after errors and unread bodies."""
    store = store_on("seaweed")
    bucket = store.bucket()
    bucket.put_new(KEY, b"x" * 100_000)
    connection = bucket._transport._connection  # type: ignore[union-attr]
    assert connection is not None
    store.proxy.rule("HeadBucket", Respond(404, "NoSuchBucket"))
    with pytest.raises(BucketMissing):
        bucket.check()
    assert len(bucket.get(KEY, 100_000)) == 100_000
    assert bucket._transport._connection is connection  # type: ignore[union-attr]
    with pytest.raises(StoreRefused):
        bucket.get(KEY, 10)
    assert bucket.head(KEY).bytes == 100_000
    assert not store.retries


def test_connection_closed_meanwhile(store_on: Callable[[str], Store]) -> None:
    """A kept connection that the server closed is replaced without a failed try."""
    store = store_on("seaweed")
    bucket = store.bucket()
    bucket.check()
    sock = bucket._transport._connection.sock  # type: ignore[union-attr]
    store.proxy.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            sock.recv(1)
            break
        except TimeoutError:
            continue
    bucket._retrier.retry_for_seconds = 0
    with pytest.raises(StoreUnavailable, match="refused"):
        bucket.check()


def test_http_proxy_is_used(store_on: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy from the environment botocore sends itself; here nobody listens there."""
    store = store_on("moto")
    (port,) = free_ports(1)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match=r"(?i)proxy"):
        store.bucket(retry_for="0s").check()
    assert store.proxy.history() == []


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(
    store_on: Callable[[str], Store], proxy: Callable[[S3Server], FaultProxy], status: int
) -> None:
    """H05: a store that points to another host gets an error; nothing is sent there, signed or not."""
    store = store_on("moto")
    elsewhere = proxy(store.server)
    headers = {"Location": f"{elsewhere.endpoint_url}/x", "x-amz-bucket-region": "eu-west-1"}
    for operation in ("HeadBucket", "ListObjectsV2", "GetObject", "HeadObject"):
        store.proxy.rule(operation, Respond(status, "PermanentRedirect", headers=headers), times=None)
    bucket = store.bucket()
    calls: list[Callable[[], object]] = [
        bucket.check,
        lambda: list(bucket.list_objects(PREFIX)),
        lambda: bucket.get(KEY, 1),
        lambda: bucket.head(KEY),
    ]
    for call in calls:
        with pytest.raises(StoreRefused) as caught:
            call()
        assert caught.value.hint is not None and "region" in caught.value.hint
    assert elsewhere.history() == []
    assert not store.retries


def test_rate_limit_of_parts(store_on: Callable[[str], Store], tmp_path: Path) -> None:
    """A part is sent at the limit, and every byte is reported as it goes."""
    store = store_on("seaweed")
    line = Bandwidth(tmp_path / "line", 4_000_000)
    moved: list[int] = []
    bucket = Bucket.connect(store.settings, bandwidth=line, on_bytes=moved.append)
    facts = bucket.probe(f"{PREFIX}/probe")
    upload_id = bucket.create_upload(KEY)
    (segment,) = segments_of(4_000_000)
    began = time.monotonic()
    bucket.put_part(KEY, upload_id, 1, memoryview(segment.body), segment.sha256, segment.md5, facts)
    elapsed = time.monotonic() - began
    assert 0.9 < elapsed < 2.5
    assert sum(moved) == 4_000_000 and max(moved) <= line.slice_bytes
    bucket.close()
    line.close()


def test_pace_counts_only_time_it_was_not_held_back() -> None:
    """Slowness that we cause ourselves is no stall; slowness of the peer is."""
    now = 0.0
    pace = Pace(10, lambda: now)
    for _ in range(20):
        now += 5
        pace.moved(100, waited_seconds=5)
    now += 11
    with pytest.raises(TimeoutError):
        pace.moved(100)


def test_body_view_reads_like_a_file() -> None:
    """Botocore may measure, read and rewind the body."""
    body = BodyView(memoryview(b"0123456789"))
    assert (len(body), body.read(3), body.tell(), body.read()) == (10, b"012", 3, b"3456789")
    assert (body.seek(0, 2), body.seek(-2, 1), body.read(5), body.seek(0), body.read(1)) == (10, 8, b"89", 0, b"0")


# --- credentials -------------------------------------------------------------------------------------


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried without credentials."""
    with pytest.raises(CredentialsMissing) as caught:
        Bucket.connect(S3Settings(bucket="my-backups"))
    assert caught.value.hint is not None and "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_unknown_profile() -> None:
    """A profile that does not exist is named."""
    with pytest.raises(CredentialsMissing, match="no-such-profile"):
        Bucket.connect(S3Settings(bucket="my-backups", profile="no-such-profile"))


def test_half_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """An access key without its secret is reported as such."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    with pytest.raises(CredentialsMissing):
        Bucket.connect(S3Settings(bucket="my-backups"))


def test_expired_token_that_renews_itself(
    store_on: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S08: credentials that can be renewed are, and the call goes on; when S3 keeps refusing them it ends."""
    store = store_on("seaweed")
    answer = {
        "Version": 1,
        "AccessKeyId": store.server.access_key,
        "SecretAccessKey": store.server.secret_key,
        "Expiration": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    config = tmp_path / "config"
    script = f"import sys; sys.stdout.write(open('{tmp_path}/answer.json').read())"
    config.write_text(f'[profile renewing]\ncredential_process = {sys.executable} -c "{script}"\n')
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket = store.bucket(profile="renewing")
    store.proxy.rule("PutObject", Respond(400, "ExpiredToken"))
    bucket.put_new(KEY, b"{}")
    assert [type(error) for error in store.retries] == [StoreUnavailable]
    store.proxy.rule("GetObject", Respond(400, "ExpiredToken"), times=None)
    with pytest.raises(CredentialsMissing, match="expired"):
        bucket.get(KEY, 10)


def test_expired_token_replaced_in_its_file(
    store_on: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S08: static credentials that somebody replaced in their file meanwhile are picked up."""
    store = store_on("seaweed")
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    path.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = old-secret\n")
    bucket = store.bucket()
    keys = (store.server.access_key, store.server.secret_key)
    path.write_text("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n".format(*keys))
    store.proxy.rule("HeadBucket", Respond(400, "ExpiredToken"))
    store.proxy.rule("ListObjectsV2", Respond(400, "ExpiredToken"))
    bucket.check()
    assert [type(error) for error in store.retries] == [StoreUnavailable]


class _Pieces:
    """A socket that has pieces of three bytes."""

    def makefile(self, _mode: str, buffering: int) -> io.BytesIO:
        """Return nothing to read from."""
        return io.BytesIO()

    def recv_into(self, buffer: memoryview) -> int:
        """Give the next piece."""
        buffer[:3] = b"abc"
        return 3


def test_connection_given_up_in_mid_read_loses_no_byte() -> None:
    """A body that comes too slowly: what came stays at its place, and the next read says what is wrong."""
    now = iter([0.0, 1.0, 100.0])
    reader = PacedReader(cast(socket.socket, _Pieces()), Pace(10.0, lambda: next(now)))
    buffer = bytearray(100_000)
    assert reader.readinto(buffer) == 6
    assert buffer[:7] == b"abcabc\0"
    with pytest.raises(TimeoutError, match="only 6 bytes"):
        reader.readinto(buffer)
