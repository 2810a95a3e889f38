"""The state on disk: the journal of unfinished backups, and what would otherwise be asked of the bucket again.

Everything here can be lost: the bucket alone is enough. It is a journal (what was sent of an unfinished
backup), a cache (manifests), and a record of what b2s itself made on this host (snapshots, processes).

What must survive a power cut is written with `synchronous=FULL`: the intent, opened and stored chunks, own
snapshots, the end of a backup. Receipts of parts are written with NORMAL, without an fsync each: ListParts knows
the lost ones too. Only the supervisor opens the state for writing, while it holds the run lock.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from b2s.adapters import state_file
from b2s.adapters.children import ProcessId
from b2s.adapters.state_file import StateDamaged
from b2s.core import intent_json
from b2s.core.journal import BackupIntent, BackupProgress, ChunkProgress, StoredChunk
from b2s.core.model import Receipt, Sha256


@dataclass(frozen=True, slots=True)
class CachedManifest:
    """What was kept of one manifest, as it was when the store answered with this ETag."""

    etag: str  # without the quotes
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last run left one source."""

    at: datetime  # aware UTC
    ok: bool  # False from the moment that something is due until it is done
    error: str | None  # None: not known, or not yet
    hint: str | None


@dataclass(frozen=True, slots=True)
class OwnSnapshot:
    """A snapshot that b2s made, or was about to make, on this host; nothing else is ever deleted."""

    source: str
    path: str
    uuid: str | None  # None: announced; whether it was made, only the file system knows
    backup_id: str | None


class State:
    """One open state file; close it, or use it as a context manager.

    Attributes:
        rebuilt_reason: Why what lay at the path could not be used, in words after "because"; None when it could.
        moved_to: Where it lies now; None when nothing was moved.
        created: True when there was no file at all (a first run, or someone deleted it).
        read_only: True when nothing can be written.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: str,
        *,
        rebuilt_reason: str | None = None,
        moved_to: str | None = None,
        created: bool = False,
        read_only: bool = False,
    ) -> None:
        self._connection = connection
        self._path = path
        self._synchronous = ""
        self.rebuilt_reason = rebuilt_reason
        self.moved_to = moved_to
        self.created = created
        self.read_only = read_only

    @classmethod
    def open(cls, path: str, host_id: str) -> State:
        """Open the state for writing, making it where there is none or it is of no use.

        Raises:
            StateError: The disk is full or broken, or the path is not usable.
        """
        state_file.make_private_directory(path)
        reason: str | None = None
        moved_to: str | None = None
        created = not state_file.is_there(path)
        if not created:
            with state_file.translated(path):
                try:
                    return cls(_checked(state_file.connect(path), host_id), path)
                except StateDamaged as error:
                    reason = str(error)
            moved_to = state_file.move_aside(path)
        with state_file.translated(path):
            state_file.create(path, host_id)
            connection = _checked(state_file.connect(path), host_id)
        return cls(connection, path, rebuilt_reason=reason, moved_to=moved_to, created=created)

    @classmethod
    def open_read_only(cls, path: str, host_id: str | None = None) -> State:
        """Open the state for reading; missing or of no use, it looks empty. Nothing is made or moved.

        Args:
            path: The state file.
            host_id: Whose it must be; None accepts any.

        Raises:
            StateError: The disk is broken, or the path is not usable.
        """
        if not state_file.is_there(path):
            return cls(state_file.empty_in_memory(), path, created=True, read_only=True)
        with state_file.translated(path):
            try:
                return cls(_checked(state_file.connect_read_only(path), host_id), path, read_only=True)
            except StateDamaged as error:
                return cls(state_file.empty_in_memory(), path, rebuilt_reason=str(error), read_only=True)

    def close(self) -> None:
        """Close the file."""
        with state_file.translated(self._path):
            self._connection.close()

    def __enter__(self) -> Self:
        """Return the state itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._connection.close()

    # --- the journal ---------------------------------------------------------------------------------

    def begin(self, intent: BackupIntent) -> None:
        """Record what will be done before anything of it is sent. Durable."""
        text = intent_json.encode(intent)
        with self._durable() as db:
            self._forget_backup(db, intent.backup_id)
            row = (intent.backup_id, intent.source.name, text, _digest(text))
            db.execute("INSERT INTO backup VALUES (?, ?, ?, ?)", row)

    def chunk_opened(self, backup_id: str, chunk_index: int, key: str, upload_id: str) -> None:
        """Record a chunk's multipart upload; receipts of an older upload of it are forgotten. Durable."""
        with self._durable() as db:
            where = (backup_id, chunk_index)
            db.execute(
                "DELETE FROM part WHERE chunk IN (SELECT id FROM chunk WHERE backup_id = ? AND chunk_index = ?)", where
            )
            db.execute("DELETE FROM chunk WHERE backup_id = ? AND chunk_index = ?", where)
            db.execute(
                "INSERT INTO chunk(backup_id, chunk_index, key, upload_id) VALUES (?, ?, ?, ?)",
                (*where, key, upload_id),
            )

    def part_stored(self, backup_id: str, chunk_index: int, receipt: Receipt) -> None:
        """Record what S3 returned for one part. Cheap: no fsync, a power cut may lose the last ones.

        Raises:
            KeyError: That chunk was never opened (a bug of the caller).
        """
        values = (receipt.part_number, receipt.bytes, receipt.sha256, receipt.etag)
        with self._cheap() as db:
            cursor = db.execute(
                "INSERT OR REPLACE INTO part SELECT id, ?, ?, ?, ?, ? FROM chunk"
                " WHERE backup_id = ? AND chunk_index = ?",
                (*values, _checksum(*values), backup_id, chunk_index),
            )
            if cursor.rowcount != 1:
                raise KeyError((backup_id, chunk_index))

    def chunk_stored(self, backup_id: str, chunk_index: int, stored: StoredChunk) -> None:
        """Record that a chunk is one object now. Durable.

        Raises:
            KeyError: That chunk was never opened (a bug of the caller).
        """
        with self._durable() as db:
            cursor = db.execute(
                "UPDATE chunk SET stored_bytes = ?, stored_etag = ?, stored_sha256 = ?"
                " WHERE backup_id = ? AND chunk_index = ?",
                (stored.bytes, stored.etag, stored.sha256_composite, backup_id, chunk_index),
            )
            if cursor.rowcount != 1:
                raise KeyError((backup_id, chunk_index))

    def finish(self, backup_id: str) -> None:
        """Forget a backup that is committed or given up. Durable."""
        with self._durable() as db:
            self._forget_backup(db, backup_id)

    def unfinished(self) -> list[BackupProgress]:
        """Return every unfinished backup, by source, then by time."""
        with state_file.translated(self._path):
            rows = self._connection.execute("SELECT backup_id FROM backup ORDER BY source, backup_id").fetchall()
            found = [self.progress(row[0]) for row in rows]
        return [progress for progress in found if progress is not None]

    def progress(self, backup_id: str) -> BackupProgress | None:
        """Return how far an unfinished backup got; receipts that were damaged on disk are left out."""
        with state_file.translated(self._path):
            row = self._connection.execute("SELECT intent FROM backup WHERE backup_id = ?", (backup_id,)).fetchone()
            if row is None:
                return None
            chunks = {
                fields[1]: self._chunk(*fields)
                for fields in self._connection.execute(
                    "SELECT id, chunk_index, key, upload_id, stored_bytes, stored_etag, stored_sha256 FROM chunk"
                    " WHERE backup_id = ? ORDER BY chunk_index",
                    (backup_id,),
                ).fetchall()
            }
        return BackupProgress(intent_json.decode(row[0]), chunks)

    # --- the cache of manifests ----------------------------------------------------------------------

    def cache_manifest(self, store: str, source: str, sequence: int, etag: str, body: bytes) -> None:
        """Keep what is to be known of a manifest without fetching it again."""
        with self._cheap() as db:
            row = (store, source, sequence, etag, hashlib.sha256(body).digest(), body)
            db.execute("INSERT OR REPLACE INTO manifest VALUES (?, ?, ?, ?, ?, ?)", row)

    def cached_manifest(self, store: str, source: str, sequence: int) -> CachedManifest | None:
        """Return one kept manifest; None where it is not kept or was damaged on disk."""
        with state_file.translated(self._path):
            row = self._connection.execute(
                "SELECT etag, sha256, body FROM manifest WHERE store = ? AND source = ? AND sequence = ?",
                (store, source, sequence),
            ).fetchone()
        return CachedManifest(row[0], row[2]) if row and hashlib.sha256(row[2]).digest() == row[1] else None

    def newest_cached(self, store: str, source: str) -> int | None:
        """Return the highest sequence of the kept manifests of a source."""
        with state_file.translated(self._path):
            row = self._connection.execute(
                "SELECT max(sequence) FROM manifest WHERE store = ? AND source = ?", (store, source)
            ).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def forget_manifests(self, store: str, source: str) -> None:
        """Drop the kept manifests of a source."""
        with self._cheap() as db:
            db.execute("DELETE FROM manifest WHERE store = ? AND source = ?", (store, source))

    def record_unchanged(self, store: str, source: str, sequence: int, at: datetime) -> None:
        """Remember that a source was found unchanged since its backup `sequence`."""
        with self._cheap() as db:
            row = (store, source, sequence, at.isoformat())
            db.execute("INSERT OR REPLACE INTO unchanged VALUES (?, ?, ?, ?)", row)

    def unchanged_at(self, store: str, source: str, sequence: int) -> datetime | None:
        """Return when the source was last found unchanged since this very backup."""
        with state_file.translated(self._path):
            row = self._connection.execute(
                "SELECT at FROM unchanged WHERE store = ? AND source = ? AND sequence = ?", (store, source, sequence)
            ).fetchone()
        return None if row is None else _moment(row[0])

    # --- what happened, and what is ours on this host ------------------------------------------------

    def record_outcome(self, source: str, at: datetime, ok: bool, error: str | None, hint: str | None) -> None:
        """Remember how a run left a source: for `status`, and for the next run to tidy up."""
        with self._durable() as db:
            row = (source, at.isoformat(), ok, _storable(error), _storable(hint))
            db.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?)", row)

    def outcomes(self) -> dict[str, Outcome]:
        """Return how the last run left each source."""
        with state_file.translated(self._path):
            rows = self._connection.execute(
                "SELECT source, at, ok, error, hint FROM outcome ORDER BY source"
            ).fetchall()
        return {
            source: Outcome(moment, bool(ok), error, hint)
            for source, at, ok, error, hint in rows
            if (moment := _moment(at)) is not None
        }

    def record_child(self, run_id: str, process: ProcessId, role: str) -> None:
        """Remember a child process, so that a later run can end it when this one dies."""
        with self._cheap() as db:
            db.execute("INSERT INTO child VALUES (?, ?, ?, ?)", (run_id, process.pid, process.create_time, role))

    def children(self) -> list[tuple[str, ProcessId, str]]:
        """Return (run_id, process, role) of every child that was recorded and not forgotten."""
        with state_file.translated(self._path):
            rows = self._connection.execute("SELECT run_id, pid, create_time, role FROM child").fetchall()
        return [(run_id, ProcessId(pid, create_time), role) for run_id, pid, create_time, role in rows]

    def forget_children(self, run_id: str) -> None:
        """Forget the children of a run: they are gone."""
        with self._cheap() as db:
            db.execute("DELETE FROM child WHERE run_id = ?", (run_id,))

    def record_snapshot(self, source: str, path: str, uuid: str | None, backup_id: str | None) -> None:
        """Remember that the snapshot at `path` is b2s's own. Durable.

        Call it with `uuid` None before the snapshot is made and again with its uuid after: killed in between,
        the next run still knows whose it is.
        """
        with self._durable() as db:
            row = (os.fsencode(path), source, uuid, backup_id)
            db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?)", row)

    def own_snapshots(self, source: str) -> list[OwnSnapshot]:
        """Return b2s's own snapshots of a source, announced ones too, by path."""
        with state_file.translated(self._path):
            rows = self._connection.execute(
                "SELECT source, path, uuid, backup_id FROM snapshot WHERE source = ? ORDER BY path", (source,)
            ).fetchall()
        return [OwnSnapshot(name, os.fsdecode(path), uuid, backup_id) for name, path, uuid, backup_id in rows]

    def forget_snapshot_path(self, path: str) -> None:
        """Forget a snapshot by its path: an announced one that was never made, or is deleted. Durable."""
        with self._durable() as db:
            db.execute("DELETE FROM snapshot WHERE path = ?", (os.fsencode(path),))

    # --- within --------------------------------------------------------------------------------------

    def _chunk(
        self,
        row_id: int,
        chunk_index: int,
        key: str,
        upload_id: str,
        stored_bytes: int | None,
        stored_etag: str | None,
        stored_sha256: str | None,
    ) -> ChunkProgress:
        receipts: dict[int, Receipt] = {}
        for number, size, sha256, etag, checksum in self._connection.execute(
            "SELECT part_number, bytes, sha256, etag, checksum FROM part WHERE chunk = ? ORDER BY part_number",
            (row_id,),
        ):
            if checksum == _checksum(number, size, sha256, etag):
                receipts[number] = Receipt(number, size, Sha256(sha256), etag)
        stored = None
        if stored_bytes is not None and stored_etag is not None and stored_sha256 is not None:
            stored = StoredChunk(stored_bytes, stored_etag, stored_sha256)
        return ChunkProgress(chunk_index, key, upload_id, receipts, stored)

    @staticmethod
    def _forget_backup(db: sqlite3.Connection, backup_id: str) -> None:
        db.execute("DELETE FROM part WHERE chunk IN (SELECT id FROM chunk WHERE backup_id = ?)", (backup_id,))
        db.execute("DELETE FROM chunk WHERE backup_id = ?", (backup_id,))
        db.execute("DELETE FROM backup WHERE backup_id = ?", (backup_id,))

    @contextmanager
    def _durable(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction that is on disk, with everything before it, when it is over."""
        with self._transaction("FULL") as db:
            yield db

    @contextmanager
    def _cheap(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction that survives a kill, but perhaps not a power cut."""
        with self._transaction("NORMAL") as db:
            yield db

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[sqlite3.Connection]:
        db = self._connection
        with state_file.translated(self._path):
            if synchronous != self._synchronous:
                db.execute(f"PRAGMA synchronous={synchronous}")
                self._synchronous = synchronous
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite itself rolls back on a full disk
                    db.execute("ROLLBACK")
                raise


def _checked(connection: sqlite3.Connection, host_id: str | None) -> sqlite3.Connection:
    """Return the connection when its content is sound, else close it and say what is wrong."""
    try:
        state_file.check(connection, host_id)
        for text, digest in connection.execute("SELECT intent, sha256 FROM backup").fetchall():
            if _digest(text) != digest:
                raise StateDamaged("its journal is corrupt")
            intent_json.decode(text)
    except sqlite3.Error as error:
        connection.close()
        if state_file.means_damage(error):
            raise StateDamaged(f"it is damaged ({error})") from error
        raise
    except ValueError as error:
        connection.close()
        raise StateDamaged("its journal is corrupt") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checksum(part_number: int, size: int, sha256: bytes, etag: str) -> int:
    """Return a checksum over one receipt: SQLite does not notice a bit that flips inside a value."""
    return zlib.crc32(repr((part_number, size, sha256, etag)).encode())


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None  # damaged on disk; nothing that matters misses it
    return moment if moment.tzinfo is not None else None


def _storable(text: str | None) -> str | None:
    """Return text that SQLite can take: undecodable bytes of a path become escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
