"""What is left to do of an interrupted chunk: the journal on one side, S3 on the other. No I/O.

Nothing is skipped by offset: a part counts as known only together with the hash of its bytes, and the regenerated
segment must have that hash before its upload is spared.
"""

from __future__ import annotations

from collections.abc import Sequence

from b2s.core.board import ResumedChunk
from b2s.core.journal import ChunkProgress, StoredChunk
from b2s.core.model import ObjectFacts, Receipt, StoredPart
from b2s.core.sizing import composite_sha256
from b2s.errors import StreamChanged


def resume_chunk(
    progress: ChunkProgress, parts: Sequence[StoredPart] | None, stored: ObjectFacts | None
) -> ResumedChunk | None:
    """Decide what S3 has of one chunk.

    Args:
        progress: What the journal says.
        parts: What ListParts says of its upload; None when that upload is gone or was completed.
        stored: What HeadObject says of its key; None when there is no such object.

    Returns:
        What can be reused, or None when the chunk has to be uploaded from its beginning.

    Raises:
        StreamChanged: There is an object under the key that is not what the journal knows; it is never overwritten.
    """
    if stored is not None:
        journal = {number: _as_part(receipt) for number, receipt in progress.receipts.items()}
        return ResumedChunk(None, journal, _confirmed(progress, stored))
    if parts is None or progress.stored is not None:
        return None
    return ResumedChunk(progress.upload_id, {part.part_number: _known(progress, part) for part in parts}, None)


def _known(progress: ChunkProgress, part: StoredPart) -> StoredPart:
    """Return a listed part with its hash, where the journal or the store remembers it."""
    receipt = progress.receipts.get(part.part_number)
    if receipt is not None and (receipt.etag, receipt.bytes) == (part.etag, part.bytes):
        return _as_part(receipt)
    return part


def _as_part(receipt: Receipt) -> StoredPart:
    return StoredPart(receipt.part_number, receipt.bytes, receipt.etag, receipt.sha256)


def _confirmed(progress: ChunkProgress, stored: ObjectFacts) -> StoredChunk:
    """Return the chunk as stored, as far as it can be the one our receipts describe.

    Receipts may have been lost in a power cut; then the composite checksum, as noted when the chunk was completed or
    as the store keeps it, is what the regenerated segments have to match in the end. Without either, only complete
    receipts are proof.
    """
    if progress.stored is not None:
        noted = progress.stored
        same = stored.sha256_composite == noted.sha256_composite or (
            stored.sha256_composite is None and stored.etag == noted.etag
        )
        if not same or stored.bytes != noted.bytes:
            raise StreamChanged(f"the object {stored.key} is not the chunk that the interrupted backup completed")
        return noted
    receipts = [progress.receipts[number] for number in sorted(progress.receipts)]
    composite = composite_sha256(receipt.sha256 for receipt in receipts)
    size = sum(receipt.bytes for receipt in receipts)
    ours = size == stored.bytes and stored.sha256_composite in (None, composite)
    incomplete = size < stored.bytes and stored.sha256_composite is not None
    if not ours and not incomplete:
        raise StreamChanged(f"the object {stored.key} is not the chunk that the interrupted backup stored")
    return StoredChunk(stored.bytes, stored.etag, stored.sha256_composite or composite)
