"""Hosts for system tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import S3Server
from tests.system.site import MIB, MakeSite, Site


@pytest.fixture
def make_site(
    loopfs: Callable[..., LoopFilesystem],
    bucket_on: Callable[[S3Server], str],
    seaweed: S3Server,
    tmp_path: Path,
) -> MakeSite:
    """Make a host with an empty source and a bucket on SeaweedFS: ``make_site(segment_size=..., size_bytes=...)``."""

    def make(*, size_bytes: int = 512 * MIB, **s3: Any) -> Site:
        return Site(tmp_path, seaweed, bucket_on(seaweed), loopfs(size_bytes=size_bytes), **s3)

    return make
