"""The sink as the benchmark starts it, with a certificate of its own where it speaks https."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from scripts.bench.sink_store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
STOP_SECONDS = 10

# Amazon S3 chooses this cipher whatever a client likes best (seen 2026-11), and it is the cheapest one.
_OPENSSL_CONFIG = """
openssl_conf = default
[default]
ssl_conf = ssl
[ssl]
system_default = tls
[tls]
Ciphersuites = TLS_AES_128_GCM_SHA256
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate for this host, and the same as the CA that clients are to trust."""

    pem: Path  # certificate and key
    ca: Path
    openssl_config: Path  # for the sink

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """Make one that is good for a week."""
        key, ca, pem, cnf = (directory / name for name in ("sink.key", "ca.pem", "sink.pem", "openssl.cnf"))
        argv: list[str | Path] = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ]
        argv += ["-nodes", "-keyout", key, "-out", ca, "-days", "7", "-subj", "/CN=b2s bench sink"]
        argv += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        subprocess.run(
            argv,
            check=True,
            capture_output=True,
        )
        pem.write_bytes(key.read_bytes() + ca.read_bytes())
        pem.chmod(0o600)
        cnf.write_text(_OPENSSL_CONFIG)
        return cls(pem, ca, cnf)


@dataclass(frozen=True, slots=True)
class Profile:
    """How the sink behaves."""

    name: str
    https: bool
    latency_ms: float = 0.0
    rate_mb: float = 0.0  # 10^6 bytes a second per connection, 0: as fast as it goes
    line_mb: float = 0.0  # the same of all connections together
    store: bool = False


class Target(Protocol):
    """A running server with a bucket."""

    profile: Profile
    bucket: str
    certificate: Certificate
    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Return what clients need in their environment."""

    def forget(self, prefix: str) -> None:
        """Forget every object and every upload whose key begins so."""

    def close(self) -> None:
        """End it."""


class Seaweed:
    """A running SeaweedFS: a real store, to see that figures against the sink are not only its own."""

    def __init__(self, certificate: Certificate) -> None:
        from tests.parts.servers import SeaweedServer

        self.profile = Profile("seaweedfs", https=False, store=True)
        self.certificate = certificate
        self._server = SeaweedServer()
        self.bucket = self._server.make_bucket("bench")
        self.endpoint_url = self._server.endpoint_url

    @property
    def environment(self) -> dict[str, str]:
        """Return its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self._server.access_key,
            "AWS_SECRET_ACCESS_KEY": self._server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def forget(self, prefix: str) -> None:
        """Delete every object whose key begins so."""
        client = self._server.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=self.bucket, Key=entry["Key"])

    def close(self) -> None:
        """End it and delete its data."""
        self._server.close()


class Sink:
    """One running sink; a context manager."""

    def __init__(self, profile: Profile, root: Path, certificate: Certificate, bucket: str = "bench") -> None:
        self.profile = profile
        self._root = root
        self.bucket = bucket
        self.certificate = certificate
        argv = [sys.executable, "-m", "scripts.bench.sink", "--root", str(root), "--bucket", bucket]
        argv += ["--latency-ms", str(profile.latency_ms), "--rate-mb", str(profile.rate_mb)]
        argv += ["--line-mb", str(profile.line_mb)]
        argv += ["--store"] if profile.store else []
        argv += ["--certificate", str(certificate.pem)] if profile.https else []
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENSSL_CONF": str(certificate.openssl_config)}
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        hello = json.loads(self._process.stdout.readline())
        scheme = "https" if profile.https else "http"
        self.endpoint_url = f"{scheme}://127.0.0.1:{hello['port']}"

    def forget(self, prefix: str) -> None:
        """Forget every object and every upload whose key begins so."""
        store = Store(self._root, self.bucket)
        for key in store.keys(prefix):
            store.delete(key)
        for _, upload_id in store.uploads(prefix):
            store.abort(upload_id)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin so."""
        return Store(self._root, self.bucket).keys(prefix)

    @property
    def environment(self) -> dict[str, str]:
        """Return what clients need in their environment: credentials that nobody checks, and whom to trust."""
        ca = {name: str(self.certificate.ca) for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE")}
        return {
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **(ca if self.profile.https else {}),
        }

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of this sink and of its connections that have ended."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        """Return the running sink."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()
