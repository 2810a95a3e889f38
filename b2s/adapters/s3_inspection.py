"""What `b2s doctor` asks of a bucket and no backup ever does: its clock, its rules, and an object that is deleted.

Apart from `Bucket` on purpose: nothing that stores or reads backups can delete an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from b2s.adapters.s3 import Bucket
from b2s.adapters.s3_errors import is_not_implemented
from b2s.core.model import ObjectFacts, StoreFacts
from b2s.errors import AccessDenied, B2sError, ObjectChanged, ObjectMissing, StoreRefused, UploadGone

PROBE_BODY = b"written by b2s doctor to see what this store does; it may be deleted at any time\n"


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """One enabled rule of the bucket, as far as it can concern b2s."""

    rule_id: str
    prefix: str  # what it applies to; empty: everything
    tagged: bool  # it asks for tags, which no object of b2s has
    abort_days: int | None  # incomplete uploads are aborted after so many days
    expire_days: int | None  # objects are deleted after so many days; 0: on a fixed date
    archive_days: int | None  # objects move to a class that must be retrieved first, after so many days
    bytes_over: int  # only objects larger than this


class BucketInspection(Bucket):
    """A bucket that is looked at more closely."""

    def clock_ahead_seconds(self) -> float | None:
        """Return how far this host's clock is ahead of the store's; None where the store names no time."""
        reply = self._retried("HeadBucket")
        headers: Any = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        try:
            theirs = parsedate_to_datetime(str(headers.get("date", "")))
        except ValueError:
            return None
        theirs = theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)
        return (datetime.now(UTC) - theirs).total_seconds()

    def lifecycle_rules(self) -> list[LifecycleRule] | None:
        """Return the enabled rules; None where the store has no such thing.

        Raises:
            AccessDenied: They may not be read.
        """
        try:
            reply = self._retried("GetBucketLifecycleConfiguration")
        except (StoreRefused, ObjectMissing, UploadGone) as error:
            if error.context.get("code") == "NoSuchLifecycleConfiguration":
                return []
            return [] if isinstance(error, ObjectMissing) else None
        except B2sError as error:
            if is_not_implemented(error):
                return None
            raise
        if "Rules" not in reply:  # S3 never says so; rclone answers everything it does not know with a listing
            return None
        return [_rule(rule) for rule in reply["Rules"] if rule.get("Status") == "Enabled"]

    def may_delete(self, key: str) -> bool:
        """Return whether `key` may be deleted, by deleting it: nothing of value may be there."""
        try:
            self._retried("DeleteObject", key)
        except AccessDenied:
            return False
        except ObjectMissing:
            return True
        return True

    def honours_if_none_match(self, key: str) -> bool:
        """Tell whether the store refuses to overwrite `key` when asked to; it exists afterwards."""
        for _ in range(2):
            try:
                self._retried("PutObject", key, Body=PROBE_BODY, IfNoneMatch="*", **self._stored_as("STANDARD"))
            except ObjectChanged:
                return True
            except StoreRefused as error:
                if is_not_implemented(error):
                    return False
                raise
        return False

    def store_in_parts(self, key: str, sha256: bytes, md5: bytes, facts: StoreFacts) -> ObjectFacts:
        """Store `PROBE_BODY` under `key` the way chunks are stored, and have the store confirm it."""
        upload_id = self.create_upload(key)
        try:
            receipt = self.put_part(key, upload_id, 1, memoryview(PROBE_BODY), sha256, md5, facts)
            return self.complete_upload(key, upload_id, (receipt,), facts)
        except BaseException:
            self.abort_upload(key, upload_id)
            raise


def _rule(rule: dict[str, Any]) -> LifecycleRule:
    """Return what concerns b2s of a rule in the form S3 has now, or had before filters."""
    given = rule.get("Filter") or {}
    both = given.get("And") or {}
    expiration = rule.get("Expiration") or {}
    expires = "Days" in expiration or "Date" in expiration
    archiving = [
        int(each.get("Days", 0))
        for each in rule.get("Transitions", [])
        if each.get("StorageClass") in ("GLACIER", "DEEP_ARCHIVE")
    ]
    aborting = rule.get("AbortIncompleteMultipartUpload") or {}
    return LifecycleRule(
        rule_id=str(rule.get("ID") or "without a name")[:100],
        prefix=str(given.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""),
        tagged="Tag" in given or bool(both.get("Tags")),
        abort_days=int(aborting["DaysAfterInitiation"]) if "DaysAfterInitiation" in aborting else None,
        expire_days=int(expiration.get("Days", 0)) if expires else None,
        archive_days=min(archiving, default=None),
        bytes_over=int(given.get("ObjectSizeGreaterThan") or both.get("ObjectSizeGreaterThan") or 0),
    )
