"""Read S3's replies into our facts, trusting none of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from b2s.core.model import ObjectFacts, Receipt, Retrieval, Sha256, StoredPart

# Classes whose objects cannot be read until they are retrieved. GLACIER_IR can. Source: Amazon S3 User Guide,
# "Restoring an archived object" (read 2026-11).
ARCHIVE_CLASSES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})

_MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-([0-9]{1,5})")
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")
_RESTORE_ONGOING = re.compile(r'ongoing-request="(true|false)"')
_RESTORE_EXPIRY = re.compile(r'expiry-date="([^"]{1,64})"')


def etag_of(reply: dict[str, Any]) -> str:
    """Return the ETag without its quotes; some stores send none."""
    return str(reply.get("ETag", "")).strip('"')


def is_md5(etag: str) -> bool:
    """Tell whether an ETag has the form of one MD5."""
    return _MD5_ETAG.fullmatch(etag) is not None


def encode(digest: bytes) -> str:
    """Return a digest the way S3's headers carry it."""
    return base64.b64encode(digest).decode("ascii")


def sha256_of(reply: dict[str, Any]) -> Sha256 | None:
    """Return the plain SHA-256 a reply carries, or None."""
    try:
        digest = base64.b64decode(str(reply.get("ChecksumSHA256", "")), validate=True)
    except binascii.Error:
        return None
    return Sha256(digest) if len(digest) == 32 else None


def composite_of(receipts: Iterable[Receipt]) -> str:
    """Return the checksum S3 gives the whole object: base64 of the SHA-256 of the parts' SHA-256, and their number."""
    digests = [receipt.sha256 for receipt in receipts]
    return f"{encode(hashlib.sha256(b''.join(digests)).digest())}-{len(digests)}"


def multipart_etag_of(receipts: Iterable[Receipt]) -> str | None:
    """Return the customary ETag of the whole object, or None where the parts' ETags are no MD5."""
    etags = [receipt.etag for receipt in receipts]
    if not all(is_md5(etag) for etag in etags):
        return None
    return f"{hashlib.md5(bytes.fromhex(''.join(etags)), usedforsecurity=False).hexdigest()}-{len(etags)}"


def is_multipart_etag(etag: str) -> bool:
    """Tell whether an ETag has the customary form of a multipart object."""
    return _MULTIPART_ETAG.fullmatch(etag) is not None


def composite_in(reply: dict[str, Any], part_count: int | None = None) -> str | None:
    """Return the composite SHA-256 of a reply as base64-N, or None when it carries none.

    moto leaves the "-N" out; then N comes from the ETag or `part_count`. A plain SHA-256 of an object that was
    put in one piece is no composite.
    """
    found = str(reply.get("ChecksumSHA256", ""))
    if not found or "-" in found:
        return found or None
    match = _MULTIPART_ETAG.fullmatch(etag_of(reply))
    count = int(match[1]) if match is not None else part_count
    return f"{found}-{count}" if count is not None else None


def object_facts(key: str, reply: dict[str, Any]) -> ObjectFacts:
    """Return what HeadObject says."""
    storage_class = str(reply.get("StorageClass") or "STANDARD")
    retrieval, expires_at = _retrieval(storage_class, str(reply.get("ArchiveStatus") or ""), reply.get("Restore"))
    return ObjectFacts(
        key=key,
        bytes=int(reply.get("ContentLength", 0)),
        etag=etag_of(reply),
        sha256_composite=composite_in(reply),
        storage_class=storage_class,
        retrieval=retrieval,
        retrieval_expires_at=expires_at,
    )


def stored_part(reply: dict[str, Any]) -> StoredPart:
    """Return one part as ListParts says."""
    return StoredPart(
        part_number=int(reply["PartNumber"]),
        bytes=int(reply.get("Size", 0)),
        etag=etag_of(reply),
        sha256=sha256_of(reply),
    )


def _retrieval(storage_class: str, archive_status: str, restore: object) -> tuple[Retrieval, datetime | None]:
    # Objects of INTELLIGENT_TIERING that are in an archive tier say so in x-amz-archive-status, and have no expiry.
    if storage_class not in ARCHIVE_CLASSES and not archive_status:
        return Retrieval.NOT_NEEDED, None
    found = _RESTORE_ONGOING.search(str(restore or ""))
    if found is None:
        return Retrieval.COLD, None
    if found[1] == "true":
        return Retrieval.ONGOING, None
    expiry = _RESTORE_EXPIRY.search(str(restore))
    expires_at = _date(expiry[1]) if expiry is not None else None
    if expires_at is not None and expires_at <= datetime.now(UTC):
        return Retrieval.COLD, None
    return Retrieval.READY, expires_at


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
