"""The words of b2s as frozen data: kinds, reasons, and the facts that adapters observe."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

Sha256 = NewType("Sha256", bytes)  # 32 raw bytes, never hex


class Kind(StrEnum):
    """The two kinds of backup."""

    FULL = "full"
    INCREMENTAL = "incremental"


class ActionKind(StrEnum):
    """What a run does with one source."""

    FULL = "full"
    INCREMENTAL = "incremental"
    RESUME = "resume"
    SKIP = "skip"
    REFUSE = "refuse"


class Reason(StrEnum):
    """Why a run does it (SPEC section 8)."""

    FIRST = "first"
    FORCED = "forced"
    FULL_INTERVAL = "full_interval"
    CHAIN_LENGTH = "chain_length"
    INTERVAL = "interval"
    INTERRUPTED = "interrupted"
    NOT_DUE = "not_due"
    UNCHANGED = "unchanged"
    SEND_PARENT_MISSING = "send_parent_missing"
    SEND_PARENT_WRITABLE = "send_parent_writable"
    SEND_PARENT_CHANGED = "send_parent_changed"
    MANIFEST_MISSING = "manifest_missing"
    CHUNK_MISSING = "chunk_missing"
    CHAIN_BROKEN = "chain_broken"
    FOREIGN_HOST = "foreign_host"
    SOURCE_REPLACED = "source_replaced"
    SOURCE_MISSING = "source_missing"


@dataclass(frozen=True, slots=True)
class SubvolumeFacts:
    """What the kernel says of one subvolume or snapshot."""

    path: str  # absolute
    uuid: str  # lower-case, with dashes
    parent_uuid: str | None  # the kernel's field: what it is a snapshot of
    received_uuid: str | None
    filesystem_uuid: str
    ctransid: int  # transaction of the last change inside
    otransid: int  # transaction of its creation
    read_only: bool
    created_at: datetime  # aware UTC
    stransid: int = 0  # of a received one: the ctransid of what was sent; 0 where not received
    rtransid: int = 0  # of a received one: the transaction in which it was finished here; 0 where not received


@dataclass(frozen=True, slots=True)
class Receipt:
    """What S3 returned for one part, together with what we sent."""

    part_number: int  # 1-based
    bytes: int
    sha256: Sha256  # of the bytes we sent
    etag: str  # as returned, without the quotes


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One part as ListParts reports it."""

    part_number: int
    bytes: int
    etag: str  # without the quotes
    sha256: Sha256 | None  # where the store keeps it


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """One unfinished multipart upload as ListMultipartUploads reports it."""

    key: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One object as ListObjectsV2 reports it."""

    key: str
    bytes: int
    etag: str  # without the quotes
    storage_class: str


class Retrieval(StrEnum):
    """Whether an archived object can be read now."""

    NOT_NEEDED = "not_needed"  # not in an archive class
    COLD = "cold"  # archived, nobody has asked for it
    ONGOING = "ongoing"  # RestoreObject accepted, not ready yet
    READY = "ready"  # a temporary copy can be read


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """One object as HeadObject reports it."""

    key: str
    bytes: int
    etag: str  # without the quotes
    sha256_composite: str | None  # base64-N; the "-N" is added where a store leaves it out; None where unknown
    storage_class: str
    retrieval: Retrieval
    retrieval_expires_at: datetime | None  # of a temporary copy, aware UTC


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store really verifies, found by the probe."""

    sha256: bool  # refuses a part whose SHA-256 header is wrong
    content_md5: bool  # refuses a part whose Content-MD5 is wrong
    etag_is_md5: bool  # a part's ETag is the MD5 of what was stored
    round_trip_seconds: float = field(default=0.0, compare=False)  # of its fastest answer; 0 where nobody asked
