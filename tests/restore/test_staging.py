"""What a receive may leave in its directory, and how all of it is judged and removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from b2s.adapters.btrfs import subvolume_facts
from b2s.errors import BtrfsError, StreamRefused
from b2s.restore.staging import ReceivedStore, Staging
from tests.parts.loopfs import LoopFilesystem

UUID = "3e87cba0-bbdc-2945-8f6f-154934fac652"


@pytest.fixture
def filesystem(loopfs: Callable[..., LoopFilesystem]) -> LoopFilesystem:
    """A btrfs."""
    return loopfs(size_bytes=128 << 20)


@pytest.fixture
def staging(filesystem: LoopFilesystem) -> Staging:
    """A staging directory on it."""
    return Staging.create(filesystem.path, "run", {"pid": 1})


def inside(staging: Staging, filesystem: LoopFilesystem, name: str) -> str:
    """Return a name in the receive directory, relative to the filesystem."""
    return str((staging.receive_path / name).relative_to(filesystem.path))


def test_directories_are_private_and_empty(staging: Staging) -> None:
    """Both are 0700, and nothing is in the one that a stream is locked into."""
    assert staging.path.stat().st_mode & 0o777 == 0o700
    assert staging.receive_path.stat().st_mode & 0o777 == 0o700
    assert list(staging.receive_path.iterdir()) == []


def test_everything_but_the_one_subvolume_is_refused(staging: Staging, filesystem: LoopFilesystem) -> None:
    """Nothing, a file, a link, a directory, a writable subvolume, two of them: each is refused and removed."""
    made: list[Callable[[Path], object]] = [
        lambda path: None,
        lambda path: path.write_text("file"),
        lambda path: path.symlink_to("/"),
        lambda path: path.mkdir(),
        lambda path: filesystem.subvolume(inside(staging, filesystem, path.name)),
    ]
    for make in made:
        make(staging.receive_path / "entry")
        with pytest.raises(StreamRefused):
            staging.received(UUID, 7)
        staging.empty()
        assert list(staging.receive_path.iterdir()) == []
    for name in ("one", "two"):
        filesystem.subvolume(inside(staging, filesystem, name))
    with pytest.raises(StreamRefused, match="2 entries"):
        staging.received(UUID, 7)


def test_whatever_is_inside_goes(staging: Staging, filesystem: LoopFilesystem) -> None:
    """Plain directories with files, subvolumes in them and subvolumes in subvolumes are all removed, no more."""
    outside = filesystem.subvolume("outside")
    (staging.receive_path / "plain").mkdir()
    (staging.receive_path / "plain" / "file").write_text("x")
    (staging.receive_path / "plain" / "link").symlink_to(outside)
    filesystem.subvolume(inside(staging, filesystem, "plain/subvolume"))
    filesystem.subvolume(inside(staging, filesystem, "outer"))
    filesystem.subvolume(inside(staging, filesystem, "outer/inner"))
    staging.remove()
    assert [path.name for path in filesystem.path.iterdir()] == ["outside"]


def test_foreign_content_is_not_removed(staging: Staging) -> None:
    """A file that somebody put beside ours stops the removal with a clear error."""
    (staging.path / "foreign").write_text("x")
    with pytest.raises(BtrfsError, match="cannot be removed"):
        staging.remove()
    assert (staging.path / "foreign").exists()


def test_staging_on_a_read_only_filesystem(filesystem: LoopFilesystem) -> None:
    """A filesystem that cannot be written is a clear error."""
    filesystem.remount("ro")
    with pytest.raises(BtrfsError, match="cannot be made"):
        Staging.create(filesystem.path, "run", {})


def test_kept_name_that_is_taken_gets_a_number(filesystem: LoopFilesystem) -> None:
    """Nothing in the place of a kept subvolume is overwritten."""
    snapshot = filesystem.snapshot(filesystem.subvolume("live"), "snapshot")
    store = ReceivedStore(filesystem.path, "data")
    names = [os.path.basename(store.keep(subvolume_facts(str(snapshot)), "id").path) for _ in range(3)]
    assert names == ["id", "id.2", "id.3"]
    for name in names:
        store.drop(subvolume_facts(str(store.path / name)))
    assert not store.path.parent.exists()


def test_unsafe_keeping_place_is_refused(filesystem: LoopFilesystem, tmp_path: Path) -> None:
    """A symbolic link, a file or a directory others can write to is not used."""
    snapshot = filesystem.snapshot(filesystem.subvolume("live"), "snapshot")
    store, place = ReceivedStore(filesystem.path, "data"), filesystem.path / ".b2s-received"
    place.symlink_to(tmp_path)
    with pytest.raises(BtrfsError, match="symbolic link"):
        store.keep(subvolume_facts(str(snapshot)), "id")
    place.unlink()
    place.write_text("file")
    with pytest.raises(BtrfsError, match="cannot be made"):
        store.keep(subvolume_facts(str(snapshot)), "id")
    place.unlink()
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(BtrfsError, match="writable by others"):
        store.keep(subvolume_facts(str(snapshot)), "id")
    assert list(tmp_path.iterdir()) == []
