"""Listings: every page of them, and no more than an honest store can have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from b2s.adapters.s3_calls import S3Calls
from b2s.adapters.s3_errors import clean
from b2s.adapters.s3_replies import etag_of, stored_part
from b2s.core.limits import PARTS_PER_UPLOAD_MAX
from b2s.core.model import ObjectEntry, OpenUpload, StoredPart
from b2s.errors import StoreRefused, UploadGone

PAGES_MAX = 100_000  # a hundred million objects
PAGES_BARREN_MAX = 1_000  # one after the other without anything new; stores with many deleted keys send some


class ListingCalls(S3Calls):
    """Everything that lists."""

    def list_objects(self, prefix: str, start_after: str = "") -> Iterator[ObjectEntry]:
        """Yield every object under `prefix`, in the store's order.

        Args:
            prefix: Of the full key.
            start_after: Leave out keys up to and including this one.

        Raises:
            StoreRefused: The listing makes no sense: no end of pages, keys that were not asked for.
        """
        pages = _Pages("ListObjectsV2", prefix)
        position: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            reply = self._retried("ListObjectsV2", Prefix=prefix, **position)
            greatest = pages.greatest_key
            for entry in reply.get("Contents", []):
                key = str(entry.get("Key", ""))
                pages.check_key(key)
                if key > start_after or not start_after:
                    yield ObjectEntry(
                        key=key,
                        bytes=int(entry.get("Size", 0)),
                        etag=etag_of(entry),
                        storage_class=str(entry.get("StorageClass") or "STANDARD"),
                    )
            if not reply.get("IsTruncated"):
                return
            token = str(reply.get("NextContinuationToken", ""))
            pages.turn(token, news=pages.greatest_key > greatest)
            position = {"ContinuationToken": token}

    def list_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """Return every part of a multipart upload, by part number.

        Raises:
            UploadGone: The upload does not exist.
        """
        pages = _Pages("ListParts", key)
        parts: dict[int, StoredPart] = {}
        position: dict[str, Any] = {}
        while True:
            reply = self._retried("ListParts", key, UploadId=upload_id, **position)
            known = len(parts)
            for part in map(stored_part, reply.get("Parts", [])):
                if not 1 <= part.part_number <= PARTS_PER_UPLOAD_MAX:
                    raise StoreRefused(f"ListParts on {key}: there can be no part number {part.part_number}")
                parts[part.part_number] = part
            if not reply.get("IsTruncated"):
                return [parts[number] for number in sorted(parts)]
            marker = str(reply.get("NextPartNumberMarker", ""))
            pages.turn(marker, news=len(parts) > known)
            position = {"PartNumberMarker": int(marker)}

    def list_uploads(self, prefix: str) -> list[OpenUpload]:
        """Return every unfinished multipart upload under `prefix`."""
        pages = _Pages("ListMultipartUploads", prefix)
        uploads: dict[tuple[str, str], OpenUpload] = {}
        position: dict[str, Any] = {}
        while True:
            try:
                reply = self._retried("ListMultipartUploads", Prefix=prefix, **position)
            except UploadGone:  # rclone's way to say that the bucket has never had one
                return list(uploads.values())
            known = len(uploads)
            found = [OpenUpload(str(each["Key"]), str(each["UploadId"])) for each in reply.get("Uploads", [])]
            # Aborting goes by this list, so what was not asked for is left out rather than believed.
            uploads.update(((each.key, each.upload_id), each) for each in found if each.key.startswith(prefix))
            if not reply.get("IsTruncated"):
                return list(uploads.values())
            position = {
                "KeyMarker": str(reply.get("NextKeyMarker", "")),
                "UploadIdMarker": str(reply.get("NextUploadIdMarker", "")),
            }
            pages.turn("\0".join(position.values()), news=len(uploads) > known)


class _Pages:
    """Counts the pages of one listing and refuses one that cannot end."""

    def __init__(self, operation: str, prefix: str) -> None:
        self._where = f"{operation} of {prefix}"
        self._prefix = prefix
        self._token: str | None = None
        self._pages = 0
        self._barren_pages = 0
        self.greatest_key = ""  # S3 lists in order; where a store does not, this still grows now and then

    def check_key(self, key: str) -> None:
        """Refuse a key that was not asked for."""
        self.greatest_key = max(self.greatest_key, key)
        if not key.startswith(self._prefix):
            raise StoreRefused(f"{self._where}: the store lists {clean(key)}, which was not asked for")

    def turn(self, token: str, *, news: bool) -> None:
        """Go on to the page at `token` after one that brought something new, or nothing."""
        self._pages += 1
        self._barren_pages = 0 if news else self._barren_pages + 1
        if not token or token == self._token:
            raise StoreRefused(f"{self._where}: the store names no next page, or the same again")
        if self._pages >= PAGES_MAX or self._barren_pages >= PAGES_BARREN_MAX:
            raise StoreRefused(f"{self._where}: the listing does not end")
        self._token = token
