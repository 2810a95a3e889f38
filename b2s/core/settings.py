"""Every setting of b2s: its type, default, bounds and meaning, in one place (`s3` beside it, in store_settings).

The attributes are named exactly as the keys of the config file. Docs, JSON Schema and the messages about wrong values
are made from these models. Everything is frozen, unknown keys are refused, nothing is coerced.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ValidationInfo, model_validator

from b2s.core.contradictions import (
    Contradiction,
    KeyPath,
    compressed_in_protocol_1,
    shared_files,
    snapshots_on_sources,
    sources_not_apart,
    spool_too_small,
)
from b2s.core.limits import CHAIN_LENGTH_MAX, CONCURRENCY_MAX, GIB
from b2s.core.setting_types import (
    DAY,
    HOUR,
    LOCAL_TIMEZONE,
    MINUTE,
    SECOND,
    DirectoryPath,
    Duration,
    FilePath,
    Ionice,
    RunAt,
    Section,
    Size,
    SourceName,
    Timezone,
    Url,
    section,
    setting,
    settle,
)
from b2s.core.store_settings import S3Settings

Tier = Literal["Standard", "Bulk", "Expedited"]


class LogSettings(Section):
    """What b2s says of its work, and where to."""

    level: Literal["debug", "info", "warning", "error"] = setting(
        "The least important events that are logged.", "debug, info, warning or error", "info"
    )
    format: Literal["auto", "json", "console"] = setting(
        "One JSON object per line, or lines for people; auto is console on a terminal and JSON elsewhere.",
        "auto, json or console",
        "auto",
    )
    file: FilePath | None = setting(
        "Append the log to this file (0600) instead of stderr; it may be rotated at any time.",
        "null or an absolute path of a file",
        None,
    )


class ScheduleSettings(Section):
    """When a source is due."""

    full_every: Duration = setting(
        "A full backup is due when the last full is this old.",
        "a duration from 1s to 36500d",
        180 * DAY,
        ge=SECOND,
        le=36500 * DAY,
    )
    incremental_every: Duration = setting(
        "An incremental backup is due when the last backup is this old.",
        "a duration from 1s to 36500d",
        7 * DAY,
        ge=SECOND,
        le=36500 * DAY,
    )
    run_at: RunAt = setting(
        "The time of day at which the slots of intervals in whole days begin.",
        'a time of day from "00:00" to "23:59"',
        time(2, 0),
    )
    timezone: Timezone = setting(
        "The time zone of run_at.", "local or the name of a time zone, such as Europe/Berlin", LOCAL_TIMEZONE
    )
    skip_unchanged: bool = setting(
        "Make no incremental backup of a source in which nothing changed.", "true or false", True
    )
    max_chain_length: int | None = setting(
        "Make a full backup instead when the chain has this many backups; null: no limit but full_every.",
        f"null or a whole number from 1 to {CHAIN_LENGTH_MAX}",
        None,
        ge=1,
        le=CHAIN_LENGTH_MAX,
    )


class SnapshotSettings(Section):
    """The local snapshots a backup is sent from."""

    base_dir: DirectoryPath = setting(
        "Where snapshots are made, on the filesystem of the sources; made (0700) when missing. It may lie inside a "
        "source only within a nested subvolume.",
        "an absolute path",
        "/srv/.b2s-snapshots",
    )
    retain: int = setting(
        "Snapshots of a source to keep after a clean run, the send parent included.",
        "a whole number from 1 to 10000",
        2,
        ge=1,
        le=10_000,
    )


class SendSettings(Section):
    """How `btrfs send` writes its stream."""

    protocol: Literal[1, 2] = setting(
        "Version of the send stream; 2 needs Linux 6.0 and btrfs-progs 6.2 here and where it is restored.", "1 or 2", 1
    )
    compressed_data: bool = setting(
        "Send compressed extents as they are: less CPU and fewer bytes; needs protocol 2.", "true or false", False
    )


class SourceSettings(Section):
    """One subvolume to back up."""

    name: SourceName = setting(
        "The name of the source in the bucket; it identifies the source for ever.",
        "1 to 64 of A-Z a-z 0-9 . _ - that begin with neither . nor -",
    )
    path: DirectoryPath = setting("The subvolume.", "an absolute path")
    schedule: ScheduleSettings | None = setting(
        "Settings of the section schedule that differ for this source.", "null or a mapping", None
    )
    snapshots: SnapshotSettings | None = setting(
        "Settings of the section snapshots that differ for this source.", "null or a mapping", None
    )
    send: SendSettings | None = setting(
        "Settings of the section send that differ for this source.", "null or a mapping", None
    )


class SpoolSettings(Section):
    """Where segments wait for their upload."""

    enabled: bool = setting(
        "false: segments wait in memory (/dev/shm), at most segment_size * (concurrency + 2). true: they wait on disk, "
        "so that a slow network does not hold up `btrfs send`.",
        "true or false",
        False,
    )
    dir: DirectoryPath = setting(
        "The spool directory, made (0700) when missing; used when enabled.", "an absolute path", "/var/spool/b2s"
    )
    size: Size = setting(
        "Disk space the spool may take when enabled, in bytes; never less than one segment, better two or more.",
        "a size of at least one segment",
        8 * GIB,
        ge=1,
        le=1024 * 1024 * GIB,
    )


class ProcessSettings(Section):
    """How much of the machine b2s takes."""

    nice: int | None = setting(
        "CPU priority of all processes of a backup; null: as b2s was called.",
        "null or a whole number from -20 to 19",
        None,
        ge=-20,
        le=19,
    )
    ionice: Ionice | None = setting(
        "I/O priority of all processes of a backup; null: as b2s was called.",
        "null, idle, best-effort or best-effort:0 (first) to best-effort:7 (last)",
        None,
    )


class RestoreSettings(Section):
    """How a restore waits, downloads and checks."""

    verify: Literal["full", "sample", "none"] = setting(
        "How much of what was restored is compared afterwards.", "full, sample or none", "full"
    )
    sample_files: int = setting(
        "Files that verify: sample compares.", "a whole number from 1 to 100000000", 1000, ge=1, le=100_000_000
    )
    wait: bool = setting("Wait for archived chunks; false: exit 5 and be run again.", "true or false", True)
    poll_interval: Duration = setting(
        "Ask this often whether archived chunks are ready.",
        "a duration from 1s to 1d",
        5 * MINUTE,
        ge=SECOND,
        le=DAY,
    )
    timeout: Duration = setting(
        "Wait at most this long for archived chunks.", "a duration from 1s to 365d", 72 * HOUR, ge=SECOND, le=365 * DAY
    )
    tier: Tier = setting(
        "How fast archived chunks are retrieved; Bulk is the cheapest, DEEP_ARCHIVE has no Expedited.",
        "Standard, Bulk or Expedited",
        "Standard",
    )
    retrieval_days: int = setting(
        "Days the retrieved copies stay readable.", "a whole number from 1 to 365", 7, ge=1, le=365
    )
    concurrency: int = setting(
        "Most segments downloaded at once, one downloader process each. Memory: (concurrency + 2) segments of the size "
        "they were backed up in, and a process (at most 96 MiB) for each.",
        f"a whole number from 1 to {CONCURRENCY_MAX}",
        4,
        ge=1,
        le=CONCURRENCY_MAX,
    )


class MetricsSettings(Section):
    """Numbers for monitoring."""

    textfile: FilePath | None = setting(
        "Write the results of each run there for node_exporter's textfile collector.",
        "null or an absolute path of a file",
        None,
    )


class NotifySettings(Section):
    """Who is told that a run ended."""

    ping_url: Url | None = setting(
        "Call this URL with /start appended when a run begins, as it is after a clean run, with /fail after any other.",
        "null or a http:// or https:// URL without credentials",
        None,
    )


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Sources = Annotated[tuple[SourceSettings, ...], BeforeValidator(_as_tuple)]


class Settings(Section):
    """The whole config file."""

    log: LogSettings = section("What b2s says of its work.", LogSettings)
    state_path: FilePath = setting(
        "The journal of unfinished backups and a cache of the bucket (0600); can be rebuilt from the bucket.",
        "an absolute path of a file",
        "/var/lib/b2s/state.db",
    )
    lock_path: FilePath = setting(
        "The lock that keeps two runs apart.", "an absolute path of a file", "/run/b2s/b2s.lock"
    )
    schedule: ScheduleSettings = section("When sources are due.", ScheduleSettings)
    snapshots: SnapshotSettings = section("The local snapshots.", SnapshotSettings)
    sources: Sources = setting("The subvolumes to back up.", "a list with at least one source", min_length=1)
    send: SendSettings = section("How `btrfs send` writes its stream.", SendSettings)
    spool: SpoolSettings = section("Where segments wait for their upload.", SpoolSettings)
    s3: S3Settings = setting("The bucket, and how bytes get there.", "a mapping")
    process: ProcessSettings = section("How much of the machine b2s takes.", ProcessSettings)
    restore: RestoreSettings = section("How a restore waits, downloads and checks.", RestoreSettings)
    metrics: MetricsSettings = section("Numbers for monitoring.", MetricsSettings)
    notify: NotifySettings = section("Who is told that a run ended.", NotifySettings)

    def source(self, name: str) -> SourceSettings | None:
        """Return the source of this name, or None."""
        return next((source for source in self.sources if source.name == name), None)

    def schedule_of(self, source: SourceSettings) -> ScheduleSettings:
        """Return the schedule of one source, its own settings over the common ones."""
        return _overridden(self.schedule, source.schedule)

    def snapshots_of(self, source: SourceSettings) -> SnapshotSettings:
        """Return the snapshot settings of one source, its own over the common ones."""
        return _overridden(self.snapshots, source.snapshots)

    def send_of(self, source: SourceSettings) -> SendSettings:
        """Return the send settings of one source, its own over the common ones."""
        return _overridden(self.send, source.send)

    def base_dirs(self) -> list[tuple[KeyPath, str]]:
        """Return every snapshot directory in use, with the key that names it."""
        own: list[tuple[KeyPath, str]] = [
            (("sources", index, "snapshots", "base_dir"), source.snapshots.base_dir)
            for index, source in enumerate(self.sources)
            if source.snapshots is not None and "base_dir" in source.snapshots.model_fields_set
        ]
        common: tuple[KeyPath, str] = (("snapshots", "base_dir"), self.snapshots.base_dir)
        return own if len(own) == len(self.sources) else [common, *own]

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Settings:
        settle(list(self._contradictions()), info)
        return self

    def _contradictions(self) -> Iterator[Contradiction]:
        """Yield what is impossible between sections; what lies within `s3`, that section has said."""
        yield from spool_too_small(self.spool.size, self.s3.segment_size)
        yield from shared_files(
            [
                (("state_path",), self.state_path),
                (("lock_path",), self.lock_path),
                (("log", "file"), self.log.file),
                (("metrics", "textfile"), self.metrics.textfile),
            ]
        )
        yield from sources_not_apart([(source.name, source.path) for source in self.sources])
        yield from snapshots_on_sources(self.base_dirs(), [source.path for source in self.sources])
        places: list[tuple[KeyPath, SendSettings]] = [(("send",), self.send)]
        for index, source in enumerate(self.sources):
            if source.send is not None:
                places.append((("sources", index, "send"), self.send_of(source)))
        yield from compressed_in_protocol_1([(key, send.compressed_data, send.protocol) for key, send in places])


S = TypeVar("S", bound=Section)


def _overridden(common: S, own: S | None) -> S:
    if own is None:
        return common
    update: dict[str, Any] = {key: getattr(own, key) for key in own.model_fields_set}
    return common.model_copy(update=update)
