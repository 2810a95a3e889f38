"""Subvolumes: what the kernel says of them, how they are made and deleted, how they are sent and received."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from uuid import UUID

from b2s.adapters import btrfs_ioctl
from b2s.adapters.btrfs_tool import ToolAnswer, Versions, find_btrfs, run_btrfs, versions
from b2s.adapters.mounts import btrfs_mounts
from b2s.core.model import SubvolumeFacts
from b2s.errors import BtrfsError, NotASubvolume, SourceMissing, SubvolumeBusy

__all__ = [
    "Versions",
    "create_snapshot",
    "create_writable_snapshot",
    "delete_subvolume",
    "filesystem_uuid_of",
    "find_btrfs",
    "find_by_uuid",
    "list_snapshots",
    "nested_subvolumes",
    "receive_command",
    "referenced_bytes",
    "send_command",
    "subvolume_facts",
    "sync_filesystem",
    "versions",
]

_BUSY = ("Operation not permitted", "Device or resource busy", "Text file busy")


def subvolume_facts(path: str) -> SubvolumeFacts:
    """Ask the kernel for the facts of the subvolume whose root is `path`.

    `ctransid` is the transaction of the last change *inside*; it survives balance, remount and new snapshots,
    and a snapshot is born with the one of its source. `btrfs subvolume show` does not print it: its
    "Generation" also moves without any change of content.

    Raises:
        SourceMissing: There is nothing at `path`.
        NotASubvolume: It is no directory, not on btrfs, or not the root of a subvolume.
        BtrfsError: The kernel refuses to answer.
    """
    path = os.path.abspath(path)
    try:
        with btrfs_ioctl.opened_directory(path) as fd:
            filesystem = btrfs_ioctl.filesystem_uuid(fd)
            if os.fstat(fd).st_ino != btrfs_ioctl.SUBVOLUME_ROOT_INODE:
                raise NotASubvolume(
                    f"{path} is a plain directory, not the root of a btrfs subvolume",
                    hint="name the subvolume itself; `btrfs subvolume list` shows what there is",
                )
            raw = btrfs_ioctl.subvolume_info(fd)
    except OSError as error:
        raise _translated(error, path) from error
    return SubvolumeFacts(
        path=path,
        uuid=str(raw.uuid),
        parent_uuid=_text(raw.parent_uuid),
        received_uuid=_text(raw.received_uuid),
        filesystem_uuid=str(filesystem),
        ctransid=raw.ctransid,
        otransid=raw.otransid,
        read_only=raw.read_only,
        created_at=_moment(raw.created_nanoseconds),
        stransid=raw.stransid,
        rtransid=raw.rtransid,
    )


def filesystem_uuid_of(directory: str) -> str:
    """Return the UUID of the btrfs filesystem that a directory (any directory) lies on.

    Raises:
        SourceMissing: There is nothing there.
        NotASubvolume: It is no directory or not on btrfs.
    """
    try:
        with btrfs_ioctl.opened_directory(directory) as fd:
            return str(btrfs_ioctl.filesystem_uuid(fd))
    except OSError as error:
        raise _translated(error, directory) from error


def list_snapshots(directory: str) -> list[SubvolumeFacts]:
    """Return every subvolume that lies directly in `directory`, oldest first; writable ones are there too.

    A directory that does not exist has none, and neither has one that cannot exist below a file. Symbolic links are
    not followed.
    """
    found: list[SubvolumeFacts] = []
    try:
        with os.scandir(directory) as entries:
            paths = [entry.path for entry in entries if _looks_like_subvolume(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _translated(error, directory) from error
    for path in paths:
        try:
            found.append(subvolume_facts(path))
        except (SourceMissing, NotASubvolume):
            continue  # deleted since, or inode 256 of something else
    return sorted(found, key=lambda facts: (facts.otransid, facts.path))


def find_by_uuid(directory: str, uuid: str) -> list[SubvolumeFacts]:
    """Return the subvolumes of the filesystem under `directory` that have this uuid or were received with it.

    Finds them under whatever name they have now, as long as some mount of the filesystem reaches them; the one
    whose own uuid it is comes first.

    Raises:
        SourceMissing: `directory` does not exist.
        NotASubvolume: It is not on btrfs.
        BtrfsError: Not root.
    """
    wanted = UUID(uuid)
    found: list[SubvolumeFacts] = []
    try:
        with btrfs_ioctl.opened_directory(directory) as fd:
            filesystem = str(btrfs_ioctl.filesystem_uuid(fd))
            inner_paths = [_path_in_filesystem(fd, tree) for tree in btrfs_ioctl.trees_with_uuid(fd, wanted)]
    except OSError as error:
        raise _translated(error, directory) from error
    for inner_path in inner_paths:
        facts = _reachable(inner_path, filesystem, str(wanted)) if inner_path is not None else None
        if facts is not None:
            found.append(facts)
    return sorted(found, key=lambda facts: facts.uuid != str(wanted))


def nested_subvolumes(path: str) -> tuple[str, ...]:
    """Return the paths, relative to `path`, of all subvolumes inside a subvolume, sorted.

    Their content is in no snapshot and no stream. Undecodable names carry surrogate escapes.
    """
    try:
        with btrfs_ioctl.opened_directory(path) as fd:
            tree_id = btrfs_ioctl.subvolume_info(fd).tree_id
            found = _nested(fd, tree_id)
    except OSError as error:
        raise _translated(error, path) from error
    return tuple(sorted(os.fsdecode(name) for name in found))


def create_snapshot(source: str, destination: str) -> SubvolumeFacts:
    """Take a read-only snapshot of `source`, named `destination`, and return its facts.

    The kernel flushes and commits: what was written before the call is in it.

    Raises:
        SourceMissing, NotASubvolume: `source` or the directory of `destination` is not what it should be.
        BtrfsError: `destination` exists, lies on another filesystem, or the kernel refused.
    """
    return _snapshot(source, destination, read_only=True)


def create_writable_snapshot(source: str, destination: str) -> SubvolumeFacts:
    """Take a writable snapshot of `source`, named `destination`; `source` stays as it is.

    Raises:
        BtrfsError: As for `create_snapshot`.
    """
    return _snapshot(source, destination, read_only=False)


def delete_subvolume(path: str) -> None:
    """Delete a subvolume and wait until the deletion is on disk.

    Waiting for the commit costs a moment, but afterwards the caller may forget the snapshot: without it a power
    cut would bring back one that no record names.

    Raises:
        SourceMissing: It is gone already.
        SubvolumeBusy: A send uses it, or it is mounted somewhere.
        BtrfsError: Any other refusal.
    """
    if os.path.islink(path):
        raise NotASubvolume(f"{path} is a symbolic link, not a subvolume; it is not deleted")
    subvolume_facts(path)  # never a plain directory, and a clear error when it is gone
    answer = run_btrfs("subvolume", "delete", "--commit-after", _operand(path))
    if answer.status == 0:
        return
    if any(reason in answer.stderr for reason in _BUSY):
        raise SubvolumeBusy(
            f"{path} is in use and cannot be deleted now",
            hint="a btrfs send may still read it, or it is mounted somewhere; the next run tries again",
            stderr=answer.stderr,
        )
    raise _refused(f"{path} could not be deleted", answer)


def referenced_bytes(path: str) -> int | None:
    """Return what the quota group of a subvolume says it refers to; None where quota is off or does not answer.

    Source: btrfs-progs 6.2, `btrfs qgroup show`: qgroup id, referenced, exclusive, and from 6.1 on the path.
    """
    try:
        answer = run_btrfs("qgroup", "show", "--raw", "-f", _operand(path), timeout_seconds=10)
    except BtrfsError:
        return None
    for line in answer.stdout.splitlines() if answer.status == 0 else ():
        words = line.split()
        if len(words) >= 3 and words[0].startswith("0/") and words[1].isdecimal():
            return int(words[1])
    return None


def sync_filesystem(path: str) -> None:
    """Write out what the filesystem under `path` still holds in memory.

    Raises:
        BtrfsError: It failed or did not end in time (a frozen filesystem).
    """
    answer = run_btrfs("filesystem", "sync", _operand(path))
    if answer.status != 0:
        raise _refused(f"the filesystem of {path} could not be synced", answer)


def send_command(snapshot: str, send_parent: str | None, protocol: int, compressed_data: bool) -> list[str]:
    """Return the command that writes the stream of `snapshot` to its stdout.

    Quiet: without `-q` it tells on stderr what it sends, with it only what is wrong. Protocol 1 is not spelled
    out, so that older tools work.
    """
    options = ["-q"]
    if protocol != 1:
        options += ["--proto", str(protocol)]
    if compressed_data:
        options.append("--compressed-data")
    if send_parent is not None:
        options += ["-p", os.path.abspath(send_parent)]
    return [find_btrfs(), "send", *options, _operand(snapshot)]


def receive_command(staging: str) -> list[str]:
    """Return the command that reads one stream from its stdin into the directory `staging`.

    `-C` locks it into `staging`: a crafted stream cannot write elsewhere. Without `-e` it reads up to the end
    of the pipe, so bytes after END are an error instead of being ignored.
    """
    return [find_btrfs(), "receive", "-q", "-C", _operand(staging)]


def _snapshot(source: str, destination: str, *, read_only: bool) -> SubvolumeFacts:
    source, destination = os.path.abspath(source), os.path.abspath(destination)
    facts = subvolume_facts(source)
    directory = os.path.dirname(destination)
    # The tool would put the snapshot *into* an existing directory.
    if os.path.lexists(destination):
        raise BtrfsError(
            f"the snapshot {destination} cannot be made: the name is taken",
            hint="move away what lies there",
        )
    if not _is_on(directory, facts.filesystem_uuid):
        raise BtrfsError(
            f"a snapshot of {source} cannot be made in {directory}: it is on another filesystem",
            hint="choose a directory on the filesystem of the source (snapshots.base_dir)",
        )
    mode = ["-r"] if read_only else []
    answer = run_btrfs("subvolume", "snapshot", *mode, source, destination)
    if answer.status != 0:
        raise _refused(f"the snapshot {destination} of {source} could not be made", answer)
    made = subvolume_facts(destination)
    if made.parent_uuid != facts.uuid or made.read_only != read_only:
        raise BtrfsError(f"{destination} is not the snapshot of {source} that was asked for")
    return made


def _is_on(directory: str, filesystem_uuid: str) -> bool:
    try:
        return filesystem_uuid_of(directory) == filesystem_uuid
    except NotASubvolume:
        return False


def _nested(fd: int, tree_id: int) -> list[bytes]:
    """Return the paths of everything that hangs below a subvolume, depth first, without recursion limits."""
    found: list[bytes] = []
    waiting: list[tuple[int, bytes]] = [(tree_id, b"")]
    while waiting:
        parent, prefix = waiting.pop()
        for child in btrfs_ioctl.children_of(fd, parent):
            path = prefix + btrfs_ioctl.directory_path(fd, parent, child.directory_inode) + child.name
            found.append(path)
            waiting.append((child.tree_id, path + b"/"))
    return found


def _path_in_filesystem(fd: int, tree_id: int) -> bytes | None:
    """Return the path of a subvolume from the top level, starting with a slash; None when it hangs nowhere."""
    path = b""
    while tree_id != btrfs_ioctl.FS_TREE_ID:
        entry = btrfs_ioctl.parent_of(fd, tree_id)
        if entry is None:
            return None
        directory = btrfs_ioctl.directory_path(fd, entry.parent_tree_id, entry.directory_inode)
        path = b"/" + directory + entry.name + path
        tree_id = entry.parent_tree_id
    return path or b"/"


def _reachable(inner_path: bytes, filesystem: str, uuid: str) -> SubvolumeFacts | None:
    """Return the facts of a subvolume under the first mount that really shows it."""
    wanted = os.fsdecode(inner_path)
    for mount in btrfs_mounts():
        inside = _below(wanted, mount.root)
        if inside is None:
            continue
        try:
            facts = subvolume_facts(os.path.join(mount.mount_point, inside) if inside else mount.mount_point)
        except BtrfsError:
            continue  # another filesystem, or hidden by another mount
        if facts.filesystem_uuid == filesystem and uuid in (facts.uuid, facts.received_uuid):
            return facts
    return None


def _below(path: str, root: str) -> str | None:
    """Return `path` relative to `root` ("" when equal), None when it is not below it."""
    if path == root:
        return ""
    prefix = root if root.endswith("/") else root + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _looks_like_subvolume(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_ino == btrfs_ioctl.SUBVOLUME_ROOT_INODE and entry.is_dir(
            follow_symlinks=False
        )
    except OSError:
        return False


def _operand(path: str) -> str:
    """Return the path in a form that no option parser can take for an option."""
    return os.path.abspath(path)


def _text(uuid: UUID | None) -> str | None:
    return None if uuid is None else str(uuid)


def _moment(nanoseconds: int) -> datetime:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


def _refused(what: str, answer: ToolAnswer) -> BtrfsError:
    """Build the error for a short command that failed, its last line of stderr as the reason."""
    lines = answer.stderr.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {answer.status}"
    hint = None
    if "No space left" in answer.stderr:
        hint = "the filesystem is full: free space, or `btrfs balance`"
    elif "Read-only file system" in answer.stderr:
        hint = "the filesystem is mounted read-only, perhaps after an error; look at the kernel log"
    elif "Directory not empty" in answer.stderr:
        hint = "it contains other subvolumes; delete those first"
    return BtrfsError(f"{what}: {reason}", hint=hint, stderr=answer.stderr, status=answer.status)


def _translated(error: OSError, path: str) -> BtrfsError:
    if error.errno == errno.ENOENT:
        return SourceMissing(f"{path} does not exist", hint="is it mounted? is the path spelled right?")
    if error.errno == errno.ENOTDIR:
        return NotASubvolume(f"{path} is not a directory", hint="name the root directory of a btrfs subvolume")
    if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
        return NotASubvolume(
            f"{path} is not on a btrfs filesystem",
            hint="b2s backs up btrfs subvolumes only; is the filesystem mounted?",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return BtrfsError(f"{path} may not be examined: {error.strerror}", hint="run b2s as root")
    return BtrfsError(f"{path} could not be examined: {error.strerror}")
