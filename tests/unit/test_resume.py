"""What of an interrupted chunk is reused, judged by the journal and S3 together."""

from __future__ import annotations

import pytest

from b2s.core.journal import ChunkProgress, StoredChunk
from b2s.core.model import ObjectFacts, Receipt, Retrieval, Sha256, StoredPart
from b2s.core.resume import resume_chunk
from b2s.core.sizing import composite_sha256
from b2s.errors import StreamChanged

KEY = "p/s/chunks/id/000000"


def _receipt(number: int) -> Receipt:
    return Receipt(number, 5, Sha256(bytes([number]) * 32), f"etag{number}")


def _part(number: int, *, etag: str | None = None, sha256: Sha256 | None = None) -> StoredPart:
    return StoredPart(number, 5, etag or f"etag{number}", sha256)


def _progress(*numbers: int, stored: StoredChunk | None = None) -> ChunkProgress:
    return ChunkProgress(0, KEY, "upload", {number: _receipt(number) for number in numbers}, stored)


def _object(size: int, composite: str | None) -> ObjectFacts:
    return ObjectFacts(KEY, size, "etag", composite, "STANDARD", Retrieval.NOT_NEEDED, None)


COMPOSITE = composite_sha256([_receipt(1).sha256, _receipt(2).sha256])


def test_parts_that_both_know_are_reused() -> None:
    """Journal and ListParts agree on part 1; part 2 never arrived; part 3 is another than we noted."""
    resumed = resume_chunk(_progress(1, 2, 3), [_part(1), _part(3, etag="other")], None)
    assert resumed is not None
    assert resumed.upload_id == "upload"
    assert resumed.parts[1].sha256 == _receipt(1).sha256
    assert (resumed.parts[3].sha256, resumed.parts[3].etag) == (None, "other")
    assert set(resumed.parts) == {1, 3}


def test_part_the_journal_lost_is_known_by_its_checksum() -> None:
    """Where the store keeps SHA-256, a part acknowledged just before the crash is still reused."""
    resumed = resume_chunk(_progress(), [_part(1, sha256=Sha256(b"x" * 32)), _part(2)], None)
    assert resumed is not None
    assert resumed.parts[1].sha256 == Sha256(b"x" * 32)
    assert resumed.parts[2].sha256 is None


def test_lost_upload_begins_again() -> None:
    """An upload that a lifecycle rule aborted leaves nothing to reuse."""
    assert resume_chunk(_progress(1, 2), None, None) is None


def test_completion_that_was_not_noted_is_found() -> None:
    """Complete succeeded, the report was lost: the object is the chunk."""
    resumed = resume_chunk(_progress(1, 2), None, _object(10, COMPOSITE))
    assert resumed is not None
    assert resumed.upload_id is None
    assert resumed.stored == StoredChunk(10, "etag", COMPOSITE)


def test_completed_chunk_that_vanished_begins_again() -> None:
    """A completed chunk that is not in the bucket any more is uploaded again."""
    assert resume_chunk(_progress(1, 2, stored=StoredChunk(10, "etag", COMPOSITE)), None, None) is None


def test_receipts_lost_in_a_power_cut_leave_the_checksum_to_prove_the_chunk() -> None:
    """Complete succeeded but receipts were lost: the object's own composite is what the stream must match."""
    resumed = resume_chunk(_progress(1), None, _object(10, COMPOSITE))
    assert resumed is not None
    assert resumed.stored == StoredChunk(10, "etag", COMPOSITE)
    assert set(resumed.parts) == {1}


@pytest.mark.parametrize(
    ("size", "composite"), [(9, COMPOSITE), (10, "AAAA-2"), (10, None)], ids=["size", "checksum", "part-missing"]
)
def test_foreign_object_under_our_key_is_refused(size: int, composite: str | None) -> None:
    """An object that is not what the journal describes is neither reused nor overwritten."""
    progress = _progress(1) if composite is None else _progress(1, 2)
    with pytest.raises(StreamChanged):
        resume_chunk(progress, None, _object(size, composite))


@pytest.mark.parametrize("composite", [COMPOSITE, None], ids=["checksum", "etag"])
def test_completion_that_was_noted_is_enough(composite: str | None) -> None:
    """A chunk noted as completed is reused though not every receipt of it is in the journal."""
    noted = StoredChunk(10, "etag", COMPOSITE)
    resumed = resume_chunk(_progress(1, stored=noted), None, _object(10, composite))
    assert resumed is not None
    assert resumed.stored == noted


@pytest.mark.parametrize(("size", "composite"), [(9, COMPOSITE), (10, "AAAA-2")], ids=["size", "checksum"])
def test_another_object_than_the_completed_one_is_refused(size: int, composite: str) -> None:
    """The object was replaced after we noted it."""
    with pytest.raises(StreamChanged):
        resume_chunk(_progress(1, 2, stored=StoredChunk(10, "etag", COMPOSITE)), None, _object(size, composite))
