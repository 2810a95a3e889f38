"""Spools of dead runs: what is removed, and what is not while nobody can tell whose it is."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import spool
from b2s.adapters.spool import OWNER_FILE, Spool, sweep
from b2s.core.limits import MIB
from b2s.errors import SpoolFull, SpoolRefused
from tests.parts.loopfs import LoopFilesystem

RUN_ID = "20260101T000000Z-0000000{}"


def failing(real: Callable[..., Any], path: Path, number: int) -> Callable[..., Any]:
    """Return a system call that fails on this path, as on a disk that breaks or went read-only."""

    def call(target: Any, *arguments: Any) -> Any:
        if Path(target) == path:
            raise OSError(number, os.strerror(number), str(target))
        return real(target, *arguments)

    return call


def dead_spool(parent: Path, number: int) -> Path:
    """Leave what a killed run leaves."""
    made = Spool.create(parent, RUN_ID.format(number), 4096, {"pid": 1})
    made.allocate(0)
    descriptor, made._owner_fd = made._owner_fd, None
    assert descriptor is not None
    os.close(descriptor)  # the kernel did, and with it went the lock
    return made.path


def test_spools_of_dead_runs_go_and_others_stay(tmp_path: Path) -> None:
    """One is held by its run, one by the word of its owner, one by nobody."""
    held = Spool.create(tmp_path, RUN_ID.format(1), 4096, {"pid": 1})
    dead = [dead_spool(tmp_path, number) for number in (2, 3)]
    (dead[1] / OWNER_FILE).write_text('{"pid": 3}')
    assert sweep(tmp_path, lambda owner: owner["pid"] == 3) == [dead[0]]
    assert held.path.exists()
    assert dead[1].exists()
    held.remove()


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is named, not a bug; the caller decides whether it matters."""
    monkeypatch.setattr(spool.os, "scandir", failing(os.scandir, tmp_path, number))
    with pytest.raises(SpoolRefused, match=str(tmp_path)):
        sweep(tmp_path, lambda owner: False)


def test_owner_that_cannot_be_read_may_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell: it stays until somebody can."""
    path = dead_spool(tmp_path, 1)
    with monkeypatch.context() as broken:
        broken.setattr(spool.os, "open", failing(os.open, path / OWNER_FILE, errno.EIO))
        assert sweep(tmp_path, lambda owner: False) == []
    assert sweep(tmp_path, lambda owner: False) == [path]


def test_slots_that_nobody_needs_go_before_the_spool(tmp_path: Path) -> None:
    """What is mapped stays readable, and all else of the spool stays."""
    made = Spool.create(tmp_path, RUN_ID.format(0), 4096, {"pid": 1})
    made.allocate(0)
    made.slot(0)[:3] = b"abc"
    made.remove_slots()
    assert [path.name for path in made.path.iterdir()] == [OWNER_FILE]
    assert bytes(made.slot(0)[:3]) == b"abc"
    made.remove()
    assert not made.path.exists()


@pytest.mark.root
def test_slots_that_cannot_be_removed_now(loopfs: Callable[[], LoopFilesystem]) -> None:
    """A disk that fails then must not fail what is stored already."""
    made = Spool.create(loopfs().path, RUN_ID.format(0), 4096, {"pid": 1})
    made.allocate(0)
    subprocess.run(["chattr", "+i", made.path], check=True)
    made.remove_slots()
    subprocess.run(["chattr", "-i", made.path], check=True)
    made.remove()
    assert not made.path.exists()


@pytest.mark.root
def test_memory_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot has its whole room, in pages that nobody can take any more, or is refused and leaves nothing."""
    memory = tmp_path / "shm"
    memory.mkdir()
    slot_bytes = 3 * MIB + 4096
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", memory], check=True)
    try:
        monkeypatch.setattr(spool, "MEMORY_DIRECTORY", memory)
        made = Spool.create(memory, RUN_ID.format(0), slot_bytes, {"pid": 1})
        for slot in range(2):
            made.allocate(slot)
        with pytest.raises(SpoolFull, match="no room for a segment"):
            made.allocate(2)
        files = sorted(path for path in made.path.iterdir() if path.name != OWNER_FILE)
        assert [path.stat().st_blocks * 512 >= slot_bytes == path.stat().st_size for path in files] == [True, True]
        made.slot(1)[:] = b"x" * slot_bytes
        del made
    finally:
        subprocess.run(["umount", "-l", memory], check=True)
