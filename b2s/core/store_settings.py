"""The settings of the bucket, and of how bytes get there: what every process that talks to S3 is given."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import ValidationInfo, model_validator

from b2s.core.contradictions import impossible_sizes, key_without_kms
from b2s.core.limits import CONCURRENCY_MAX, GIB, KIB, MIB, OBJECT_BYTES_MAX, PART_BYTES_MAX, PART_BYTES_MIN
from b2s.core.setting_types import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    BucketName,
    Duration,
    Endpoint,
    Prefix,
    Region,
    Section,
    Size,
    Word,
    section,
    setting,
    settle,
)

ChunkClass = Literal[
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
]
ManifestClass = Literal[  # the classes that answer at once: every run reads manifests
    "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"
]
Sse = Literal["AES256", "aws:kms", "none"]


class StorageClassSettings(Section):
    """The storage classes objects are written with."""

    chunks: ChunkClass = setting(
        "Storage class of chunks, nearly all of the bytes. DEEP_ARCHIVE is the cheapest to keep; a restore must "
        "then wait 12 to 48 hours for the retrieval.",
        "STANDARD, REDUCED_REDUNDANCY, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR, GLACIER or "
        "DEEP_ARCHIVE",
        "STANDARD",
    )
    manifests: ManifestClass = setting(
        "Storage class of manifests; every run reads them, so no class that must be retrieved first.",
        "STANDARD, REDUCED_REDUNDANCY, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or GLACIER_IR",
        "STANDARD",
    )


class S3Settings(Section):
    """The bucket, and how bytes get there."""

    bucket: BucketName = setting(
        "The bucket; b2s never creates it.", "a bucket name, without s3://: 3 to 63 of A-Z a-z 0-9 . _ -"
    )
    region: Region | None = setting(
        "The bucket's region; null: what boto3 finds in the environment or its profile.",
        "null or the name of a region, such as eu-central-1",
        None,
    )
    prefix: Prefix = setting(
        "What every key begins with; may be empty.",
        "path components with single slashes between them; no leading or trailing slash, no . or .. component",
        "",
    )
    endpoint_url: Endpoint | None = setting(
        "URL of an S3-compatible store, addressed path-style; null: AWS.",
        "null or a http:// or https:// URL without credentials",
        None,
    )
    profile: Word | None = setting(
        "Profile of ~/.aws to take credentials from; null: boto3's own credential chain.",
        "null or the name of a profile",
        None,
    )
    chunk_size: Size = setting(
        "Stream bytes per S3 object; a multiple of segment_size, at most 10,000 segments.",
        "a size up to 5TiB that is a multiple of segment_size, at most 10,000 times as big",
        200 * GIB,
        ge=PART_BYTES_MIN,
        le=OBJECT_BYTES_MAX,
    )
    segment_size: Size = setting(
        "Stream bytes per multipart part and per spool file. Memory: segment_size * (concurrency + 2) when the spool "
        "is not enabled.",
        "a size from 5MiB to 5GiB",
        32 * MIB,
        ge=PART_BYTES_MIN,
        le=PART_BYTES_MAX,
    )
    concurrency: int = setting(
        "Most segments in flight at once, one uploader process each; fewer where the spool has no room for them, or "
        "where more would only wait for a CPU. Memory: a process (at most 96 MiB) and, when the spool is not enabled, "
        "a segment for each.",
        f"a whole number from 1 to {CONCURRENCY_MAX}",
        4,
        ge=1,
        le=CONCURRENCY_MAX,
    )
    storage_class: StorageClassSettings = section("Storage classes of what is written.", StorageClassSettings)
    sse: Sse | None = setting(
        "Server-side encryption; null: AES256, or none when endpoint_url is set.",
        "null, AES256, aws:kms or none",
        None,
    )
    kms_key_id: Word | None = setting(
        "Key for aws:kms; null: the account's default key.", "null or the id, alias or ARN of a key", None
    )
    max_bandwidth: Size | None = setting(
        "Bytes a second that all uploaders together may send; null: no limit.",
        "null or a size from 1KiB",
        None,
        ge=KIB,
        le=1024 * GIB,
    )
    retry_for: Duration = setting(
        "Keep trying any S3 call through an outage this long; then the run stops and can be resumed.",
        "a duration from 0s to 30d",
        30 * MINUTE,
        ge=timedelta(),
        le=30 * DAY,
    )
    connect_timeout: Duration = setting(
        "Wait this long for a connection.", "a duration from 100ms to 1h", 10 * SECOND, ge=SECOND / 10, le=HOUR
    )
    read_timeout: Duration = setting(
        "Wait this long for the next byte of an answer.",
        "a duration from 100ms to 1h",
        60 * SECOND,
        ge=SECOND / 10,
        le=HOUR,
    )
    stall_timeout: Duration = setting(
        "Replace a worker process that moves no byte this long.",
        "a duration from 1s to 1d",
        5 * MINUTE,
        ge=SECOND,
        le=DAY,
    )

    @property
    def effective_sse(self) -> Sse:
        """Return the server-side encryption that is asked for, the default resolved."""
        return self.sse or ("none" if self.endpoint_url else "AES256")

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> S3Settings:
        found = [*impossible_sizes(self.chunk_size, self.segment_size), *key_without_kms(self.kms_key_id, self.sse)]
        settle(found, info)
        return self
