"""The board routes announced segments to parts and parts to chunks."""

from __future__ import annotations

import time
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2s.core.board import ResumedChunk, UploadBoard
from b2s.core.journal import StoredChunk
from b2s.core.messages import (
    ChunkOpened,
    ChunkStored,
    CompleteChunk,
    OpenChunk,
    SegmentSpooled,
    SegmentStored,
    StoreSegment,
)
from b2s.core.model import Receipt, Sha256, StoredPart
from b2s.core.sizing import Sizes, composite_sha256
from b2s.errors import StreamChanged

SEGMENT = 10


def _key(index: int) -> str:
    return f"p/s/chunks/id/{index:06d}"


def _receipt(part_number: int, size: int = SEGMENT) -> Receipt:
    return Receipt(part_number, size, Sha256(bytes([part_number % 256]) * 32), f"etag{part_number}")


def _part(part_number: int) -> StoredPart:
    receipt = _receipt(part_number)
    return StoredPart(part_number, receipt.bytes, receipt.etag, receipt.sha256)


def _announce(board: UploadBoard, segments: int, per_chunk: int) -> list[object]:
    """Announce a whole stream and return the tasks it makes."""
    tasks: list[object] = []
    for number in range(segments):
        chunk, segment = divmod(number, per_chunk)
        last = segment == per_chunk - 1 or number == segments - 1
        tasks += board.segment_spooled(SegmentSpooled(chunk, segment, number, SEGMENT, last))
    return tasks


def _work(board: UploadBoard, tasks: list[object], pick: st.DataObject | None = None) -> list[int]:
    """Answer tasks, in any order, until there are none; return the slots that became free."""
    todo, free = list(tasks), []
    while todo:
        position = pick.draw(st.integers(0, len(todo) - 1)) if pick else 0
        match todo.pop(position):
            case OpenChunk(chunk_index):
                todo += board.chunk_opened(ChunkOpened(chunk_index, f"upload{chunk_index}"))
            case StoreSegment() as task:
                receipt = _receipt(task.segment_index + 1)
                slot, more = board.segment_stored(
                    SegmentStored(task.chunk_index, task.segment_index, receipt, reused=task.known is not None)
                )
                free.append(slot)
                todo += more
            case CompleteChunk(chunk_index, _, _, receipts):
                size = sum(receipt.bytes for receipt in receipts)
                board.chunk_stored(ChunkStored(chunk_index, size, "etag", f"x-{len(receipts)}"))
    return free


@given(segments=st.integers(1, 24), per_chunk=st.integers(1, 5), data=st.data())
def test_every_stream_becomes_its_chunks_in_any_order_of_reports(
    segments: int, per_chunk: int, data: st.DataObject
) -> None:
    """Whatever order workers report in, all chunks end whole and every slot is free."""
    board = UploadBoard(_key)
    free = _work(board, _announce(board, segments, per_chunk), data)
    assert not board.done
    free += _work(board, list(board.confirm_stream()), data)
    assert board.done
    chunks = board.finished_chunks()
    assert sum(len(chunk.segment_sha256) for chunk in chunks) == segments
    assert [len(chunk.segment_sha256) for chunk in chunks[:-1]] == [per_chunk] * (len(chunks) - 1)
    assert sorted(free) == list(range(segments))
    assert board.uploaded_bytes == segments * SEGMENT


def test_last_chunk_waits_for_the_verdict_on_the_stream() -> None:
    """A stream that turns out broken leaves its last chunk incomplete, even when all its parts are stored."""
    board = UploadBoard(_key)
    board.segment_spooled(SegmentSpooled(0, 0, 0, SEGMENT, last_in_chunk=True))
    board.chunk_opened(ChunkOpened(0, "upload"))
    assert board.segment_stored(SegmentStored(0, 0, _receipt(1), reused=False)) == (0, [])
    assert board.confirm_stream() == [CompleteChunk(0, _key(0), "upload", (_receipt(1),))]


def test_next_chunk_releases_the_one_before() -> None:
    """A full chunk is completed as soon as a later one shows that it is not the last."""
    board = UploadBoard(_key)
    for task in board.segment_spooled(SegmentSpooled(0, 0, 0, SEGMENT, last_in_chunk=True)):
        assert isinstance(task, OpenChunk)
    board.chunk_opened(ChunkOpened(0, "upload"))
    board.segment_stored(SegmentStored(0, 0, _receipt(1), reused=False))
    tasks = board.segment_spooled(SegmentSpooled(1, 0, 1, SEGMENT, last_in_chunk=False))
    assert [type(task) for task in tasks] == [OpenChunk, CompleteChunk]


def test_stored_chunk_is_only_compared() -> None:
    """A chunk that was completed before is hashed again, never opened or completed again."""
    composite = composite_sha256([_receipt(1).sha256, _receipt(2).sha256])
    stored = StoredChunk(2 * SEGMENT, "etag", composite)
    board = UploadBoard(_key, {0: ResumedChunk(None, {1: _part(1), 2: _part(2)}, stored)})
    tasks = _announce(board, 2, 2)
    assert [type(task) for task in tasks] == [StoreSegment, StoreSegment]
    assert all(task.upload_id is None and task.known for task in tasks if isinstance(task, StoreSegment))
    _work(board, tasks)
    assert board.confirm_stream() == []
    assert board.done
    assert (board.uploaded_bytes, board.reused_bytes) == (0, 2 * SEGMENT)
    assert board.finished_chunks()[0].sha256_composite == composite


def test_stored_chunk_with_another_checksum_is_refused() -> None:
    """Where receipts were lost, the chunk's checksum as a whole decides that the stream is another one now."""
    board = UploadBoard(_key, {0: ResumedChunk(None, {}, StoredChunk(2 * SEGMENT, "etag", "other-2"))})
    _work(board, _announce(board, 2, 2))
    with pytest.raises(StreamChanged):
        board.confirm_stream()


def test_open_upload_goes_on_with_its_parts() -> None:
    """Parts of an upload under way are offered for reuse; the others are sent into the same upload."""
    board = UploadBoard(_key, {0: ResumedChunk("old", {1: _part(1)}, None)})
    tasks = [task for task in _announce(board, 2, 2) if isinstance(task, StoreSegment)]
    assert [(task.upload_id, task.known is not None) for task in tasks] == [("old", True), ("old", False)]


def test_segments_wait_for_their_upload() -> None:
    """Segments announced before the upload exists are handed out when it does, in order."""
    board = UploadBoard(_key)
    numbers = count()
    for _ in range(3):
        number = next(numbers)
        board.segment_spooled(SegmentSpooled(0, number, number, SEGMENT, last_in_chunk=False))
    tasks = board.chunk_opened(ChunkOpened(0, "upload"))
    assert [task.segment_index for task in tasks if isinstance(task, StoreSegment)] == [0, 1, 2]


def test_first_upload_is_opened_before_there_is_anything_to_send() -> None:
    """Opening it takes a round trip or three, and so does connecting; a stored or open chunk needs neither."""
    board = UploadBoard(_key)
    assert board.begin() == [OpenChunk(0, _key(0))]
    assert not board.done
    assert board.segment_spooled(SegmentSpooled(0, 0, 0, SEGMENT, last_in_chunk=True)) == []
    (task,) = board.chunk_opened(ChunkOpened(0, "upload"))
    assert isinstance(task, StoreSegment)
    assert UploadBoard(_key, {0: ResumedChunk("old", {1: _part(1)}, None)}).begin() == []


@pytest.mark.parametrize(
    ("resumed", "known"),
    [
        ({}, 0),
        ({0: ResumedChunk("open", {}, None)}, 0),
        ({0: ResumedChunk("open", {1: _part(1), 3: _part(3)}, None)}, 3),
        ({0: ResumedChunk(None, {}, StoredChunk(4 * SEGMENT, "etag", "x-4"))}, 4),
        (
            {
                0: ResumedChunk(None, {1: _part(1)}, StoredChunk(4 * SEGMENT, "etag", "x-4")),
                1: ResumedChunk("open", {1: _part(1)}, None),
                2: ResumedChunk("open", {}, None),
            },
            5,
        ),
    ],
)
def test_knows_how_far_an_earlier_run_got(resumed: dict[int, ResumedChunk], known: int) -> None:
    """By parts and by whole chunks, whose parts the journal may have lost."""
    assert UploadBoard(_key, resumed).known_segments(Sizes(SEGMENT, 4 * SEGMENT)) == known


def test_many_chunks_cost_no_more_each_than_few() -> None:
    """Chunks of one segment are allowed, and a backup may have 100,000 of them."""

    def seconds(chunks: int) -> float:
        board = UploadBoard(_key)
        started = time.process_time()
        for number in range(chunks):
            board.segment_spooled(SegmentSpooled(number, 0, 0, SEGMENT, last_in_chunk=True))
            board.chunk_opened(ChunkOpened(number, "upload"))
            board.segment_stored(SegmentStored(number, 0, _receipt(1), reused=False))
        return time.process_time() - started

    few, many = (min(seconds(chunks) for _ in range(5)) for chunks in (1000, 10_000))
    assert many < 10 * few * 4  # were each chunk's cost to grow with their number, it would be 10 times as much


def test_report_of_a_segment_never_announced_is_a_bug() -> None:
    """A receipt that belongs to nothing is never counted."""
    board = UploadBoard(_key)
    with pytest.raises(KeyError):
        board.segment_stored(SegmentStored(0, 0, _receipt(1), reused=False))
