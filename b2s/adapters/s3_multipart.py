"""Chunks: multipart uploads, one part per segment, each proven by its receipt, the whole proven by HEAD."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from b2s.adapters.http_bodies import BodyView
from b2s.adapters.s3_calls import S3Calls
from b2s.adapters.s3_errors import clean
from b2s.adapters.s3_replies import (
    composite_in,
    composite_of,
    encode,
    etag_of,
    is_md5,
    is_multipart_etag,
    multipart_etag_of,
    object_facts,
    sha256_of,
)
from b2s.core.model import ObjectFacts, Receipt, Sha256, StoreFacts
from b2s.errors import (
    ChunkDamaged,
    ObjectChanged,
    ObjectMissing,
    PartRejected,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)

PROBE_BYTES = 4096


class MultipartCalls(S3Calls):
    """Everything about multipart uploads."""

    def create_upload(self, key: str) -> str:
        """Begin the multipart upload of one chunk and return its upload id.

        A lost reply leaves an upload nobody knows; the next run aborts it.
        """
        # SHA-256 of a multipart object is always COMPOSITE, so its type is not named: older stores do not know it.
        reply = self._retried(
            "CreateMultipartUpload",
            key,
            ChecksumAlgorithm="SHA256",
            **self._stored_as(self.settings.storage_class.chunks),
        )
        upload_id = str(reply.get("UploadId") or "")
        if not upload_id:
            raise StoreRefused(f"CreateMultipartUpload on {key}: the store gave no upload id")
        return upload_id

    def put_part(
        self,
        key: str,
        upload_id: str,
        part_number: int,
        body: memoryview,
        sha256: bytes,
        md5: bytes | None,
        facts: StoreFacts,
    ) -> Receipt:
        """Send one part and check what the store says it received.

        Args:
            part_number: 1-based.
            body: Read in place, never copied; must not change meanwhile.
            sha256: Of `body`; the store compares it.
            md5: Of `body`; needed where the probe found that the store verifies no SHA-256.
            facts: What the probe found.

        Raises:
            PartRejected: The store kept receiving other bytes.
            UploadGone: The upload was aborted or completed.
        """
        parameters: dict[str, Any] = {
            "UploadId": upload_id,
            "PartNumber": part_number,
            "ChecksumSHA256": encode(sha256),
        }
        if md5 is not None and not facts.sha256:
            parameters["ContentMD5"] = encode(md5)

        def attempt() -> Receipt:
            reply = self._call("UploadPart", key, Body=BodyView(body), **parameters)
            echoed, etag = sha256_of(reply), etag_of(reply)
            if echoed is not None and echoed != sha256:
                raise PartRejected(
                    f"part {part_number} of {key}: the store received another SHA-256 than was sent", key=key
                )
            if md5 is not None and facts.etag_is_md5 and etag.lower() != md5.hex():
                raise PartRejected(
                    f"part {part_number} of {key}: the store received another MD5 than was sent", key=key
                )
            return Receipt(part_number, len(body), Sha256(sha256), etag)

        return self._retrier.call(attempt)

    def complete_upload(
        self, key: str, upload_id: str, receipts: tuple[Receipt, ...], facts: StoreFacts
    ) -> ObjectFacts:
        """Make the parts one object and have the store confirm it. Safe to repeat.

        Whatever Complete answers (200, 200 with an error inside, nothing, cut XML, "no such upload" because an
        earlier reply was lost), only HEAD decides.

        Args:
            receipts: Of all parts, in part order.

        Returns:
            The object as HEAD reports it, its `sha256_composite` ours where the store computes none.

        Raises:
            ChunkDamaged: The object has another size or checksum than what was sent.
            UploadGone: There is no such upload and no object either.
        """
        parts = [
            {"PartNumber": each.part_number, "ETag": f'"{each.etag}"', "ChecksumSHA256": encode(each.sha256)}
            for each in receipts
        ]

        def attempt() -> ObjectFacts:
            reply: dict[str, Any] = {}
            failure: StoreError | None = None
            try:
                reply = self._call("CompleteMultipartUpload", key, UploadId=upload_id, MultipartUpload={"Parts": parts})
            except (StoreUnavailable, UploadGone, ObjectChanged) as error:
                failure = error
            try:
                head = self._call("HeadObject", key, ChecksumMode="ENABLED")
            except ObjectMissing as missing:
                if failure is not None:
                    raise failure from missing
                raise StoreUnavailable(f"{key}: completed, but the store does not have it", key=key) from missing
            return _confirmed(key, head, reply, receipts, facts)

        return self._retrier.call(attempt)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload and free its parts; one that is gone already is fine."""
        try:
            self._retried("AbortMultipartUpload", key, UploadId=upload_id)
        except (UploadGone, ObjectMissing):
            return

    def probe(self, key: str) -> StoreFacts:
        """Find out what the store verifies, by sending it wrong checksums.

        Uses a multipart upload under `key` that is never completed, so nothing ever exists there.
        """
        upload_id = self.create_upload(key)
        try:
            body = os.urandom(PROBE_BYTES)
            sha256, md5 = hashlib.sha256(body).digest(), hashlib.md5(body, usedforsecurity=False).digest()
            wrong = bytes(byte ^ 1 for byte in sha256)
            good = {"ChecksumSHA256": encode(sha256), "ContentMD5": encode(md5)}
            reply = self._retried("UploadPart", key, UploadId=upload_id, PartNumber=1, Body=body, **good)
            return StoreFacts(
                sha256=self._refuses(key, upload_id, body, ChecksumSHA256=encode(wrong)),
                content_md5=self._refuses(key, upload_id, body, ContentMD5=encode(wrong[:16])),
                etag_is_md5=is_md5(etag_of(reply)) and etag_of(reply) == md5.hex(),
                round_trip_seconds=self.round_trip_seconds,
            )
        finally:
            self.abort_upload(key, upload_id)

    def _refuses(self, key: str, upload_id: str, body: bytes, **checksum: str) -> bool:
        def attempt() -> bool:
            try:
                self._call("UploadPart", key, UploadId=upload_id, PartNumber=1, Body=body, **checksum)
            except (PartRejected, StoreRefused):
                return True
            return False

        return self._retrier.call(attempt)

    def _stored_as(self, storage_class: str) -> dict[str, str]:
        """Return what names storage class and encryption; defaults stay unnamed, not every store knows them."""
        parameters: dict[str, str] = {}
        if storage_class != "STANDARD":
            parameters["StorageClass"] = storage_class
        sse = self.settings.effective_sse
        if sse != "none":
            parameters["ServerSideEncryption"] = sse
        if sse == "aws:kms" and self.settings.kms_key_id is not None:
            parameters["SSEKMSKeyId"] = self.settings.kms_key_id
        return parameters


def _confirmed(
    key: str, head: dict[str, Any], reply: dict[str, Any], receipts: tuple[Receipt, ...], facts: StoreFacts
) -> ObjectFacts:
    """Compare the stored object with what was sent."""
    found = object_facts(key, head)
    bytes_sent = sum(each.bytes for each in receipts)
    if found.bytes != bytes_sent:
        raise ChunkDamaged(f"{key}: {found.bytes} bytes are stored where {bytes_sent} were sent", key=key)
    ours = composite_of(receipts)
    theirs = composite_in(head, len(receipts)) or composite_in(reply, len(receipts))
    if theirs is not None and theirs != ours:
        raise ChunkDamaged(f"{key}: the store's SHA-256 is {clean(theirs)}, ours is {ours}", key=key)
    if theirs is None and facts.sha256:
        raise ChunkDamaged(f"{key}: the store verifies SHA-256 but names none for the whole chunk", key=key)
    if theirs is None:
        _confirm_etag(key, {found.etag, etag_of(reply)}, receipts)
    return ObjectFacts(
        key=found.key,
        bytes=found.bytes,
        etag=found.etag,
        sha256_composite=ours,
        storage_class=found.storage_class,
        retrieval=found.retrieval,
        retrieval_expires_at=found.retrieval_expires_at,
    )


def _confirm_etag(key: str, etags: set[str], receipts: tuple[Receipt, ...]) -> None:
    """Compare the ETags that have the customary multipart form; others prove nothing, the parts' own did."""
    ours = multipart_etag_of(receipts)
    for etag in etags:
        if ours is not None and is_multipart_etag(etag) and etag != ours:
            raise ChunkDamaged(f"{key}: the store's ETag is {etag}, the parts make {ours}", key=key)
