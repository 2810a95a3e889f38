"""Every error b2s knows, with the exit code it ends in and the hint it gives.

Adapters translate what they meet into one of these, once, with ``raise ... from``. The CLI turns the error
that ends a run into one line, a hint and an exit code. Anything that is not a `B2sError` is a bug and keeps
its trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class B2sError(Exception):
    """A failure the user can understand.

    Attributes:
        message: One sentence: what failed, and where.
        hint: What to do next, or None when nothing helpful can be said.
        transient: True when the same call may succeed later (only S3 errors use it).
        context: More facts for the log; never secrets.
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None
    default_transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        transient: bool | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint
        self.transient = self.default_transient if transient is None else transient
        self.context = context

    def to_wire(self) -> WireError:
        """Return what may travel between processes: names and plain values, no pickled exception."""
        context = {key: value for key, value in self.context.items() if isinstance(value, str | int | float | bool)}
        return WireError(type(self).__name__, self.message, self.hint, self.transient, context)


@dataclass(frozen=True, slots=True)
class WireError:
    """An error on its way from a child process to the supervisor."""

    class_name: str
    message: str
    hint: str | None
    transient: bool
    context: dict[str, Any]

    def to_error(self) -> B2sError:
        """Rebuild the error; an unknown class becomes a plain `B2sError`."""
        known = {cls.__name__: cls for cls in all_errors()}
        error = known.get(self.class_name, B2sError)(
            self.message, hint=self.hint, transient=self.transient, **self.context
        )
        return error


# --- usage and configuration: exit 2 -------------------------------------------------------------


class UsageError(B2sError):
    """The command line or a name on it is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """The config file is wrong; the message lists every problem, one per line."""


# --- lock: exit 3 ----------------------------------------------------------------------------------


class LockHeld(B2sError):
    """Another run holds the lock."""

    exit_code = 3
    default_hint = "wait for the other run to end; b2s takes over by itself when its process is gone"


class LockRefused(B2sError):
    """What lies at `lock_path` is not a lock file of ours (a symlink, a directory)."""


# --- stored data: exit 4 ---------------------------------------------------------------------------


class StoredDataError(B2sError):
    """Something in the bucket is missing, damaged or not to be trusted."""

    exit_code = 4
    default_hint = "`b2s verify` tells what is damaged; backups of another chain may be whole"


class ManifestMissing(StoredDataError):
    """A manifest that a chain needs is not in the bucket."""


class ManifestDamaged(StoredDataError):
    """A manifest cannot be decoded, breaks a bound or contradicts itself or its key."""


class ChainBroken(StoredDataError):
    """The manifests of a chain do not link up."""


class ChunkMissing(StoredDataError):
    """A chunk that a manifest names is not in the bucket."""


class ChunkDamaged(StoredDataError):
    """A chunk or one of its segments has another size or checksum than its manifest says."""


class BackupNotFound(StoredDataError):
    """No backup in the bucket matches what was asked for."""

    default_hint = "`b2s list` shows what this bucket and prefix hold"


# --- archive: exit 5 -------------------------------------------------------------------------------


class RetrievalPending(B2sError):
    """Archived chunks are being retrieved; run again later."""

    exit_code = 5


# --- orderly stop: 128 + signal --------------------------------------------------------------------


class Stopped(B2sError):
    """The run was asked to stop by a signal and stopped in an orderly way."""

    default_hint = "run the same command again; it goes on where it stopped"

    def __init__(self, message: str, *, signal_number: int = 15, **context: Any) -> None:
        super().__init__(message, signal_number=signal_number, **context)
        self.signal_number = signal_number


# --- S3 --------------------------------------------------------------------------------------------


class StoreError(B2sError):
    """An S3 call failed."""


class StoreUnavailable(StoreError):
    """The server did not answer, answered 5xx or 429, or the connection broke: try again."""

    default_transient = True


class PartRejected(StoreError):
    """The server says, or its receipt shows, that it received other bytes than we sent: send again."""

    default_transient = True


class AccessDenied(StoreError):
    """The credentials may not do this."""


class CredentialsMissing(StoreError):
    """No usable credentials were found, or they are wrong or have expired for good."""


class BucketMissing(StoreError):
    """The bucket does not exist; b2s never creates one."""


class CertificateRejected(StoreError):
    """The server's TLS certificate was not accepted."""


class ClockSkewed(StoreError):
    """The server refuses our clock."""


class UploadGone(StoreError):
    """The multipart upload no longer exists (aborted, or already completed)."""


class ObjectMissing(StoreError):
    """The object is not in the bucket."""


class ObjectChanged(StoreError):
    """The object is no longer the one the download began with (`If-Match` failed)."""


class ObjectArchived(StoreError):
    """The object lies in an archive class and is not retrieved."""


class KeyTaken(StoreError):
    """A write-once key exists already with other content."""

    default_hint = "another run writes under this source name and was first; give each host its own prefix or names"


class StoreRefused(StoreError):
    """The server refused the request for a reason that trying again will not change."""


# --- btrfs -----------------------------------------------------------------------------------------


class BtrfsError(B2sError):
    """A btrfs command or ioctl failed."""


class BtrfsToolMissing(BtrfsError):
    """The `btrfs` program was not found."""

    default_hint = "install btrfs-progs (Debian, Ubuntu: apt install btrfs-progs)"


class SourceMissing(BtrfsError):
    """The source's path does not exist."""


class NotASubvolume(BtrfsError):
    """The path is not the root of a btrfs subvolume."""


class SubvolumeBusy(BtrfsError):
    """The subvolume is in use (EPERM, EBUSY) and cannot be deleted now."""


class SendFailed(BtrfsError):
    """`btrfs send` failed, or its stream is not whole."""


class ReceiveFailed(BtrfsError):
    """`btrfs receive` failed, or did not leave the one subvolume it should have."""


class StreamRefused(ReceiveFailed):
    """The verified bytes are no stream that makes the one subvolume its manifest speaks of."""

    exit_code = 4
    default_hint = "whoever wrote this backup wrote it wrong or means harm; choose another point, see `b2s list`"


class TargetExists(UsageError):
    """The restore target exists already."""


class StreamChanged(BtrfsError):
    """The regenerated stream differs from what completed chunks hold; a new backup has to start."""


# --- planning --------------------------------------------------------------------------------------


class SourceRefused(B2sError):
    """The source name in the bucket belongs to another host or subvolume."""


# --- processes, spool, state -----------------------------------------------------------------------


class SpoolFull(B2sError):
    """The spool cannot hold even one segment."""


class SpoolRefused(B2sError):
    """The spool directory is unsafe to use (a symlink, or writable by others)."""


class SpoolDamaged(B2sError):
    """The spool does not hold what was written to it."""

    default_hint = "look for failing memory or a failing disk under the spool; run the same command again to go on"


class WorkerFailed(B2sError):
    """A child process died or stalled more often than can be ridden out."""


class StateError(B2sError):
    """The state file cannot be used or written."""


def all_errors() -> list[type[B2sError]]:
    """Return every error class, the base first."""
    found: list[type[B2sError]] = [B2sError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub not in found)
    return found
