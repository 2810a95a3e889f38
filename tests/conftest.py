"""Fixtures: real filesystems and servers, a clean environment, and no silent skips for root."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.parts import workspace
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import REGION, MotoServer, RcloneServer, S3Server, SeaweedServer


def pytest_sessionstart() -> None:
    """Mark this run's processes, and remove what killed runs left."""
    os.environ[workspace.MARKER] = workspace.tag()
    workspace.remove_leftovers()


def pytest_sessionfinish() -> None:
    """Remove whatever a broken test of this run left."""
    workspace.remove_leftovers(of_this_run=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses a loop filesystem as needing root, and skip those when we are not."""
    for item in items:
        if "loopfs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root and loop devices"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where B2S_TEST_NO_SKIPS is set: a test that did not run proves nothing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("B2S_TEST_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own credentials, config files and proxies out of every test."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "B2S_")) and not name.startswith("B2S_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def aws_env(monkeypatch: pytest.MonkeyPatch, fresh_forkserver: None) -> Callable[[S3Server], None]:
    """Put a server's credentials into the environment: ``aws_env(seaweed)``. The secret is the canary."""

    def use(server: S3Server) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)

    return use


@pytest.fixture
def fresh_forkserver() -> Iterator[None]:
    """Let the processes of a test inherit its environment: the forkserver keeps the one it was started with."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def loopfs() -> Iterator[Callable[..., LoopFilesystem]]:
    """Make filesystems that are gone after the test: ``loopfs(size_bytes=..., options=("compress=zstd",))``."""
    made: list[LoopFilesystem] = []

    def make(**arguments: object) -> LoopFilesystem:
        made.append(LoopFilesystem(**arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for filesystem in reversed(made):
        filesystem.close()


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """A SeaweedFS for the whole session."""
    server = SeaweedServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def rclone() -> Iterator[RcloneServer]:
    """An rclone S3 server for the whole session."""
    server = RcloneServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """A moto server for the whole session."""
    server = MotoServer()
    yield server
    server.close()


@pytest.fixture
def bucket_on() -> Callable[[S3Server], str]:
    """Create a fresh bucket on a server and return its name: ``bucket_on(seaweed)``."""

    def make(server: S3Server) -> str:
        return server.make_bucket(f"b2s-{secrets.token_hex(6)}")

    return make


@pytest.fixture
def proxy() -> Iterator[Callable[[S3Server], FaultProxy]]:
    """Put a fault proxy in front of a server: ``proxy(seaweed).endpoint_url``."""
    made: list[FaultProxy] = []

    def make(server: S3Server) -> FaultProxy:
        made.append(FaultProxy(server.endpoint_url))
        return made[-1]

    yield make
    for each in made:
        each.close()
