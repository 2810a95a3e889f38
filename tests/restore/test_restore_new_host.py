"""`scripts/restore-new-host` on a checkout that was just unpacked."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import MotoServer, S3Server, SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.restore.conftest import Origin
from tests.system.commands import REPOSITORY, Caller


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout whose .venv is this Python, so that nothing is installed."""
    copy = tmp_path / "b2s"
    shutil.copytree(REPOSITORY / "b2s", copy / "b2s", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py"):
        shutil.copy(REPOSITORY / name, copy / name)
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    digest = hashlib.sha256((copy / "setup.cfg").read_bytes() + (copy / "setup.py").read_bytes()).hexdigest()
    (copy / ".venv" / "installed-for-restore").write_text(f"{digest}  -\n")
    return copy


def run(checkout: Path, caller: Caller, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script; with `typed` on a terminal where a person types that."""
    command = [str(checkout / "scripts" / "restore-new-host"), *arguments]
    if typed:
        command = ["script", "--quiet", "--return", "--command", subprocess.list2cmdline(command), "/dev/null"]
    environment = {name: value for name, value in caller.environment.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd="/", env=environment, input=typed, capture_output=True, text=True, timeout=100, check=False
    )


def test_restores_with_everything_given(
    make_origin: Callable[..., Origin],
    seaweed: SeaweedServer,
    loopfs: Callable[..., LoopFilesystem],
    checkout: Path,
    tmp_path: Path,
) -> None:
    """With all options it asks nothing and restores; without what it needs and nobody to ask it says so."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    caller, elsewhere = Caller(tmp_path, seaweed), loopfs()
    where = ["--bucket", "b2s-restore", f"--prefix={origin.uploader.prefix}", "--endpoint-url", seaweed.endpoint_url]
    target = elsewhere.path / "restored"
    done = run(checkout, caller, *where, "--source", "data", "--target", str(target), "--keep", "all")
    assert done.returncode == 0, done.stderr
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(target)) == []
    refused = run(checkout, caller, "--source", "data")
    assert refused.returncode == 2
    assert "nobody to ask: Bucket" in refused.stderr


def test_asks_for_what_is_missing(
    make_origin: Callable[..., Origin],
    seaweed: SeaweedServer,
    loopfs: Callable[..., LoopFilesystem],
    checkout: Path,
    tmp_path: Path,
) -> None:
    """On a terminal, with nothing given, it lists sources and points, asks again after wrong answers, and restores."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    first = origin.uploader.stored[0].manifest.backup_id
    caller, elsewhere = Caller(tmp_path, seaweed), loopfs()
    target, endpoint = elsewhere.path / "restored", seaweed.endpoint_url
    answers = ["no-such-bucket", "x", endpoint]  # it looks there, says so, and asks all of it again
    answers += ["b2s-restore", "no/backups", endpoint, "b2s-restore", origin.uploader.prefix, endpoint]
    answers += ["dta", "data", "17", "yesterday", "1990-01-01", "1"]
    answers += ["relative", "/tmp/here", "/no/such/directory", str(elsewhere.path), str(target)]
    done = run(checkout, caller, typed="".join(f"{answer}\n" for answer in answers))
    assert done.returncode == 0, done.stdout
    for said in (
        "bucket no-such-bucket does not exist",
        "there is no backup under this prefix",
        "2 backups",
        "there is no source 'dta'",
        "'17' is no number or id of these",
        "'yesterday' is not a time",
        "no backup of 1990-01-01 00:00:00 UTC or before",
        "with its whole path",
        "/tmp is not a directory on a btrfs filesystem",
        "/no/such does not exist",
        f"{elsewhere.path} exists already",
        "MiB free",
        f"--backup {first}",
    ):
        assert said in done.stdout, said
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(target)) == []


def test_newest_of_the_only_source(
    make_origin: Callable[..., Origin],
    seaweed: SeaweedServer,
    loopfs: Callable[..., LoopFilesystem],
    checkout: Path,
    tmp_path: Path,
) -> None:
    """Empty answers mean the newest backup of the only source; leaving at a question makes nothing."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    caller, elsewhere = Caller(tmp_path, seaweed), loopfs()
    target = elsewhere.path / "restored"
    where = f"b2s-restore\n{origin.uploader.prefix}\n"
    left = run(checkout, caller, "--endpoint-url", seaweed.endpoint_url, typed=f"{where}\n\x04")
    assert left.returncode == 130
    assert list(elsewhere.path.iterdir()) == []
    done = run(checkout, caller, "--endpoint-url", seaweed.endpoint_url, typed=f"{where}\n\n{target}\n")
    assert done.returncode == 0, done.stdout
    assert "1 backups" in done.stdout
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(target)) == []


def test_what_is_damaged_does_not_hide_the_rest(
    make_origin: Callable[..., Origin],
    seaweed: SeaweedServer,
    loopfs: Callable[..., LoopFilesystem],
    checkout: Path,
    tmp_path: Path,
) -> None:
    """With a chunk of the newest backup gone, and an unreadable manifest, the older point is offered and restored."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    origin.change_and_back_up()
    uploader = origin.uploader
    uploader.client.delete_object(Bucket=uploader.bucket, Key=uploader.chunk_keys()[-1])
    uploader.client.put_object(Bucket=uploader.bucket, Key=uploader.layout.manifest_key(3), Body=b"{}")
    caller, elsewhere = Caller(tmp_path, seaweed), loopfs()
    target = elsewhere.path / "restored"
    options = ["--bucket", "b2s-restore", "--prefix", uploader.prefix, "--endpoint-url", seaweed.endpoint_url]
    done = run(checkout, caller, *options, typed=f"data\n3\n2\n\n{target}\n")
    assert done.returncode == 0, done.stdout
    for said in ("number 3 cannot be restored", "number 2 cannot be restored", "not after it [1]"):
        assert said in done.stdout, said
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(target)) == []


def test_archived_points_are_explained(
    make_origin: Callable[..., Origin],
    moto: MotoServer,
    proxy: Callable[[S3Server], FaultProxy],
    loopfs: Callable[..., LoopFilesystem],
    checkout: Path,
    tmp_path: Path,
) -> None:
    """Objects, size and hours of each tier are told, and the tier asked, before anything is asked of the archive."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    origin.change_and_back_up()
    front, caller, elsewhere = proxy(moto), Caller(tmp_path, moto), loopfs()
    options = ["--bucket", "b2s-restore", "--prefix", origin.uploader.prefix, "--endpoint-url", front.endpoint_url]
    left = run(checkout, caller, *options, typed="data\n\nexpedited\n\x04")
    for said in (
        "2 objects, ",
        "DEEP_ARCHIVE",
        "Standard   9 to 12 hours",
        "Bulk       24 to 48 hours",
        "choose Standard",
    ):
        assert said in left.stdout, said
    assert left.returncode == 130
    assert front.history("RestoreObject") == []
    done = run(checkout, caller, *options, typed=f"data\n\nbulk\n{elsewhere.path}/restored\n")
    assert done.returncode == 0, done.stdout
    assert "--tier Bulk" in done.stdout
    assert len(front.history("RestoreObject")) == len(origin.uploader.chunk_keys())
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []
