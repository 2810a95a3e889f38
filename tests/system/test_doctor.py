"""`b2s doctor`: what is fine is called fine, what is wrong is named with its cure, and nothing stops it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parts import invariants
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import CANARY_SECRET, S3Server
from tests.system.site import MIB, PREFIX, MakeSite, Site


def findings(site: Site, *, exit_code: int = 0, **environment: str | None) -> dict[str, list[dict[str, Any]]]:
    """Run it and return what it found, by check."""
    done = site.b2s.call("doctor", "--json", *site.configured(), environment=environment)
    assert done.exit_code == exit_code, done.stdout + done.stderr[-2000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        assert set(finding) == {"check", "level", "detail", "cure"}
        assert finding["level"] in ("ok", "warning", "problem")
        assert finding["level"] == "ok" or finding["cure"]
        found.setdefault(finding["check"], []).append(finding)
    invariants.assert_no_secret(CANARY_SECRET, done.stdout, done.stderr)
    return found


def levels(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the worst level of each check."""
    order = ["ok", "warning", "problem"]
    return {check: max((each["level"] for each in items), key=order.index) for check, items in found.items()}


def test_all_is_well(make_site: MakeSite) -> None:
    """On a good host and SeaweedFS there is no problem, and nothing is left in the bucket or on the host."""
    site = make_site()
    found = levels(findings(site))
    for check in (
        "kernel",
        "btrfs_progs",
        "root",
        "state_dir",
        "lock_dir",
        "source",
        "snapshot_dir",
        "spool",
        "bucket",
    ):
        assert found[check] == "ok", check
    for check in ("credentials", "clock", "multipart", "checksums", "conditional_writes", "nested_subvolumes"):
        assert found[check] == "ok", check
    assert "problem" not in found.values()
    assert invariants.object_keys(site.client, site.bucket) == []
    assert not site.state.exists()
    assert not site.snapshots.exists()
    site.assert_clean()


def test_names_everything_at_once(make_site: MakeSite, loopfs: Callable[..., LoopFilesystem]) -> None:
    """A source that is missing, snapshots elsewhere, unsafe state, no bucket: all are found in one call."""
    site = make_site()
    elsewhere = loopfs()
    unsafe = site.directory / "unsafe"
    unsafe.mkdir()
    unsafe.chmod(0o777)
    site.settings["sources"].append({"name": "gone", "path": "/does/not/exist"})
    site.settings["snapshots"]["base_dir"] = str(elsewhere.path / "snapshots")
    site.settings["state_path"] = str(unsafe / "state.db")
    site.settings["s3"]["bucket"] = "there-is-no-such-bucket"
    found = findings(site, exit_code=1)
    wrong = {check for check, level in levels(found).items() if level == "problem"}
    assert wrong == {"source", "snapshot_dir", "state_dir", "bucket"}
    assert "chmod" in found["state_dir"][0]["cure"]


def test_names_what_a_backup_does_not_contain(make_site: MakeSite) -> None:
    """Nested subvolumes and mounts are warned about; the snapshot directory inside a source is not."""
    site = make_site()
    for nested in ("inner", "snaps"):
        subprocess.run(["btrfs", "subvolume", "create", site.source / nested], check=True, capture_output=True)
    site.settings["snapshots"]["base_dir"] = str(site.source / "snaps" / "here")
    (site.source / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", site.source / "mounted"], check=True)
    try:
        found = findings(site)
    finally:
        subprocess.run(["umount", site.source / "mounted"], check=True)
    assert "inner" in found["nested_subvolumes"][0]["detail"]
    assert "mounted" in found["mounts_inside"][0]["detail"]
    assert found["snapshot_dir"][0]["level"] == "ok"


def test_without_credentials(make_site: MakeSite) -> None:
    """That is the one thing said of the bucket, with what to do."""
    found = findings(make_site(), exit_code=1, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert found["credentials"][0]["level"] == "problem"
    assert "AWS_ACCESS_KEY_ID" in found["credentials"][0]["cure"]
    assert "bucket" not in found


def test_a_spool_that_does_not_fit(make_site: MakeSite) -> None:
    """A spool in memory, too small for the concurrency, and larger than its filesystem: three warnings."""
    site = make_site(segment_size="32MiB")
    small = site.directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", small], check=True)
    try:
        site.settings["spool"] = {"enabled": True, "dir": str(small / "spool"), "size": "96MiB"}
        details = " ".join(each["detail"] for each in findings(site)["spool"] if each["level"] == "warning")
        site.settings["spool"]["size"] = "96MiB"
        site.settings["s3"]["segment_size"] = "96MiB"
        site.settings["s3"]["chunk_size"] = "960MiB"
        assert levels(findings(site, exit_code=1))["spool"] == "problem"
    finally:
        subprocess.run(["umount", small], check=True)
    assert "tmpfs" in details
    assert "2 of 4 uploaders" in details
    assert "free" in details


def test_says_what_rclone_does_not_do(make_site: MakeSite, rclone: S3Server) -> None:
    """No SHA-256 and no conditional writes: warnings, since backups work all the same."""
    site = make_site()
    site.settings["s3"]["endpoint_url"] = rclone.endpoint_url
    site.settings["s3"]["bucket"] = rclone.make_bucket("doctor-visits")
    environment = {"AWS_ACCESS_KEY_ID": rclone.access_key, "AWS_SECRET_ACCESS_KEY": rclone.secret_key}
    found = levels(findings(site, **environment))
    assert found["checksums"] == "warning"
    assert found["conditional_writes"] == "warning"
    assert found["lifecycle"] == "ok"
    assert invariants.object_keys(rclone.client(), "doctor-visits") == []


@pytest.mark.parametrize(
    ("rule", "level", "said"),
    [
        ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 30}}, "ok", "after 30 days"),
        ({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}, "warning", "after 1 days"),
        ({"Expiration": {"Days": 90}}, "problem", "deletes objects after 90 days"),
        ({"Transitions": [{"Days": 30, "StorageClass": "DEEP_ARCHIVE"}]}, "problem", "archives manifests"),
    ],
)
def test_lifecycle_rules(
    make_site: MakeSite,
    moto: S3Server,
    bucket_on: Callable[[S3Server], str],
    rule: dict[str, Any],
    level: str,
    said: str,
) -> None:
    """Rules that concern our prefix are judged; those of others are not."""
    site = make_site()
    bucket = bucket_on(moto)
    rules = [
        {"ID": "ours", "Status": "Enabled", "Filter": {"Prefix": PREFIX.partition("/")[0]}, **rule},
        {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "elsewhere/"}, "Expiration": {"Days": 1}},
    ]
    moto.client().put_bucket_lifecycle_configuration(
        Bucket=bucket,
        LifecycleConfiguration={"Rules": rules},  # type: ignore[typeddict-item]
    )
    site.settings["s3"] |= {"endpoint_url": moto.endpoint_url, "bucket": bucket}
    environment = {"AWS_ACCESS_KEY_ID": moto.access_key, "AWS_SECRET_ACCESS_KEY": moto.secret_key}
    done = site.b2s.call("doctor", "--json", *site.configured(), environment=environment)
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "lifecycle"]
    judged = [each for each in found if said in each["detail"]]
    assert [each["level"] for each in judged] == [level]
    assert not any("theirs" in each["detail"] for each in found)


def test_a_class_that_outlives_the_fulls(make_site: MakeSite) -> None:
    """DEEP_ARCHIVE with monthly fulls is paid for half a year each: a warning."""
    site = make_site(storage_class={"chunks": "DEEP_ARCHIVE"})
    site.settings["schedule"] = {"full_every": "30d"}
    done = site.b2s.call("doctor", "--json", *site.configured())
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "storage_class"]
    assert found[0]["level"] == "warning"
    assert "180 days" in found[0]["detail"]


def test_shows_bytes_that_belong_to_no_backup(make_site: MakeSite) -> None:
    """A completed chunk that no manifest names is counted."""
    site = make_site(segment_size="5MiB", chunk_size="5MiB")
    (site.source / "file").write_bytes(b"x" * (2 * MIB))
    site.backup()
    manifest = site.manifests()[0]
    key = f"{PREFIX}/data/chunks/20250101T000000Z-full-00000000/000000"
    site.client.copy_object(
        Bucket=site.bucket,
        Key=key,
        CopySource={"Bucket": site.bucket, "Key": f"{PREFIX}/data/{manifest['chunks'][0]['key']}"},
    )
    found = findings(site)["unreferenced"][0]
    assert found["level"] == "warning"
    assert "2.0 MiB" in found["detail"]


def test_reads_well_on_a_pipe(make_site: MakeSite, tmp_path: Path) -> None:
    """Piped, each finding is one line, the cure below it, and the last line counts."""
    site = make_site()
    done = site.b2s.succeed("doctor", *site.configured())
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok       ", "warning  ", "problem  ", "         cure: ")) for line in lines[:-1])
    assert re.fullmatch(r"\d+ findings: 0 problems, 1 warning", lines[-1])
    assert "\x1b" not in done.stdout
