"""Which point is restored, what is kept of it, and what is reused the next time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from b2s.adapters.btrfs import list_snapshots, subvolume_facts
from b2s.errors import BackupNotFound, ChunkMissing, ManifestMissing, ReceiveFailed, TargetExists, UsageError
from b2s.restore.compare import Depth
from b2s.restore.points import Wanted
from b2s.restore.run import Keep, Verified
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.restore.conftest import Origin

Filesystems = Callable[..., LoopFilesystem]
MakeOrigin = Callable[..., Origin]


def kept_names(filesystem: LoopFilesystem) -> list[str]:
    """Return the names of what is kept, in order."""
    directory = filesystem.path / ".b2s-received" / "data"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_every_point_restores_by_time_and_by_id(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """`--at` takes the newest backup that is not younger, to the second and in any zone; `--backup` the one named."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    first = origin.uploader.stored[0].manifest
    week, second = timedelta(days=7), timedelta(seconds=1)
    for number in (1, 2):
        origin.change_and_back_up(created_at=first.created_at + number * week)
    tokyo = timezone(timedelta(hours=9))
    points = {
        "by-id": (Wanted(backup_id=first.backup_id), 0),
        "first": (Wanted(at=first.created_at), 0),
        "before-second": (Wanted(at=first.created_at + week - second), 0),
        "second": (Wanted(at=(first.created_at + week).astimezone(tokyo)), 1),
        "before-third": (Wanted(at=(first.created_at + 2 * week - second).astimezone(tokyo)), 1),
        "later": (Wanted(at=first.created_at + 52 * week), 2),
        "newest": (Wanted(), 2),
    }
    elsewhere, restore = loopfs(), origin.restorer()
    for name, (wanted, index) in points.items():
        restored = restore(elsewhere.path / name, wanted=wanted, keep=Keep.NONE)
        assert restored.backup_id == origin.uploader.stored[index].manifest.backup_id, name
        assert differences(tree_digest(origin.snapshots[index]), tree_digest(elsewhere.path / name)) == []
    assert kept_names(elsewhere) == []
    assert not (elsewhere.path / ".b2s-received").exists()
    with pytest.raises(BackupNotFound, match=f"the oldest is of {first.created_at:%Y-%m-%d %H:%M:%S} UTC"):
        restore(elsewhere.path / "too-old", wanted=Wanted(at=first.created_at - second))
    with pytest.raises(BackupNotFound):
        restore(elsewhere.path / "unknown", wanted=Wanted(backup_id="20200101T000000Z-full-00000000"))
    with pytest.raises(BackupNotFound):
        restore(elsewhere.path / "no-source", source="other")
    assert {path.name for path in elsewhere.path.iterdir()} == set(points)


def test_next_incremental_reuses_what_was_kept(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """After a restore, only the later incremental is downloaded, and it replaces what was kept."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere, restore = loopfs(), origin.restorer()
    restore(elsewhere.path / "first", depth=Depth.NONE)
    newest = origin.change_and_back_up()
    restored = restore(elsewhere.path / "second")
    assert (restored.received_backups, restored.reused_backups) == (1, 1)
    assert differences(tree_digest(newest), tree_digest(elsewhere.path / "second")) == []
    assert kept_names(elsewhere) == [origin.uploader.stored[-1].manifest.backup_id]
    again = restore(elsewhere.path / "third", depth=Depth.SAMPLE, sample_files=3)
    assert (again.received_backups, again.verified, again.compared_files) == (0, Verified.CONTENT, 3)


def test_keep_all_keeps_every_member(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """With `--keep all` each member of the chain stays, read-only with the UUID it was received with."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    elsewhere = loopfs()
    origin.restorer()(elsewhere.path / "all", keep=Keep.ALL)
    kept = list_snapshots(str(elsewhere.path / ".b2s-received" / "data"))
    assert [facts.received_uuid for facts in kept] == [
        stored.manifest.snapshot.uuid for stored in origin.uploader.stored
    ]
    assert all(facts.read_only for facts in kept)


def test_changed_copy_is_not_reused(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """A kept subvolume that somebody made writable and edited is left alone and received again."""
    import fcntl
    import os
    import struct

    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere, restore = loopfs(), origin.restorer()
    restore(elsewhere.path / "first", depth=Depth.NONE)
    (kept,) = (elsewhere.path / ".b2s-received" / "data").iterdir()
    descriptor = os.open(kept, os.O_RDONLY)
    set_flags = 0x4008941A  # BTRFS_IOC_SUBVOL_SETFLAGS; the tool would clear received_uuid, the kernel does not
    fcntl.ioctl(descriptor, set_flags, struct.pack("<Q", 0))
    (kept / "edited").write_text("edited")
    os.sync()
    fcntl.ioctl(descriptor, set_flags, struct.pack("<Q", 2))
    os.close(descriptor)
    assert subvolume_facts(str(kept)).received_uuid == origin.uploader.stored[0].manifest.snapshot.uuid
    restored = restore(elsewhere.path / "second")
    assert restored.reused_backups == 0
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "second")) == []
    assert (kept / "edited").read_text() == "edited"


def test_two_restores_share_a_filesystem(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """Two targets in different directories each keep their own copy, and both chains apply."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    newest = origin.change_and_back_up()
    elsewhere, restore = loopfs(), origin.restorer()
    for name in ("one", "two"):
        (elsewhere.path / name).mkdir()
        restore(elsewhere.path / name / "restored", keep=Keep.ALL)
        assert differences(tree_digest(newest), tree_digest(elsewhere.path / name / "restored")) == []


def test_restore_beside_the_origin(make_origin: MakeOrigin, seaweed: SeaweedServer) -> None:
    """On the origin's own filesystem, with the sent snapshots there, the chain comes back equal too."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    newest = origin.change_and_back_up()
    restored = origin.restorer()(origin.filesystem.path / "restored")
    assert restored.verified is Verified.CONTENT
    assert differences(tree_digest(newest), tree_digest(origin.filesystem.path / "restored")) == []


def test_below_a_mounted_subvolume(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """B06: on a filesystem mounted with `subvol=` a chain is restored into the mount and into a directory below it."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    newest = origin.change_and_back_up()
    elsewhere, restore = loopfs(), origin.restorer()
    with mounted_subvolume(elsewhere) as mount:
        (mount / "directory").mkdir()
        for target in (mount / "restored", mount / "directory" / "restored"):
            restore(target)
            assert differences(tree_digest(newest), tree_digest(target)) == []


def test_copy_outside_of_the_mount_is_named(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """B06: where receive finds another copy of the send parent, out of reach, the cure is said and nothing is left."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    elsewhere, restore = loopfs(), origin.restorer()
    restore(elsewhere.path / "outside", keep=Keep.ALL, depth=Depth.NONE)
    with mounted_subvolume(elsewhere) as mount:
        with pytest.raises(ReceiveFailed, match="not reachable") as caught:
            restore(mount / "restored")
        assert caught.value.exit_code == 1
        assert "subvolid=5" in (caught.value.hint or "")
        assert [path.name for path in mount.iterdir()] == [".b2s-received"]  # the full, which was received whole


@contextmanager
def mounted_subvolume(filesystem: LoopFilesystem) -> Iterator[Path]:
    """Mount a new subvolume of a filesystem at a place of its own."""
    filesystem.subvolume("@data")
    place = filesystem.directory / "subvolume"
    place.mkdir()
    device = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE", "--nofsroot", filesystem.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run(["mount", "-o", "subvol=@data", device, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_without_the_origin_only_the_manifest_is_checked(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """Where the sent snapshot is not on this host, that is said and is no failure."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.filesystem.close()
    elsewhere, restore = loopfs(), origin.restorer()
    assert restore(elsewhere.path / "restored").verified is Verified.MANIFEST
    (event,) = restore.log.named("restore_verified")
    assert event["against"] == "manifest"


def test_backup_of_a_received_subvolume(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """A snapshot of something received is sent under the UUID it was received with, and still comes back."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    replica_host, third = loopfs(), loopfs()
    origin.restorer()(replica_host.path / "replica", depth=Depth.NONE)
    (kept,) = (replica_host.path / ".b2s-received" / "data").iterdir()
    again = replica_host.snapshot(kept, "of-the-replica")
    uploader = replace(origin.uploader, source="replica", stored=[])
    uploader.full(again)
    origin.restorer()(third.path / "restored", source="replica")
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(third.path / "restored")) == []


def test_targets_that_cannot_be(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path
) -> None:
    """An existing target, a missing directory and another filesystem are usage errors before anything is read."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere, restore = loopfs(), origin.restorer()
    (elsewhere.path / "taken").mkdir()
    with pytest.raises(TargetExists):
        restore(elsewhere.path / "taken")
    with pytest.raises(UsageError, match="does not exist"):
        restore(elsewhere.path / "no" / "such")
    ext4 = loopfs(kind="ext4", size_bytes=64 << 20)
    with pytest.raises(UsageError, match="btrfs"):
        restore(ext4.path / "restored")
    assert restore.children == []
    assert list((elsewhere.path / "taken").iterdir()) == []


@pytest.mark.parametrize("what", ["chunk", "manifest"])
def test_incomplete_chain_is_refused_before_the_first_byte(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, what: str
) -> None:
    """With a member of the chain missing, no process is started and nothing is made."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    origin.change_and_back_up()
    uploader = origin.uploader
    layout, middle = uploader.layout, uploader.stored[1].manifest
    key = layout.absolute(middle.chunks[0].key) if what == "chunk" else layout.manifest_key(2)
    uploader.client.delete_object(Bucket=uploader.bucket, Key=key)
    elsewhere, restore = loopfs(), origin.restorer()
    with pytest.raises(ChunkMissing if what == "chunk" else ManifestMissing) as caught:
        restore(elsewhere.path / "restored")
    assert caught.value.exit_code == 4
    assert restore.children == []
    assert list(elsewhere.path.iterdir()) == []
