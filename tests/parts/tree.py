"""Trees with everything that has ever broken a backup, their changes, and their digest."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import random
import shutil
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_EMPTY_SUBVOLUME_INODE = 2  # what a snapshot shows in place of a nested subvolume
_ACL_XATTR = "system.posix_acl_access"
_DEFAULT_ACL_XATTR = "system.posix_acl_default"
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Everything about one name that a restore must bring back."""

    kind: int  # stat.S_IFMT of the mode
    mode: int  # permission bits with suid, sgid and sticky
    uid: int
    gid: int
    size_bytes: int | None  # None for directories
    mtime_ns: int | None  # None for the root: an incremental that does not touch it leaves the time of receive there
    rdev: int
    content_sha256: str | None
    link_target: bytes | None
    xattrs: tuple[tuple[str, bytes], ...]
    linked_to: bytes | None  # first name of its hard-link group, None with one link


Tree = dict[bytes, Entry]


def tree_digest(path: Path) -> Tree:
    """Return every entry of the subvolume at `path` by its name relative to it; stops at nested subvolumes."""
    root = os.fsencode(path)
    names = sorted(_names(root, b"", os.lstat(root).st_dev))
    stats = {name: os.lstat(os.path.join(root, name)) for name in names}
    first_of_inode: dict[int, bytes] = {}
    for name in names:
        first_of_inode.setdefault(stats[name].st_ino, name)
    tree = {b"": _entry(root, os.lstat(root), None, is_root=True)}
    for name in names:
        status = stats[name]
        grouped = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        linked_to = first_of_inode[status.st_ino] if grouped else None
        tree[name] = _entry(os.path.join(root, name), status, linked_to)
    return tree


def differences(before: Tree, after: Tree) -> list[str]:
    """Return one readable line for each name that is missing, new or not the same."""
    lines = [f"missing: {name!r}" for name in sorted(before.keys() - after.keys())]
    lines += [f"new: {name!r}" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        for field in fields(Entry):
            old, new = getattr(before[name], field.name), getattr(after[name], field.name)
            if old != new:
                lines.append(f"{name!r}: {field.name} was {old!r}, is {new!r}")
    return lines


def _names(root: bytes, below: bytes, device: int) -> Iterator[bytes]:
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if status.st_dev != device or status.st_ino == _EMPTY_SUBVOLUME_INODE:
                continue
            name = os.path.join(below, entry.name)
            yield name
            if entry.is_dir(follow_symlinks=False):
                yield from _names(root, name, device)


def _entry(path: bytes, status: os.stat_result, linked_to: bytes | None, *, is_root: bool = False) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size_bytes=None if kind == stat.S_IFDIR else status.st_size,
        mtime_ns=None if is_root else status.st_mtime_ns,
        rdev=status.st_rdev,
        content_sha256=_content_sha256(path) if kind == stat.S_IFREG else None,
        link_target=os.readlink(path) if kind == stat.S_IFLNK else None,
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        linked_to=linked_to,
    )


def _content_sha256(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nasty_tree(path: Path, seed: int = 0, *, size_bytes: int = 12 << 20) -> None:
    """Fill the existing directory `path` (on btrfs, as root); about `size_bytes` of it is random data."""
    rng = random.Random(seed)
    _data_files(path / "data", rng, size_bytes)
    _extents(path / "extents", rng)
    _odd_names(path / "names", rng)
    _special_files(path / "special")
    _metadata(path / "metadata", rng)
    for number in range(1, 6):
        os.link(path / "data/small", path / f"hard-link-{number}")
    deep = path.joinpath("deep", *("d" * 20 for _ in range(30)))
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"leaf")


def _data_files(directory: Path, rng: random.Random, size_bytes: int) -> None:
    directory.mkdir()
    (directory / "empty").touch()
    (directory / "small").write_bytes(rng.randbytes(100))  # small enough for an inline extent
    for size in (4095, 4096, 4097):
        (directory / f"size-{size}").write_bytes(rng.randbytes(size))
    for index, share in enumerate((2, 4, 8, 8)):
        (directory / f"random-{index}").write_bytes(rng.randbytes(size_bytes // share))
    (directory / "text").write_bytes(b"compressible " * 20_000)
    for index in range(100):
        (directory / f"many-{index:03}").write_bytes(rng.randbytes(rng.randrange(3000)))


def _extents(directory: Path, rng: random.Random) -> None:
    directory.mkdir()
    with (directory / "sparse").open("wb") as file:
        file.truncate(16 << 20)
        for offset in (1 << 20, 5 << 20, (16 << 20) - 10):
            file.seek(offset)
            file.write(rng.randbytes(10))
    with (directory / "only-a-hole").open("wb") as file:
        file.truncate(1 << 20)
    with (directory / "prealloc").open("wb") as file:
        file.write(rng.randbytes(100_000))
        _fallocate(file.fileno(), 0, 0, 1 << 20)
    with (directory / "prealloc-beyond-end").open("wb") as file:
        file.write(rng.randbytes(5000))
        _fallocate(file.fileno(), _FALLOC_KEEP_SIZE, 0, 1 << 20)
    with (directory / "punched").open("wb") as file:
        file.write(rng.randbytes(1 << 20))
        file.flush()
        _punch_hole(file.fileno(), 256 << 10, 128 << 10)
    (directory / "cloned-from").write_bytes(rng.randbytes(512 << 10))
    with (directory / "cloned-from").open("rb") as source:
        with (directory / "clone").open("wb") as file:
            fcntl.ioctl(file.fileno(), _FICLONE, source.fileno())
        with (directory / "clone-of-ranges").open("wb") as file:
            for index in range(4):
                _clone_range(source.fileno(), index * 65536, 65536, file.fileno(), (3 - index) * 65536)


def _odd_names(directory: Path, rng: random.Random) -> None:
    directory.mkdir()
    names = [
        b"n" * 255,
        "ü".encode() * 127,
        b"not-utf8-\xff\xfe\x80",
        b"new\nline",
        b"tab\tquote'\"\\",
        b" ",
        b"-rf",
        b"...",
    ]
    names += [b"\x01\x7f\x1b[31m", "combining-e\u0301".encode(), "composed-\u00e9".encode(), b"*?[a]", b"%s%n", b"$(x)"]
    for name in names:
        with open(os.path.join(os.fsencode(directory), name), "wb") as file:
            file.write(rng.randbytes(64))
    os.mkdir(os.path.join(os.fsencode(directory), b"directory-\xc3\x28"))


def _special_files(directory: Path) -> None:
    directory.mkdir()
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "character-device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(directory / "block-device", 0o640 | stat.S_IFBLK, os.makedev(259, 1_000_000))
    # bind() takes no path of this length, but one relative to an open directory
    descriptor = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{descriptor}/socket")
    finally:
        os.close(descriptor)
    (directory / "link").symlink_to("../data/small")
    (directory / "dangling").symlink_to("/nowhere/" + "x" * 200)
    os.symlink(b"target-\xff", os.fsencode(directory / "link-not-utf8"))
    (directory / "link-to-itself").symlink_to("link-to-itself")


def _metadata(directory: Path, rng: random.Random) -> None:
    directory.mkdir()
    for name, mode in {"suid": 0o4755, "sgid": 0o2755, "no-rights": 0, "all": 0o777}.items():
        _file(directory, name).chmod(mode)
    for name, mode in {"sticky": 0o1777, "setgid-directory": 0o2770}.items():
        (directory / name).mkdir()
        (directory / name).chmod(mode)
    os.chown(_file(directory, "owned"), 12345, 2**31 + 7)
    os.lchown(_symlink(directory, "owned-link"), 65534, 65534)
    extended = _file(directory, "xattrs")
    os.setxattr(extended, "user.text", b"value")
    os.setxattr(extended, "user.empty", b"")
    os.setxattr(extended, "user.binary", bytes(range(256)))
    os.setxattr(extended, "user.big", rng.randbytes(3000))
    os.setxattr(extended, "trusted.b2s", b"only root sees this")
    os.setxattr(directory / "sticky", "user.on-a-directory", b"x")
    os.setxattr(_symlink(directory, "link-with-xattr"), "trusted.b2s", b"link", follow_symlinks=False)
    capable = _file(directory, "capabilities")
    capable.chmod(0o755)
    os.setxattr(capable, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))  # net_bind_service=ep
    os.setxattr(_file(directory, "acl"), _ACL_XATTR, _acl(user=1234, permission=4))
    (directory / "acl-directory").mkdir()
    os.setxattr(directory / "acl-directory", _DEFAULT_ACL_XATTR, _acl(user=4321, permission=7))
    (directory / "acl-directory" / "inherits").touch()
    times = {"old": -86_400 * _NS - 1, "epoch": 0, "nanoseconds": 1_234_567_890_123_456_789, "future": 2**33 * _NS + 5}
    for name, mtime_ns in times.items():
        os.utime(_file(directory, f"time-{name}"), ns=(mtime_ns, mtime_ns))


def change_tree(path: Path, seed: int) -> None:
    """Change a tree that `nasty_tree` made, also repeatedly: another seed changes other things."""
    rng = random.Random(seed)
    files = sorted(name for name in path.rglob("*") if name.is_file() and not name.is_symlink())
    rng.shuffle(files)
    for file in files[:6]:
        file.unlink()
    movable = files[6:12]
    for index, file in enumerate(movable[:4]):
        file.rename(path / f"moved-{seed}-{index}")
    _swap(movable[4], movable[5])
    edited = files[12:40]
    for file in edited[:5]:
        with file.open("r+b") as stream:
            stream.seek(rng.randrange(file.stat().st_size + 1))
            stream.write(rng.randbytes(rng.randrange(1, 20_000)))
    for file in edited[5:8]:
        os.truncate(file, rng.randrange(2 * file.stat().st_size + 10))
    for file in edited[8:11]:
        file.chmod(rng.choice([0o600, 0o4711, 0o644, 0o1777]))
    for file in edited[11:13]:
        os.chown(file, rng.randrange(70_000), rng.randrange(70_000))
    for file in edited[13:15]:
        os.setxattr(file, f"user.changed-{seed}", rng.randbytes(20))
    for file in edited[15:17]:
        for name in os.listxattr(file):
            if name.startswith(("user.", "trusted.")):
                os.removexattr(file, name)
    os.utime(edited[17], ns=(seed, seed * _NS + 1))
    os.link(edited[18], path / f"another-link-{seed}")
    with edited[19].open("rb") as source, (path / f"clone-{seed}").open("wb") as clone:
        fcntl.ioctl(clone.fileno(), _FICLONE, source.fileno())
    _replace_file_by_directory(edited[20])
    big = max(edited[21:], key=lambda file: file.stat().st_size)
    with big.open("r+b") as stream:
        _punch_hole(stream.fileno(), 0, 4096)
    _new_things(path / f"new-{seed}", rng)
    _rename_directories(path, seed)


def _new_things(directory: Path, rng: random.Random) -> None:
    directory.mkdir()
    (directory / "empty").touch()
    (directory / "random").write_bytes(rng.randbytes(300_000))
    for index in range(12):
        (directory / f"file-{index}").write_bytes(rng.randbytes(rng.randrange(5000)))
    (directory / "link").symlink_to("random")
    os.mkfifo(directory / "fifo")


def _rename_directories(path: Path, seed: int) -> None:
    # Moving a directory below a new one and reusing its name is what incremental send once got wrong.
    old = min(name for name in path.glob("deep*") if name.is_dir())
    new = path / f"deep-{seed}"
    old.rename(new)
    (new / f"inside-{seed}").mkdir()
    old.write_bytes(b"a file where a directory was")
    stale = sorted(path.glob("new-*"))
    if len(stale) > 2:
        shutil.rmtree(stale[0])


def _replace_file_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").write_bytes(b"was a file")


def _swap(first: Path, second: Path) -> None:
    between = first.with_name(first.name[:200] + ".swap")
    first.rename(between)
    second.rename(first)
    between.rename(second)


def _file(directory: Path, name: str) -> Path:
    (directory / name).write_bytes(name.encode())
    return directory / name


def _symlink(directory: Path, name: str) -> Path:
    (directory / name).symlink_to("nowhere")
    return directory / name


def _acl(*, user: int, permission: int) -> bytes:
    """Return a POSIX ACL as its xattr: owner, one named user, group, mask, others. Source: linux/posix_acl_xattr.h."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 6, nobody), (0x02, permission, user), (0x04, 4, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
    if libc.fallocate(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "fallocate failed")


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    _fallocate(descriptor, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length)


def _clone_range(source: int, offset: int, length: int, target: int, target_offset: int) -> None:
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, offset, length, target_offset))
