"""Summaries survive the cache, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from b2s.core.summary_json import CachedSummary, decode, encode
from b2s.core.world import BackupSummary
from tests.format import sample
from tests.unit.planning import NOW, weekly_chain


def test_a_summary_survives() -> None:
    """A full and an incremental come back as they were kept."""
    full, incremental = weekly_chain(2, NOW)
    for cached in (CachedSummary(full, 1, 1), CachedSummary(incremental)):
        assert decode(encode(cached)) == cached


def test_a_manifest_becomes_a_summary_without_its_bulk() -> None:
    """Segment hashes and nested subvolumes are left out; sizes, ETags and links are kept."""
    manifest = sample.full()
    summary = BackupSummary.of(manifest, "ab" * 32)
    assert summary.snapshot.nested_subvolumes == ()
    assert [chunk.etag for chunk in summary.chunks] == [chunk.etag for chunk in manifest.chunks]
    assert summary.link.manifest_sha256 == "ab" * 32
    assert decode(encode(CachedSummary(summary))).backup == summary


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"backup": {"kind": "full"}}', b'{"backup": 1}'])
def test_anything_else_is_refused(body: bytes) -> None:
    """What is not a summary is a ValueError: the manifest is then fetched again."""
    with pytest.raises(ValueError):
        decode(body)
