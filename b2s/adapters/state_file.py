"""The SQLite file behind the state: made whole or not at all, checked when opened, moved aside when damaged.

WAL mode, because a transaction then costs at most one fsync and a reader (`b2s status`) never waits for a run.
With `synchronous=FULL` a commit is on disk when it returns; with NORMAL it may be lost in a power cut, but
never tears the file. Both are switched per transaction, see `state.py`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import quote

from b2s.adapters import host
from b2s.errors import StateError

APPLICATION_ID = 0x62327331  # "b2s1"
SCHEMA_VERSION = 1
DAMAGED_KEPT = 3  # files moved aside, newest first
_BUSY_SECONDS = 10.0
_SIDE_FILES = ("-wal", "-shm", "-journal")

# The CHECKs are for `integrity_check`: it then also notices a value whose type was damaged on disk.
_TABLES = {
    "host": ("id TEXT",),
    "backup": ("backup_id TEXT PRIMARY KEY", "source TEXT", "intent TEXT", "sha256 BLOB"),
    "chunk": (
        "id INTEGER PRIMARY KEY",
        "backup_id TEXT",
        "chunk_index INTEGER",
        "key TEXT",
        "upload_id TEXT",
        "stored_bytes INTEGER?",
        "stored_etag TEXT?",
        "stored_sha256 TEXT?",
        "UNIQUE(backup_id, chunk_index)",
    ),
    "part": (
        "chunk INTEGER",
        "part_number INTEGER",
        "bytes INTEGER",
        "sha256 BLOB",
        "etag TEXT",
        "checksum INTEGER",
        "PRIMARY KEY(chunk, part_number)",
    ),
    "manifest": (
        "store TEXT",
        "source TEXT",
        "sequence INTEGER",
        "etag TEXT",
        "sha256 BLOB",
        "body BLOB",
        "PRIMARY KEY(store, source, sequence)",
    ),
    "unchanged": ("store TEXT", "source TEXT", "sequence INTEGER", "at TEXT", "PRIMARY KEY(store, source)"),
    "outcome": ("source TEXT PRIMARY KEY", "at TEXT", "ok INTEGER", "error TEXT?", "hint TEXT?"),
    "child": ("run_id TEXT", "pid INTEGER", "create_time REAL", "role TEXT"),
    "snapshot": ("path BLOB PRIMARY KEY", "source TEXT", "uuid TEXT?", "backup_id TEXT?"),
}
_WITHOUT_ROWID = {"backup", "part", "outcome", "snapshot"}  # small rows found by their key

# SQLITE_ERROR: the schema cannot be parsed; our own statements can.
_DAMAGE = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_HINTS = {
    sqlite3.SQLITE_FULL: "the disk of state_path is full: free space, then run again",
    sqlite3.SQLITE_READONLY: "the file system of state_path is read-only or the file belongs to another user",
    sqlite3.SQLITE_CANTOPEN: "check that state_path lies in a directory that root can write",
    sqlite3.SQLITE_IOERR: "the disk of state_path does not work or is full; look at the kernel log",
    sqlite3.SQLITE_BUSY: "another program has the state file open for writing",
}


class StateDamaged(Exception):
    """What lies at the path is not a state we can use; it is moved aside."""


def make_private_directory(path: str) -> None:
    """Make the directory of `path`, 0700, where it is missing."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error


def is_there(path: str) -> bool:
    """Tell whether a file lies at `path`.

    Raises:
        StateError: Something lies there that is not a regular file, or it cannot be looked at.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISREG(mode):
        raise StateError(f"{path} is not a regular file", hint="state_path must name a file of b2s's own")
    return True


def connect(path: str) -> sqlite3.Connection:
    """Open an existing file for writing, without judging its content."""
    return _connection(path, "rw")


def connect_read_only(path: str) -> sqlite3.Connection:
    """Open an existing file for reading and leave nothing behind.

    Without a WAL beside it nobody writes now, and SQLite may read the file as it is; otherwise it would make a
    WAL of its own and leave it there. With one, a run is under way or was killed, and its WAL belongs to the
    content, unless the file system is read-only.
    """
    if not os.path.exists(path + "-wal"):
        return _connection(path, "ro&immutable=1")
    connection = _connection(path, "ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        return _connection(path, "ro&immutable=1")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def empty_in_memory() -> sqlite3.Connection:
    """Return a state that holds nothing and is kept nowhere."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _fill(connection, "")
    return connection


def create(path: str, host_id: str) -> None:
    """Make a new, empty state at `path`: under another name first, so that it is never there half."""
    new = path + ".new"
    try:
        remove(new)
        remove(path)  # a WAL left behind by a file that was deleted would be taken for ours
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = _connection(new, "rw")
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.execute("PRAGMA synchronous=FULL")
            _fill(connection, host_id)
        finally:
            connection.close()  # the last one out writes the WAL back and deletes it
        os.rename(new, path)
        sync_directory(path)
    except OSError as error:
        raise _unusable(path, error) from error


def check(connection: sqlite3.Connection, host_id: str | None) -> None:
    """Look for every kind of damage that can be seen without the bucket; None accepts any host.

    Raises:
        StateDamaged: Not ours, another version, another host's, or torn.
    """
    application_id = _number(connection, "PRAGMA application_id")
    version = _number(connection, "PRAGMA user_version")
    if application_id != APPLICATION_ID:
        raise StateDamaged("it is not a state file of b2s")
    if version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "unknown"
        raise StateDamaged(f"it has the {age} version {version}; this b2s knows {SCHEMA_VERSION}")
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall())
    if found != {table: _create_statement(table) for table in _TABLES}:
        raise StateDamaged("its tables are not those of this version")
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict is None or verdict[0] != "ok":
        raise StateDamaged("it is corrupt")
    hosts = connection.execute("SELECT id FROM host").fetchall()
    if len(hosts) != 1 or host_id not in (None, hosts[0][0]):
        raise StateDamaged("it belongs to another host")


def move_aside(path: str) -> str:
    """Rename a damaged file, its side files with it, and delete all but the newest such files.

    Returns:
        The new path.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = f"{path}.damaged-{stamp}"
    try:
        for suffix in _SIDE_FILES:
            if os.path.lexists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        os.rename(path, aside)
        directory, name = os.path.split(os.path.abspath(path))
        prefix = name + ".damaged-"
        older = sorted(entry for entry in os.listdir(directory) if entry.startswith(prefix) and entry.endswith("Z"))
        for entry in older[:-DAMAGED_KEPT]:
            remove(os.path.join(directory, entry))
        sync_directory(path)
    except OSError as error:
        raise _unusable(path, error) from error
    return aside


def remove(path: str) -> None:
    """Delete a state file with its side files, as far as they exist."""
    for suffix in ("", *_SIDE_FILES):
        try:
            os.unlink(path + suffix)
        except FileNotFoundError:
            continue


def sync_directory(path: str) -> None:
    """Put the directory entry of `path` on disk."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def means_damage(error: sqlite3.Error) -> bool:
    """Tell whether SQLite complains about the content, not about the disk or its permissions."""
    return _primary_code(error) in _DAMAGE


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        hint = _HINTS.get(_primary_code(error))
        if means_damage(error):
            hint = "run again: a damaged state file is moved aside and rebuilt from the bucket"
        raise StateError(f"the state file {path} cannot be used: {error}", hint=hint) from error


def _connection(path: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(os.path.abspath(path))}?mode={mode}", uri=True, isolation_level=None, timeout=_BUSY_SECONDS
    )
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # damage is found by checksums, not here
    return connection


def _fill(connection: sqlite3.Connection, host_id: str) -> None:
    """Write schema, version and owner in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for table in _TABLES:
        connection.execute(_create_statement(table))
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("INSERT INTO host VALUES (?)", (host_id,))
    connection.execute("COMMIT")


def _create_statement(table: str) -> str:
    ending = " WITHOUT ROWID" if table in _WITHOUT_ROWID else ""
    return f"CREATE TABLE {table}({', '.join(map(_definition, _TABLES[table]))}){ending}"


def _definition(column: str) -> str:
    """Return the SQL for "name TYPE", "name TYPE?" (may be null) or a table constraint."""
    name, _, rest = column.partition(" ")
    type_name = rest.split(" ")[0]
    if type_name.rstrip("?") not in ("TEXT", "INTEGER", "REAL", "BLOB"):
        return column
    if type_name.endswith("?"):
        return f"{name} {type_name[:-1]} CHECK(typeof({name}) IN ('{type_name[:-1].lower()}', 'null'))"
    return f"{name} {rest} NOT NULL CHECK(typeof({name}) = '{type_name.lower()}')"


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(pragma).fetchone()[0])


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _unusable(path: str, error: OSError) -> StateError:
    return StateError(
        f"the state file {path} cannot be used: {error.strerror}",
        hint=host.hint_for(error, "check the directory, its file system and its free space (state_path)"),
    )
