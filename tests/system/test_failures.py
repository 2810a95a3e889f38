"""What users get wrong: one sentence, a hint, the right exit code, and nothing left behind."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.parts import invariants
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import CANARY_SECRET
from tests.system.site import MIB, SOURCE, MakeSite, Site

Environment = Mapping[str, str | None]
Words = tuple[str | Path, ...]


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """Make a host with a small source that was never backed up."""
    made = make_site(segment_size=5 * MIB, chunk_size=10 * MIB)
    (made.source / "file").write_bytes(b"content")
    return made


def assert_fails(
    site: Site, *arguments: str | Path, code: int, says: str, environment: Environment | None = None
) -> None:
    """Assert what people and what machines are told, by two calls that fail alike."""
    machine = site.b2s.call(*arguments, environment=environment)
    assert machine.exit_code == code, machine.stderr
    assert machine.last["event"] == "run_finished"
    assert machine.last["exit_code"] == code
    assert says in machine.last["error"]
    assert "\n" not in machine.last["error"]
    assert machine.last["hint"]
    assert "Traceback" not in machine.stderr

    person = site.b2s.call(*arguments, "--log-format", "console", environment=environment)
    assert person.exit_code == code
    lines = person.stderr.splitlines()
    assert lines[-2] == f"error: {machine.last['error']}"
    assert lines[-1] == f"hint: {machine.last['hint']}"
    assert [line for line in lines[:-2] if line.startswith(("error:", "hint:"))] == []


def assert_nothing_left(site: Site) -> None:
    """Assert that a run that failed made nothing: no snapshot, object, upload, process, spool or lock."""
    site.assert_clean()
    assert invariants.object_keys(site.client, site.bucket) == []
    assert not site.snapshots.exists() or list(site.snapshots.iterdir()) == []
    invariants.assert_no_secret(CANARY_SECRET, site.b2s.said)


BAD_CREDENTIALS: dict[str, Environment] = {
    "unknown key": {"AWS_ACCESS_KEY_ID": "NOBODYKNOWSTHISKEY00"},
    "wrong secret": {"AWS_SECRET_ACCESS_KEY": "not-the-secret-of-this-key"},
    "missing": {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
}


@pytest.mark.parametrize(
    ("command", "case"), [*(("backup", case) for case in BAD_CREDENTIALS), ("list", "unknown key"), ("list", "missing")]
)
def test_credentials_do_not_work(site: Site, command: str, case: str) -> None:
    """Wrong or missing credentials fail at once, before a snapshot is made."""
    arguments = (command, *site.configured())
    assert_fails(site, *arguments, code=1, says="credentials", environment=BAD_CREDENTIALS[case])
    assert_nothing_left(site)


def test_profile_missing(site: Site) -> None:
    """A profile that does not exist is named."""
    site.settings["s3"]["profile"] = "nobody"
    assert_fails(site, "backup", *site.configured(), code=1, says="nobody")
    assert_nothing_left(site)


def test_bucket_missing(site: Site) -> None:
    """A bucket that does not exist is named and not created."""
    name = f"b2s-nowhere-{secrets.token_hex(4)}"
    site.settings["s3"]["bucket"] = name
    assert_fails(site, "backup", *site.configured(), code=1, says=name)
    with pytest.raises(ClientError):
        site.client.head_bucket(Bucket=name)
    assert_nothing_left(site)


def test_source_is_no_subvolume(site: Site) -> None:
    """A plain directory cannot be snapshotted."""
    directory = site.source / "directory"
    directory.mkdir()
    site.settings["sources"][0]["path"] = str(directory)
    assert_fails(site, "backup", *site.configured(), code=1, says=str(directory))
    assert_nothing_left(site)


def test_source_not_on_btrfs(site: Site, tmp_path: Path) -> None:
    """Neither can a directory of another filesystem."""
    directory = tmp_path / "plain"
    directory.mkdir()
    site.settings["sources"][0]["path"] = str(directory)
    assert_fails(site, "backup", *site.configured(), code=1, says=str(directory))
    assert_nothing_left(site)


def test_source_missing(site: Site) -> None:
    """A path that does not exist fails, and is not silently skipped."""
    site.settings["sources"][0]["path"] = str(site.filesystem.path / "gone")
    assert_fails(site, "backup", *site.configured(), code=1, says=str(site.filesystem.path / "gone"))
    assert_nothing_left(site)


def test_one_source_missing_does_not_stop_the_other(site: Site) -> None:
    """I11: the other source is backed up all the same; the exit code still tells."""
    site.settings["sources"].insert(0, {"name": "gone", "path": str(site.filesystem.path / "gone")})
    done = site.b2s.call("backup", *site.configured())
    assert done.exit_code == 1
    assert done.event("backup_metrics")["source"] == SOURCE
    assert {result["source"]: result["ok"] for result in done.last["results"]} == {"gone": False, SOURCE: True}
    assert len(site.manifests()) == 1
    site.assert_clean()


@pytest.fixture
def backed_up(site: Site) -> Site:
    """Make a host with one backup."""
    site.backup()
    return site


def assert_target_unchanged(site: Site, directory: Path, names: list[str]) -> None:
    """Assert that a restore that failed left the directory of its target as it was."""
    site.assert_clean()
    assert sorted(path.name for path in directory.iterdir()) == names


def test_restore_target_exists(backed_up: Site, loopfs: Callable[..., LoopFilesystem]) -> None:
    """An existing target is not touched: exit 2."""
    elsewhere = loopfs().path
    (elsewhere / "taken").mkdir()
    arguments: Words = ("restore", *backed_up.where(), "--source", SOURCE, "--target", elsewhere / "taken")
    assert_fails(backed_up, *arguments, code=2, says="exists already")
    assert_target_unchanged(backed_up, elsewhere, ["taken"])


def test_restore_target_not_on_btrfs(backed_up: Site, tmp_path: Path) -> None:
    """A subvolume can only be made on btrfs: exit 2."""
    parent = tmp_path / "elsewhere"
    parent.mkdir()
    arguments: Words = ("restore", *backed_up.where(), "--source", SOURCE, "--target", parent / "data")
    assert_fails(backed_up, *arguments, code=2, says="btrfs")
    assert_target_unchanged(backed_up, parent, [])


@pytest.mark.parametrize(
    "asked",
    [("--source", "nobody"), ("--source", SOURCE, "--backup", "20260101T000000Z-full-00000000")],
    ids=["source", "backup"],
)
def test_restore_of_what_is_not_there(
    backed_up: Site, loopfs: Callable[..., LoopFilesystem], asked: tuple[str, ...]
) -> None:
    """A source or a backup that the bucket does not have: exit 4."""
    elsewhere = loopfs().path
    arguments: Words = ("restore", *backed_up.where(), *asked, "--target", elsewhere / "data")
    assert_fails(backed_up, *arguments, code=4, says=asked[-1])
    assert_target_unchanged(backed_up, elsewhere, [])
