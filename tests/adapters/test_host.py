"""Who this machine is: stable, private, and also without a machine id."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from b2s.adapters import host
from b2s.adapters.lock import RunLock
from b2s.adapters.state import State
from b2s.errors import LockRefused, StateError


@pytest.fixture
def machine_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the machine id be read from a file of the test."""
    path = tmp_path / "machine-id"
    monkeypatch.setattr(host, "_MACHINE_ID_PATHS", (str(path),))
    return path


def test_the_id_is_stable_and_does_not_show_the_machine_id(machine_id: Path, tmp_path: Path) -> None:
    """The same machine id gives the same id for ever, another one another; neither contains it."""
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    first = host.host_identity(str(tmp_path / "host-id"))
    # Fixed for ever: with another value every host would be a stranger to its own backups.
    assert first.id == "d0dc992af8839273d578f95101d127cc7da7a35b9362638dbe2042243457f47f"
    assert first == host.host_identity(str(tmp_path / "host-id"))
    assert "0123456789abcdef" not in first.id
    machine_id.write_text("f123456789abcdef0123456789abcdef\n")
    assert host.host_identity(str(tmp_path / "host-id")).id != first.id
    assert not (tmp_path / "host-id").exists()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "0" * 32, "x" * 32])
def test_without_a_machine_id_a_random_one_is_kept(machine_id: Path, tmp_path: Path, content: str | None) -> None:
    """Containers and rescue systems get an id of their own that stays, private."""
    if content is not None:
        machine_id.write_text(content)
    kept = tmp_path / "lib" / "host-id"
    first = host.host_identity(str(kept))
    assert first == host.host_identity(str(kept))
    assert first.id != host.host_identity(str(tmp_path / "other")).id
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in kept.parent.iterdir()] == ["host-id"]


def test_an_unusable_fallback_is_an_error(machine_id: Path, tmp_path: Path) -> None:
    """Garbage or an impossible place in its stead is said, not guessed around."""
    garbage = tmp_path / "garbage"
    garbage.write_text("not an id")
    for path in (garbage, tmp_path / "garbage" / "host-id", tmp_path):
        with pytest.raises(StateError) as caught:
            host.host_identity(str(path))
        assert caught.value.hint


def test_the_boot_id_is_this_boots() -> None:
    """A UUID that does not change while we run."""
    assert re.fullmatch(r"[0-9a-f-]{36}", host.boot_id())
    assert host.boot_id() == host.boot_id()


@pytest.mark.root
def test_who_forgot_to_be_root_is_told_so(tmp_path: Path) -> None:
    """State and lock of root are refused to others, with the one hint that helps."""
    private = tmp_path / "state"
    private.mkdir(mode=0o700)
    State.open(str(private / "state.db"), "host").close()
    os.seteuid(65534)
    try:
        with pytest.raises(StateError) as state:
            State.open_read_only(str(private / "state.db"))
        with pytest.raises(LockRefused) as lock:
            RunLock(str(private / "b2s.lock"), "run").acquire()
    finally:
        os.seteuid(0)
    assert state.value.hint == lock.value.hint == "run b2s as root"
