"""Outside limits, each with its source and the day it was read."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# Source: Amazon S3 User Guide, "Amazon S3 multipart upload limits" (read 2026-11).
PART_BYTES_MIN = 5 * MIB  # every part but the last
PART_BYTES_MAX = 5 * GIB
PARTS_PER_UPLOAD_MAX = 10_000
OBJECT_BYTES_MAX = 5 * TIB  # the limit b2s plans with; AWS raised its own to 50 TB, other stores did not
KEY_BYTES_MAX = 1024

# Ours (docs/format.md): what a manifest may contain at most.
MANIFEST_BYTES_MAX = 128 * MIB
MANIFEST_SEGMENTS_MAX = 1_048_576
SEQUENCE_MAX = 99_999_999
BACKUPS_PER_SOURCE_MAX = 1_000_000  # one every 15 minutes for 28 years; keeps what a LIST becomes in memory bounded
CHUNKS_PER_BACKUP_MAX = 100_000  # keeps what a manifest becomes in memory bounded
CHAIN_LENGTH_MAX = 10_000

# Ours: bounds of config values.
SOURCE_NAME_LENGTH_MAX = 64
CONFIG_BYTES_MAX = 1 * MIB
CONCURRENCY_MAX = 256

# Source: Linux man-pages, pipe(7) and /proc/sys/fs/pipe-max-size: an unprivileged pipe may grow to 1 MiB.
PIPE_BYTES = 1 * MIB
