"""Whole objects: look at one, read it, write a new one, ask for an archived one."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any

from botocore.exceptions import BotoCoreError

from b2s.adapters.http_bodies import BodyView
from b2s.adapters.s3_errors import is_not_implemented
from b2s.adapters.s3_multipart import MultipartCalls
from b2s.adapters.s3_replies import encode, etag_of, is_md5, object_facts
from b2s.adapters.s3_transport import SLICE_BYTES
from b2s.core.limits import MIB
from b2s.core.model import ObjectFacts
from b2s.errors import (
    AccessDenied,
    B2sError,
    ChunkDamaged,
    KeyTaken,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)

# A download that broke off counts as progress only when it brought this much, so that a connection which dies
# after a few bytes each time comes to an end.
PROGRESS_BYTES = 1 * MIB


class ObjectCalls(MultipartCalls):
    """Everything about single objects."""

    def check(self) -> None:
        """Make sure that the bucket is there and the credentials may list it.

        Raises:
            BucketMissing, AccessDenied, CredentialsMissing: As it is.
        """
        try:
            self._retried("HeadBucket")
        except (AccessDenied, StoreRefused) as error:
            # A HEAD has no body to say why, and a policy may allow the prefix only: ask again with a LIST.
            if error.context.get("http_status") not in {400, 403}:
                raise
            prefix = f"{self.settings.prefix}/" if self.settings.prefix else ""
            self._retried("ListObjectsV2", Prefix=prefix, MaxKeys=1)

    def head(self, key: str) -> ObjectFacts:
        """Return the object's facts.

        Raises:
            ObjectMissing: It does not exist.
        """
        return object_facts(key, self._retried("HeadObject", key, ChecksumMode="ENABLED"))

    def get(self, key: str, bytes_max: int) -> bytes:
        """Return a whole small object.

        A bit flipped on its way heals where the ETag tells; nothing here says so, so what is wrong twice is the
        store's word: not every store makes ETags of MD5.

        Raises:
            ObjectMissing: It does not exist.
            StoreRefused: It is larger than `bytes_max`.
        """

        def attempt() -> bytes:
            content, as_stored = self._read_whole(key, bytes_max)
            if not as_stored:
                del content  # not two of them at once
                content, _ = self._read_whole(key, bytes_max)
            return content

        return self._retrier.call(attempt)

    def _read_whole(self, key: str, bytes_max: int) -> tuple[bytes, bool]:
        """Return an object, and False where its ETag is an MD5 and not that of these bytes."""
        reply = self._call("GetObject", key)
        length = int(reply.get("ContentLength", -1))
        content = io.BytesIO()  # gives its bytes away without copying them: a manifest may have 128 MiB
        piece = memoryview(bytearray(min(SLICE_BYTES, bytes_max + 1)))
        with _closing(reply) as body:
            if length > bytes_max:
                raise StoreRefused(f"{key}: {length} bytes where at most {bytes_max} are allowed", key=key)
            while count := self._fill(key, body, piece):
                content.write(piece[:count])
                if content.tell() > bytes_max:
                    raise StoreRefused(f"{key}: more than the {bytes_max} bytes that are allowed", key=key)
        if content.tell() < length:
            raise StoreUnavailable(f"{key}: the reply broke off after {content.tell()} of {length} bytes", key=key)
        etag = etag_of(reply)
        plain = reply.get("ServerSideEncryption", "AES256") == "AES256"  # under KMS it only looks like one
        digest = hashlib.md5(content.getbuffer(), usedforsecurity=False).hexdigest()
        return content.getvalue(), digest == etag or not (plain and is_md5(etag))

    def get_range(
        self,
        key: str,
        etag: str,
        offset: int,
        buffer: memoryview,
        on_piece: Callable[[memoryview], object] = lambda piece: None,
    ) -> None:
        """Fill `buffer` with the object's bytes from `offset`; goes on where a body broke off.

        Args:
            etag: The object must still have it.
            offset: From the start of the object.
            buffer: Written in place; its content is undefined when this raises.
            on_piece: Shown every piece of `buffer` once, in order, as soon as it is filled: while a cache has it.

        Raises:
            ObjectChanged: The object has another ETag now.
            ChunkDamaged: The object ends before `buffer` is full.
            ObjectArchived, ObjectMissing: As it is.
        """
        filled = 0

        def attempt() -> None:
            nonlocal filled
            room = buffer[filled:]
            first, last = offset + filled, offset + len(buffer) - 1
            try:
                reply = self._call("GetObject", key, Range=f"bytes={first}-{last}", IfMatch=f'"{etag}"')
            except StoreRefused as error:
                if error.context.get("code") == "InvalidRange":
                    raise ChunkDamaged(f"{key}: it ends before byte {last + 1}", key=key) from error
                raise
            with _closing(reply) as body:
                if etag_of(reply) not in {"", etag}:  # rclone does not know If-Match
                    raise ObjectChanged(f"{key}: it was replaced while it was read", key=key)
                _check_range(key, reply, first, len(room))
                for start in range(0, len(room), SLICE_BYTES):
                    piece = room[start : start + SLICE_BYTES]
                    got = self._fill(key, body, piece)
                    on_piece(piece[:got])
                    filled += got
                    if got < len(piece):
                        raise StoreUnavailable(f"{key}: the body broke off at byte {offset + filled}", key=key)

        if len(buffer) == 0:
            return
        self._retrier.call(attempt, progress=lambda: filled // PROGRESS_BYTES)

    def put_new(self, key: str, body: bytes, *, manifest: bool = True) -> None:
        """Write an object that must not exist yet, and read it back. Safe to repeat with the same bytes.

        Args:
            manifest: Use the storage class of manifests, else the one of chunks.

        Raises:
            KeyTaken: The key exists with other bytes, written by somebody else before us or at the same time.
        """
        classes = self.settings.storage_class
        parameters: dict[str, Any] = {
            "ChecksumSHA256": encode(hashlib.sha256(body).digest()),
            "ContentMD5": encode(hashlib.md5(body, usedforsecurity=False).digest()),
            "IfNoneMatch": "*",
            **self._stored_as(classes.manifests if manifest else classes.chunks),
        }

        def attempt() -> None:
            if self._holds(key, body):
                return
            try:
                self._call("PutObject", key, Body=BodyView(memoryview(body)), **parameters)
            except ObjectChanged:
                pass  # somebody was first, perhaps we ourselves with a reply that got lost
            except StoreRefused as error:
                if "IfNoneMatch" in parameters and is_not_implemented(error):
                    # Looking before and reading back is all such a store allows.
                    del parameters["IfNoneMatch"]
                    raise StoreUnavailable(f"{key}: the store knows no If-None-Match", key=key) from error
                raise
            if not self._holds(key, body):
                raise StoreUnavailable(f"{key}: written, but the store does not have it", key=key)

        self._retrier.call(attempt)

    def request_retrieval(self, facts: ObjectFacts, days: int, tier: str) -> None:
        """Ask for an archived object; asking twice is fine.

        Args:
            facts: Which one. Those of INTELLIGENT_TIERING come back for good, and S3 refuses to hear for how many days.
            days: How long the copy is to stay readable.
            tier: Standard, Bulk or Expedited.

        Raises:
            StoreRefused: The tier is not to be had for this object, or it is not archived.
        """
        key = facts.key
        request: dict[str, Any] = {"GlacierJobParameters": {"Tier": tier}}
        if facts.storage_class != "INTELLIGENT_TIERING":
            request["Days"] = days
        try:
            self._retried("RestoreObject", key, RestoreRequest=request)
        except ObjectArchived as error:
            # S3 calls an object "in an invalid state" both when it must be retrieved and when it cannot be.
            raise StoreRefused(f"{key} is not archived, there is nothing to retrieve", **error.context) from error
        except B2sError as error:
            if error.context.get("code") == "RestoreAlreadyInProgress":
                return
            if isinstance(error, StoreRefused) and error.hint is None and "Tier" in error.message:
                error.hint = "choose another tier: --tier Standard or --tier Bulk"
            raise

    def _holds(self, key: str, body: bytes) -> bool:
        """Tell whether `key` holds exactly `body`; False when it does not exist.

        Raises:
            KeyTaken: It holds something else.
        """
        try:
            reply = self._call("GetObject", key)
        except ObjectMissing:
            return False
        length = int(reply.get("ContentLength", -1))
        room = memoryview(bytearray(len(body)))
        with _closing(reply) as stream:
            filled = self._fill(key, stream, room) if length == len(body) else 0
        if length == len(body) and filled < length:
            raise StoreUnavailable(f"{key}: the reply broke off after {filled} of {length} bytes", key=key)
        if length != len(body) or room != body:
            raise KeyTaken(f"{key} exists already with other content", key=key)
        return True

    def _fill(self, key: str, body: Any, room: memoryview) -> int:
        """Read until `room` is full or the body ends; return the bytes read."""
        filled = 0
        while filled < len(room):
            try:
                count = body.readinto(room[filled : filled + SLICE_BYTES])
            except (OSError, HTTPException, BotoCoreError) as error:
                raise StoreUnavailable(f"{key}: the body broke off: {type(error).__name__}", key=key) from error
            if not count:
                break
            filled += count
            self._moved(count)
        return filled


@contextmanager
def _closing(reply: dict[str, Any]) -> Iterator[Any]:
    """Give the body; what is left of it afterwards is dropped, together with its connection."""
    body = reply["Body"]
    try:
        yield body
    finally:
        body.close()


_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


def _check_range(key: str, reply: dict[str, Any], first: int, bytes_wanted: int) -> None:
    """Make sure that the body is the range that was asked for; a store that ignores Range sends the whole object."""
    length = int(reply.get("ContentLength", -1))
    found = _CONTENT_RANGE.fullmatch(str(reply.get("ContentRange", "")))
    if found is None:
        if first == 0 and length == bytes_wanted:
            return
    elif int(found[1]) == first:
        end = int(found[2]) + 1
        if end == first + bytes_wanted and length in {-1, bytes_wanted}:
            return
        if end < first + bytes_wanted and found[3] == str(end):
            raise ChunkDamaged(f"{key}: it ends at byte {end}", key=key)
    raise StoreUnavailable(f"{key}: the reply is not the range that was asked for", key=key)
