"""Rigs for fault tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.harness import Rig
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import S3Server

MakeRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def shared_bucket() -> Callable[[S3Server], str]:
    """Return the one bucket of a server for all rigs: making one is slow."""
    made: dict[int, str] = {}

    def bucket(server: S3Server) -> str:
        if server.pid not in made:
            made[server.pid] = server.make_bucket("b2s-rigs")
        return made[server.pid]

    return bucket


@pytest.fixture
def make_rig(
    loopfs: Callable[..., LoopFilesystem],
    proxy: Callable[[S3Server], FaultProxy],
    shared_bucket: Callable[[S3Server], str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Iterator[MakeRig]:
    """Build a rig: ``make_rig(data_bytes=..., server="rclone", s3={"concurrency": 1})``."""
    made: list[Rig] = []

    def make(*, server: str = "seaweed", **arguments: Any) -> Rig:
        store: S3Server = request.getfixturevalue(server)
        directory = tmp_path / f"rig-{len(made)}"
        directory.mkdir()
        made.append(Rig(store, proxy(store), shared_bucket(store), directory, loopfs, **arguments))
        return made[-1]

    yield make
    for rig in made:
        for run in rig.runs:
            if run.process.poll() is None:
                run.kill()
        rig.assert_no_secret()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """Return the usual rig: 32 MiB in chunks of two segments, on SeaweedFS."""
    return make_rig(data_bytes=32 << 20)
