"""Real S3 servers as child processes: SeaweedFS (a complete one), rclone (the plainest), moto (archive classes)."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from . import workspace

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "B2STESTACCESSKEY"
CANARY_SECRET = "CANARY-b7f3c1e85d2a49f6-SECRET"
"""The secret key of every server; it must not occur in any output."""
REGION = "us-east-1"


def find_program(name: str) -> str:
    """Return the path of `name`, looked up beside the running Python first, then on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is neither in {beside.parent} nor on PATH: pip install -e '.[test]'")
    return found


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on, below the range the kernel hands out to clients."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def s3_client(
    endpoint_url: str, *, access_key: str = ACCESS_KEY, secret_key: str = CANARY_SECRET, retries: int = 2
) -> S3Client:
    """Return a plain client for `endpoint_url` that adds no checksums of its own; the caller closes it."""
    config = Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": retries},
        connect_timeout=5,
        read_timeout=30,
    )
    session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=REGION)
    return session.client("s3", endpoint_url=endpoint_url, config=config)


class S3Server(ABC):
    """An S3 server that dies with us and whose data `close()` deletes.

    Attributes:
        endpoint_url: ``http://127.0.0.1:<port>``.
        directory: Private directory that holds its data and `server.log`.
    """

    name: ClassVar[str]
    ready_seconds: ClassVar[float] = 60
    _attempts: ClassVar[int] = 3

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.access_key = ACCESS_KEY
        self.secret_key = CANARY_SECRET
        self.endpoint_url = ""
        self.directory = workspace.make_directory(self.name)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._client: S3Client | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _command(self) -> tuple[list[str], int, dict[str, str]]:
        """Choose ports; return the command line, the S3 port and additions to the environment."""

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> S3Client:
        """Return the client of this server; `close()` closes it."""
        if self._client is None:
            self._client = s3_client(self.endpoint_url)
        return self._client

    def make_bucket(self, name: str) -> str:
        """Create the bucket `name` and return its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def log_tail(self) -> str:
        """Return the end of what the server printed."""
        return (self.directory / "server.log").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """End the server and delete its data. Safe to repeat."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._end()
        workspace.remove(self.directory)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def _start(self) -> None:
        # Somebody may take a port between our look and the server's bind: then it exits, and we choose others.
        for _ in range(self._attempts):
            command, port, extra = self._command()
            self.endpoint_url = f"http://127.0.0.1:{port}"
            with (self.directory / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    cwd=self.directory,
                    env=workspace.environment(**extra, **self._environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._becomes_ready():
                return
            self._end()
        raise RuntimeError(f"{self.name} did not start {self._attempts} times: {self.log_tail()}")

    def _becomes_ready(self) -> bool:
        deadline = time.monotonic() + self.ready_seconds
        port = int(self.endpoint_url.rpartition(":")[2])
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                return False
            if _listens(port) and self._stores():
                return True
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} is not ready after {self.ready_seconds} s: {self.log_tail()}")

    def _stores(self) -> bool:
        client = s3_client(self.endpoint_url)
        try:
            client.create_bucket(Bucket="b2s-ready")
            client.put_object(Bucket="b2s-ready", Key="ready", Body=b"ready")
            return client.get_object(Bucket="b2s-ready", Key="ready")["Body"].read() == b"ready"
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()


# Every bucket takes volumes of its own, and hundreds of tests make one. They grow as they are filled: what the disk
# holds, not how many there are, is the limit.
VOLUMES_MAX = 2000


class SeaweedServer(S3Server):
    """SeaweedFS: verifies SHA-256 and MD5, honours If-None-Match; knows no archive classes.

    Args:
        sse_key: 64 hex digits; with it the server accepts ``x-amz-server-side-encryption: AES256``, else answers 500.
        volume_bytes: Size of one storage volume.
    """

    name = "seaweed"

    def __init__(self, *, sse_key: str | None = None, volume_bytes: int = 1 << 30) -> None:
        self._volume_mib = volume_bytes >> 20
        super().__init__({"WEED_S3_SSE_KEY": sse_key} if sse_key else None)

    def _command(self) -> tuple[list[str], int, dict[str, str]]:
        identity = {
            "name": "b2s",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        data = self.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        ports = free_ports(8)
        options = {"dir": data, "ip": "127.0.0.1", "master.telemetry": "false", "s3.config": config}
        options |= {"volume.max": VOLUMES_MAX, "volume.preStopSeconds": 0, "master.volumeSizeLimitMB": self._volume_mib}
        options |= {"s3.localSocket": self.directory / "s3.sock", "filer.localSocket": self.directory / "filer.sock"}
        options |= {"s3.port.iceberg": 0, "s3.port.lance": 0, "volume.minFreeSpace": "100MiB"}
        for part, port, grpc in zip(("master", "volume", "filer", "s3"), ports[:4], ports[4:], strict=True):
            options |= {f"{part}.port": port, f"{part}.port.grpc": grpc}
        command = [find_program("weed"), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
        # A bucket takes one volume at first instead of seven: there are only so many on a small disk.
        return command, ports[3], {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}


class RcloneServer(S3Server):
    """``rclone serve s3``: verifies MD5 only, ignores If-None-Match, forgets multipart uploads when it ends."""

    name = "rclone"

    def _command(self) -> tuple[list[str], int, dict[str, str]]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        (port,) = free_ports(1)
        options = ["--addr", f"127.0.0.1:{port}", "--config", str(self.directory / "rclone.conf")]
        # The key goes by environment: tests look for the secret in the process list.
        return (
            [find_program("rclone"), "serve", "s3", *options, str(data)],
            port,
            {"RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"'},
        )


class MotoServer(S3Server):
    """moto's server: knows archive classes and RestoreObject (ready at once); checks no signature."""

    name = "moto"

    def _command(self) -> tuple[list[str], int, dict[str, str]]:
        (port,) = free_ports(1)
        return [find_program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, {}
