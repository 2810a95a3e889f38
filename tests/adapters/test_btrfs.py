"""Subvolume facts, snapshots and commands on a real btrfs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from b2s.adapters import btrfs, btrfs_tool, mounts
from b2s.core.manifest import SnapshotIdentity
from b2s.core.model import Reason, SubvolumeFacts
from b2s.core.send_parent import doubt_about
from b2s.core.snapshots import unchanged_since
from b2s.errors import BtrfsError, BtrfsToolMissing, NotASubvolume, SourceMissing, SubvolumeBusy
from tests.parts.loopfs import LoopFilesystem

MakeLoop = Callable[..., LoopFilesystem]


def run(*command: str | Path) -> str:
    """Run a command and return what it printed."""
    return os.fsdecode(subprocess.run(command, check=True, capture_output=True).stdout)


def sync(filesystem: LoopFilesystem) -> None:
    """Commit what is in memory."""
    run("btrfs", "filesystem", "sync", filesystem.path)


def doubt_of(recorded: SubvolumeFacts, now: SubvolumeFacts) -> Reason | None:
    """Return why a snapshot cannot be what a manifest recorded when it was taken; None when it can."""
    doubt = doubt_about(SnapshotIdentity("", recorded.path, recorded.uuid, recorded.ctransid, ()), now)
    return doubt.reason if doubt is not None else None


def fake_btrfs(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `btrfs` of our own first in PATH."""
    tool = directory / "btrfs"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return tool


def test_facts_agree_with_the_tool(loopfs: MakeLoop) -> None:
    """The ioctl says the same as `btrfs subvolume show`."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    snapshot = btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    shown = dict(
        line.strip().split(":", 1)
        for line in run("btrfs", "subvolume", "show", snapshot.path).splitlines()
        if ":" in line
    )
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["UUID"] == snapshot.uuid
    assert shown["Parent UUID"] == snapshot.parent_uuid == btrfs.subvolume_facts(str(source)).uuid
    assert shown["Received UUID"] == "-"
    assert snapshot.received_uuid is None
    assert int(shown["Gen at creation"]) == snapshot.otransid
    assert shown["Flags"] == "readonly"
    assert snapshot.read_only
    assert snapshot.filesystem_uuid in run("btrfs", "filesystem", "show", filesystem.path)
    assert abs(snapshot.created_at.timestamp() - time.time()) < 60


def test_a_source_is_unchanged_until_something_inside_it_changes(loopfs: MakeLoop) -> None:
    """Snapshots, deletions, remount and balance are no change; content, metadata and deletions inside are."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    (source / "file").write_bytes(b"one")
    first = btrfs.create_snapshot(str(source), str(filesystem.path / "first"))
    assert unchanged_since(btrfs.subvolume_facts(str(source)), first)

    other = btrfs.create_snapshot(str(source), str(filesystem.path / "other"))
    btrfs.delete_subvolume(other.path)
    filesystem.remount()
    run("btrfs", "balance", "start", "--full-balance", filesystem.path)
    sync(filesystem)
    assert unchanged_since(btrfs.subvolume_facts(str(source)), btrfs.subvolume_facts(first.path))
    assert doubt_of(first, btrfs.subvolume_facts(first.path)) is None

    changes: list[Callable[[], object]] = [
        lambda: (source / "file").write_bytes(b"two"),
        lambda: (source / "file").chmod(0o600),
        lambda: (source / "new").mkdir(),
        lambda: (source / "file").rename(source / "renamed"),
        lambda: os.setxattr(source / "renamed", "user.x", b"y"),
        lambda: (source / "renamed").unlink(),
    ]
    for number, change in enumerate(changes):
        before = btrfs.create_snapshot(str(source), str(filesystem.path / f"before-{number}"))
        assert unchanged_since(btrfs.subvolume_facts(str(source)), before)
        change()
        btrfs.sync_filesystem(str(source))
        assert not unchanged_since(btrfs.subvolume_facts(str(source)), before)


def test_unchanged_is_never_said_of_another_source(loopfs: MakeLoop) -> None:
    """A snapshot of one subvolume proves nothing about another, even with equal transaction numbers."""
    filesystem = loopfs()
    source, other = filesystem.subvolume("data"), filesystem.subvolume("other")
    snapshot = btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    assert not unchanged_since(btrfs.subvolume_facts(str(other)), snapshot)


def test_a_snapshot_toggled_writable_and_edited_is_recognised(loopfs: MakeLoop) -> None:
    """Edited and made read-only again it has another ctransid; merely writable it is not the same either."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    snapshot = btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    run("btrfs", "property", "set", snapshot.path, "ro", "false")
    assert doubt_of(snapshot, btrfs.subvolume_facts(snapshot.path)) is Reason.SEND_PARENT_WRITABLE
    Path(snapshot.path, "edit").write_bytes(b"x")
    run("btrfs", "property", "set", snapshot.path, "ro", "true")
    edited = btrfs.subvolume_facts(snapshot.path)
    assert edited.read_only
    assert edited.uuid == snapshot.uuid
    assert doubt_of(snapshot, edited) is Reason.SEND_PARENT_CHANGED


def test_what_is_no_subvolume_is_named_clearly(loopfs: MakeLoop, tmp_path: Path) -> None:
    """Missing, file, plain directory and another filesystem each get their own error with a hint."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    (source / "inside").mkdir()
    (source / "file").touch()
    cases: list[tuple[Path, type[BtrfsError], str]] = [
        (source / "missing", SourceMissing, "does not exist"),
        (source / "file", NotASubvolume, "not a directory"),
        (source / "inside", NotASubvolume, "plain directory"),
        (tmp_path, NotASubvolume, "not on a btrfs"),
    ]
    for path, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            btrfs.subvolume_facts(str(path))
        assert caught.value.hint


def test_a_renamed_snapshot_is_found_by_uuid(loopfs: MakeLoop, tmp_path: Path) -> None:
    """Wherever it was moved within the filesystem, also below another subvolume, and under a `subvol=` mount."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    filesystem.subvolume("data/nested")
    (source / "nested" / "deep" / "er").mkdir(parents=True)
    moved = source / "nested" / "deep" / "er" / "new\nname"
    snapshot = btrfs.create_snapshot(str(source), str(moved.with_name("snap")))
    Path(snapshot.path).rename(moved)  # the kernel lets a read-only one change only its name, its directory may move
    assert [facts.path for facts in btrfs.find_by_uuid(str(source), snapshot.uuid)] == [str(moved)]
    assert btrfs.find_by_uuid(str(source), "00000000-0000-0000-0000-000000000001") == []

    part = tmp_path / "part"
    part.mkdir()
    device = next(
        line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if f" {filesystem.path} " in line
    )
    run("mount", "-o", "subvol=data/nested", device, part)
    try:
        filesystem.path.joinpath("data/nested/deep/er").rename(filesystem.path / "data" / "nested" / "elsewhere")
        paths = [facts.path for facts in btrfs.find_by_uuid(str(part), snapshot.uuid)]
        assert paths == [str(filesystem.path / "data/nested/elsewhere/new\nname")]
    finally:
        run("umount", part)


def test_a_received_snapshot_is_found_by_the_uuid_it_was_sent_with(loopfs: MakeLoop) -> None:
    """`received_uuid` counts, and the subvolume whose own uuid it is comes first."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    (source / "file").write_bytes(b"content")
    snapshot = btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    staging = filesystem.path / "staging"
    staging.mkdir()
    stream = subprocess.run(btrfs.send_command(snapshot.path, None, 1, False), check=True, capture_output=True)
    assert stream.stderr == b""
    subprocess.run(btrfs.receive_command(str(staging)), input=stream.stdout, check=True, capture_output=True)
    (received,) = btrfs.list_snapshots(str(staging))
    assert received.received_uuid == snapshot.uuid
    assert received.read_only
    found = btrfs.find_by_uuid(str(filesystem.path), snapshot.uuid)
    assert [facts.path for facts in found] == [snapshot.path, received.path]


def test_snapshots_are_listed_oldest_first_and_nothing_else_is(loopfs: MakeLoop) -> None:
    """Directories, files, links to snapshots and a directory that is not there yet are no snapshots."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    place = filesystem.path / "place"
    assert btrfs.list_snapshots(str(place)) == []
    place.mkdir()
    (place / "directory").mkdir()
    (place / "file").touch()
    second_by_name = btrfs.create_snapshot(str(source), str(place / "b"))
    first_by_name = btrfs.create_snapshot(str(source), str(place / "a"))
    (place / "link").symlink_to(first_by_name.path)
    writable = btrfs.create_writable_snapshot(first_by_name.path, str(place / "w"))
    assert btrfs.list_snapshots(str(place)) == [second_by_name, first_by_name, writable]
    assert not writable.read_only
    assert btrfs.subvolume_facts(first_by_name.path).read_only


def test_nested_subvolumes_and_mounts_are_found(loopfs: MakeLoop) -> None:
    """At any depth, with newlines and bytes that are no UTF-8 in their names."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    (source / "a" / "b").mkdir(parents=True)
    names = ["a/b/one", "a/b/one/two", "line\nbreak", os.fsdecode(b"\xff\xfe")]
    for name in names:
        run("btrfs", "subvolume", "create", source / name)
    (source / "mnt point").mkdir()
    run("mount", "-t", "tmpfs", "none", source / "mnt point")
    try:
        assert sorted(btrfs.nested_subvolumes(str(source))) == sorted(names)
        assert mounts.mounts_inside(str(source)) == ("mnt point",)
    finally:
        run("umount", source / "mnt point")
    assert btrfs.nested_subvolumes(str(source / "a/b/one/two")) == ()


def test_hundreds_of_nested_subvolumes_need_many_pages(loopfs: MakeLoop) -> None:
    """The kernel answers in pages of 4 KiB; none is skipped or repeated."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    names = sorted(f"{number:03}-{'x' * 200}" for number in range(60))
    for name in names:
        run("btrfs", "subvolume", "create", source / name)
    assert list(btrfs.nested_subvolumes(str(source))) == names


def test_a_snapshot_is_never_made_where_it_must_not_be(loopfs: MakeLoop, tmp_path: Path) -> None:
    """Taken names (the tool would make it *inside* a directory), other filesystems and missing places are refused."""
    filesystem, elsewhere = loopfs(), loopfs()
    source = filesystem.subvolume("data")
    taken = filesystem.path / "taken"
    taken.mkdir()
    for destination, words in [
        (taken, "name is taken"),
        (tmp_path / "snap", "another filesystem"),
        (elsewhere.path / "snap", "another filesystem"),
        (filesystem.path / "missing" / "snap", "does not exist"),
    ]:
        with pytest.raises(BtrfsError, match=words) as caught:
            btrfs.create_snapshot(str(source), str(destination))
        assert caught.value.hint
    assert list(taken.iterdir()) == []
    assert btrfs.list_snapshots(str(filesystem.path)) == [btrfs.subvolume_facts(str(source))]


def test_a_read_only_filesystem_is_one_clear_line(loopfs: MakeLoop) -> None:
    """The kernel's reason arrives with a hint."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    filesystem.remount("ro")
    with pytest.raises(BtrfsError, match="Read-only file system") as caught:
        btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    assert "\n" not in caught.value.message
    assert "read-only" in str(caught.value.hint)


def test_a_frozen_filesystem_does_not_hang_us(loopfs: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is given up within its limit, the error names its pid, and it ends when the filesystem thaws."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    monkeypatch.setattr(btrfs_tool.run_btrfs, "__kwdefaults__", {"timeout_seconds": 1.0})
    run("fsfreeze", "-f", filesystem.path)
    began = time.monotonic()
    try:
        with pytest.raises(BtrfsError, match=r"pid \d+\).*1 s") as caught:
            btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
        assert time.monotonic() - began < 6
    finally:
        run("fsfreeze", "-u", filesystem.path)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{caught.value.context['pid']}/cmdline").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{caught.value.context['pid']}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            os.waitpid(int(caught.value.context["pid"]), 0)
            break
        time.sleep(0.02)


def test_a_snapshot_in_use_is_busy(loopfs: MakeLoop) -> None:
    """Deleting what a send still reads raises SubvolumeBusy and deletes nothing; afterwards it works."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    (source / "file").write_bytes(os.urandom(4 << 20))
    snapshot = btrfs.create_snapshot(str(source), str(filesystem.path / "snap"))
    with subprocess.Popen(btrfs.send_command(snapshot.path, None, 1, False), stdout=subprocess.PIPE) as send:
        assert send.stdout is not None
        assert send.stdout.read(8) == b"btrfs-st"
        with pytest.raises(SubvolumeBusy):
            btrfs.delete_subvolume(snapshot.path)
        assert btrfs.subvolume_facts(snapshot.path) == snapshot
        send.kill()
    btrfs.delete_subvolume(snapshot.path)
    with pytest.raises(SourceMissing):
        btrfs.delete_subvolume(snapshot.path)


def test_only_subvolumes_are_deleted(loopfs: MakeLoop) -> None:
    """A plain directory, a link and a subvolume with others inside stay."""
    filesystem = loopfs()
    source = filesystem.subvolume("data")
    filesystem.subvolume("data/nested")
    (filesystem.path / "link").symlink_to(source / "nested")
    (filesystem.path / "plain").mkdir()
    for name, kind in (("plain", NotASubvolume), ("link", NotASubvolume), ("data", BtrfsError)):
        with pytest.raises(kind):
            btrfs.delete_subvolume(str(filesystem.path / name))
    assert (source / "nested").is_dir()


def test_send_and_receive_commands_say_what_they_should() -> None:
    """No path can become an option, protocol 1 is left to old tools, receive is locked in."""
    tool = btrfs.find_btrfs()
    assert btrfs.send_command("/snap/-x", "/snap/p", 2, True) == [
        tool,
        "send",
        "-q",
        "--proto",
        "2",
        "--compressed-data",
        "-p",
        "/snap/p",
        "/snap/-x",
    ]
    assert btrfs.send_command("/s", None, 1, False) == [tool, "send", "-q", "/s"]
    assert btrfs.receive_command("/staging") == [tool, "receive", "-q", "-C", "/staging"]


def test_the_tool_is_found_without_sbin_in_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With cron's PATH it is found; where there is none at all, the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(btrfs.find_btrfs(), os.X_OK)
    monkeypatch.setattr(btrfs_tool, "_MORE_DIRECTORIES", ())
    with pytest.raises(BtrfsToolMissing) as caught:
        btrfs.find_btrfs()
    assert "btrfs-progs" in str(caught.value.hint)


def test_the_first_btrfs_in_path_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An operator's own build wins over the system's."""
    tool = fake_btrfs(tmp_path, "echo btrfs-progs v99.1", monkeypatch)
    assert btrfs.find_btrfs() == str(tool)
    assert btrfs.versions() == btrfs.Versions(kernel=os.uname().release, btrfs_progs="99.1")


def test_the_tool_sees_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials in our environment are not handed on, and its messages are in English."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    fake_btrfs(tmp_path, "env", monkeypatch)
    shown = btrfs_tool.run_btrfs("version").stdout
    assert "canary" not in shown
    assert "LC_ALL=C\n" in shown
