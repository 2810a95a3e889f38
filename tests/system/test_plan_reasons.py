"""Why a backup is a full: each reason on a real filesystem and a real bucket, and what continues all the same."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import SeaweedServer
from tests.parts.workspace import poll
from tests.system.site import PREFIX, SOURCE, Site

pytestmark = pytest.mark.root

MONITORING = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
UNREACHABLE = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}


class Planned:
    """A host that every test here shares: a bucket, a filesystem, and a chain that is made whole before each test."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._writes = 0

    def make_ready(self) -> None:
        """See to a whole chain of at least two backups, and write something new."""
        for _ in range(4):
            self.write()
            if self.decide()[0] == "incremental":
                break
        self.write()

    def write(self) -> None:
        """Change the source."""
        self._writes += 1
        (self.site.source / "file").write_text(f"{self._writes}")

    @property
    def chain(self) -> list[dict[str, Any]]:
        """The manifests from the newest full on."""
        manifests = self.site.manifests()
        fulls = [index for index, manifest in enumerate(manifests) if manifest["kind"] == "full"]
        return manifests[fulls[-1] :]

    @property
    def head(self) -> dict[str, Any]:
        """The newest manifest."""
        return self.chain[-1]

    @property
    def head_snapshot(self) -> Path:
        """The snapshot of the newest backup."""
        return Path(self.head["snapshot"]["path"])

    def decide(self, *options: str) -> tuple[str, str]:
        """Run `backup --once` and return what it decided."""
        decided = self.site.backup("--once", *options).event("plan_decided")
        return decided["action"], decided["reason"]

    def plan(self, **how: Any) -> dict[str, Any]:
        """Return what `b2s plan` says of the source."""
        done = self.site.b2s.succeed("plan", *self.site.configured(), "--json", **how)
        (action,) = json.loads(done.stdout)["actions"]
        return dict(action)

    def manifest_key(self, manifest: dict[str, Any]) -> str:
        """Return the key of a manifest."""
        return f"{PREFIX}/{SOURCE}/manifests/{manifest['sequence']:08d}.json"

    def chunk_key(self, manifest: dict[str, Any]) -> str:
        """Return the key of a backup's first chunk."""
        return f"{PREFIX}/{SOURCE}/{manifest['chunks'][0]['key']}"

    def objects(self) -> dict[str, str]:
        """Return the ETag of every object in the bucket, by key."""
        listed = self.site.client.list_objects_v2(Bucket=self.site.bucket)
        return {entry["Key"]: entry["ETag"] for entry in listed["Contents"]}

    def delete(self, key: str) -> None:
        """Delete an object from the bucket."""
        self.site.client.delete_object(Bucket=self.site.bucket, Key=key)

    def put(self, key: str, body: bytes) -> None:
        """Overwrite an object in the bucket."""
        self.site.client.put_object(Bucket=self.site.bucket, Key=key, Body=body)


@pytest.fixture(scope="module")
def shared(seaweed: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planned]:
    """Make the host once: with one of its own for each test this file would take many minutes."""
    directory = tmp_path_factory.mktemp("planned")
    with LoopFilesystem() as filesystem:
        yield Planned(Site(directory, seaweed, seaweed.make_bucket(f"b2s-{secrets.token_hex(6)}"), filesystem))


@pytest.fixture
def planned(shared: Planned) -> Planned:
    """Return the host, ready."""
    shared.site.settings.pop("schedule", None)
    shared.site.settings["s3"]["retry_for"] = "10s"
    shared.make_ready()
    return shared


def btrfs(*arguments: str | Path) -> None:
    """Run the tool."""
    subprocess.run(["btrfs", *map(str, arguments)], check=True, capture_output=True)


def test_nothing_wrong_gives_an_incremental(planned: Planned) -> None:
    """A whole chain and an untouched snapshot: the third backup is an incremental on the second."""
    assert planned.decide() == ("incremental", "forced")
    older, newest = planned.chain[-2:]
    assert newest["send_parent"]["sequence"] == older["sequence"]


def test_a_deleted_send_parent(planned: Planned) -> None:
    """The snapshot is gone: a full."""
    btrfs("subvolume", "delete", planned.head_snapshot)
    assert planned.decide() == ("full", "send_parent_missing")


def test_a_renamed_send_parent_is_found(planned: Planned) -> None:
    """The snapshot has another name: still an incremental."""
    planned.head_snapshot.rename(planned.site.snapshots / "another-name")
    assert planned.decide() == ("incremental", "forced")


def test_a_send_parent_that_is_writable(planned: Planned) -> None:
    """The snapshot was made writable: a full."""
    btrfs("property", "set", planned.head_snapshot, "ro", "false")
    assert planned.decide() == ("full", "send_parent_writable")


def test_a_send_parent_that_was_edited(planned: Planned) -> None:
    """The snapshot was made writable, edited and made read-only again: a full."""
    btrfs("property", "set", planned.head_snapshot, "ro", "false")
    (planned.head_snapshot / "file").write_text("forged")
    btrfs("property", "set", planned.head_snapshot, "ro", "true")
    assert planned.decide() == ("full", "send_parent_changed")


def test_a_send_parent_replaced_under_its_name(planned: Planned) -> None:
    """Another read-only snapshot lies under its name: a full."""
    path = planned.head_snapshot
    btrfs("subvolume", "delete", path)
    btrfs("subvolume", "snapshot", "-r", planned.site.source, path)
    assert planned.decide() == ("full", "send_parent_missing")


@pytest.mark.parametrize("member", [0, -1])
def test_a_deleted_manifest(planned: Planned, member: int) -> None:
    """A manifest of the chain is gone, the full's or the newest: a full, and then incrementals again."""
    planned.delete(planned.manifest_key(planned.chain[member]))
    assert planned.decide() == ("full", "manifest_missing")
    planned.write()
    assert planned.decide() == ("incremental", "forced")


@pytest.mark.parametrize("member", [0, -1])
def test_a_deleted_chunk(planned: Planned, member: int) -> None:
    """A chunk of the chain is gone, the full's or the newest: a full."""
    planned.delete(planned.chunk_key(planned.chain[member]))
    assert planned.decide() == ("full", "chunk_missing")


def test_a_chunk_replaced_by_another(planned: Planned) -> None:
    """A chunk of the same size with another content is noticed without downloading it: a full."""
    head = planned.head
    planned.put(planned.chunk_key(head), b"x" * head["chunks"][0]["bytes"])
    assert planned.decide() == ("full", "chunk_missing")


def test_a_damaged_manifest(planned: Planned) -> None:
    """A manifest that is no manifest any more breaks its chain: a full above it."""
    head = planned.head
    key = planned.manifest_key(head)
    planned.put(key, b"{}")
    listed = planned.site.b2s.call("list", *planned.site.where(), "--json")
    assert [chain["whole"] for chain in json.loads(listed.stdout)["sources"][0]["chains"]][-1] is False
    assert planned.decide() == ("full", "chain_broken")
    planned.delete(key)  # only for the tests that follow: they read all manifests
    assert planned.head["sequence"] == head["sequence"] + 1


@pytest.mark.parametrize("damage", ["deleted", "truncated", "garbage"])
def test_a_lost_state_goes_on_incrementally(planned: Planned, damage: str) -> None:
    """The state is a cache: without it the next backup is an incremental, and it is said that it was rebuilt."""
    state = Path(planned.site.settings["state_path"])
    for each in state.parent.glob("state.db*"):
        each.unlink() if damage == "deleted" or each != state else None
    if damage != "deleted":
        state.write_bytes(state.read_bytes()[:1000] if damage == "truncated" and state.exists() else b"garbage" * 1000)
    done = planned.site.backup("--once")
    assert done.event("plan_decided")["action"] == "incremental"
    assert done.event("state_rebuilt")


def test_unchanged_is_skipped_and_not_asked_again_in_its_slot(planned: Planned) -> None:
    """Due and unchanged: skipped with its reason; the next call knows so by itself."""
    planned.decide()
    head = planned.head
    planned.site.settings["schedule"] = {"incremental_every": "1s"}
    time.sleep(1)  # into the next slot
    assert planned.plan()["reason"] == "unchanged"
    assert planned.site.backup().event("plan_decided")["reason"] == "unchanged"
    assert planned.head == head
    planned.site.settings["schedule"] = {"incremental_every": "1d"}
    planned.write()
    assert planned.plan()["reason"] == "not_due"
    planned.site.settings["schedule"] = {"incremental_every": "1s"}
    time.sleep(1)
    assert planned.site.backup().event("plan_decided")["reason"] == "interval"


def test_not_due_needs_no_bucket(planned: Planned) -> None:
    """What is not due is known here: the call succeeds while the bucket cannot be reached at all."""
    action = planned.plan(environment=UNREACHABLE)
    assert (action["action"], action["reason"]) == ("skip", "not_due")


def test_a_bucket_that_does_not_answer_is_a_failure_never_a_full(planned: Planned) -> None:
    """With S3 gone a due source fails; no snapshot is taken, nothing is decided."""
    before = sorted(path.name for path in planned.site.snapshots.iterdir())
    planned.site.settings["s3"]["retry_for"] = "1s"
    done = planned.site.b2s.call("backup", *planned.site.configured(), "--once", environment=UNREACHABLE)
    assert done.exit_code == 1
    assert not [event for event in done.events if event["event"] == "plan_decided"]
    assert sorted(path.name for path in planned.site.snapshots.iterdir()) == before


def test_a_missing_source_fails(planned: Planned) -> None:
    """A source that is not there fails with its reason, although it is not due."""
    away = planned.site.filesystem.path / "away"
    planned.site.source.rename(away)
    done = planned.site.b2s.call("backup", *planned.site.configured())
    away.rename(planned.site.source)
    assert done.exit_code == 1
    assert done.event("plan_decided")["reason"] == "source_missing"


def test_list_and_status_tell_the_story(planned: Planned) -> None:
    """A whole chain and nothing overdue; with a chunk lost not whole; with a shorter interval overdue."""
    site = planned.site
    (source,) = json.loads(site.b2s.call("list", *site.where(), "--json").stdout)["sources"]
    chain = source["chains"][-1]
    assert (source["source"], chain["whole"]) == (SOURCE, True)
    assert [backup["sequence"] for backup in chain["backups"]] == [each["sequence"] for each in planned.chain]
    assert source["unfinished_bytes"] == 0
    shown = json.loads(site.b2s.succeed("status", *site.configured(), "--check", "--json").stdout)["sources"][0]
    assert shown["last_backup"]["sequence"] == planned.head["sequence"]
    assert (shown["chain_length"], shown["overdue"], shown["interrupted"]) == (len(planned.chain), False, None)
    planned.delete(planned.chunk_key(planned.head))
    (source,) = json.loads(site.b2s.call("list", *site.where(), "--json").stdout)["sources"]
    assert not source["chains"][-1]["whole"]
    site.settings["schedule"] = {"incremental_every": "1s"}
    poll(
        lambda: site.b2s.call("status", *site.configured(), "--check").exit_code == 1,
        seconds=20,
        what="the last backup is overdue",
    )


def test_json_has_the_fields_of_the_docs(planned: Planned) -> None:
    """docs/monitoring.md names every field of every document, and no other."""
    site = planned.site
    documents = {
        command: json.loads(site.b2s.call(command, *site.configured(), "--json").stdout)  # damage may be told
        for command in ("plan", "list", "status", "verify", "doctor")
    }
    table = MONITORING.partition("## JSON of the commands")[2].partition("`action` is")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    looked_at = 0
    for _, where, fields, _ in rows:
        command, *path = re.findall(r"`([^`]+)`", where)
        found = [documents[command]]
        for step in re.findall(r"(\w+)(?:\[\])?", path[0]) if path else ():
            found = [each for value in found for each in _listed(value[step])]
        for value in found:
            assert set(value) == set(re.findall(r"`([^`]+)`", fields)), where
            looked_at += 1
    assert looked_at >= 8


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def test_received_snapshots_on_a_new_disk_continue_the_chain(planned: Planned, loopfs: Any) -> None:
    """Snapshots received on another filesystem, the source made from the newest: an incremental from there."""
    site = planned.site
    disk: LoopFilesystem = loopfs()
    head = planned.head
    snapshot = Path(head["snapshot"]["path"])
    subprocess.run(f"btrfs -q send {snapshot} | btrfs -q receive {disk.path}", shell=True, check=True)
    moved = disk.path / SOURCE
    btrfs("subvolume", "snapshot", disk.path / snapshot.name, moved)
    (moved / "file").write_text("on the new disk")
    here = dict(site.settings)
    site.settings |= {
        "sources": [{"name": SOURCE, "path": str(moved)}],
        "snapshots": {"base_dir": str(disk.path / "snapshots")},
    }
    assert planned.decide() == ("incremental", "forced")
    assert planned.head["send_parent"]["snapshot_uuid"] == head["snapshot"]["uuid"]
    (moved / "file").write_text("again")
    assert planned.decide() == ("incremental", "forced")
    site.settings = here
    refused = site.b2s.call("backup", *site.configured())  # the old disk has no part in it any more
    assert refused.event("plan_decided")["reason"] == "source_replaced"
    assert planned.decide("--adopt") == ("full", "source_replaced")


def test_a_replaced_source_is_refused(planned: Planned) -> None:
    """Another subvolume at the same path is refused, due or not, until it is adopted; then it goes on with a full."""
    site = planned.site
    sequence = planned.head["sequence"]
    site.source.rename(site.filesystem.path / "old")
    site.filesystem.subvolume(SOURCE)
    done = site.b2s.call("backup", *site.configured())
    assert done.exit_code == 1
    assert done.event("plan_decided")["reason"] == "source_replaced"
    assert "--adopt" in done.last["hint"]
    assert planned.decide("--adopt") == ("full", "source_replaced")
    assert planned.head["sequence"] == sequence + 1
    assert site.backup().event("plan_decided")["reason"] == "not_due"


def test_another_host_is_refused_and_may_adopt(planned: Planned, loopfs: Any, tmp_path: Path) -> None:
    """Two hosts, one prefix and name: the second is refused and changes nothing; after --adopt the first one is."""
    site = planned.site
    planned.make_ready()
    disk: LoopFilesystem = loopfs()
    (disk.subvolume(SOURCE) / "file").write_text("of another host")
    settings = site.settings | {
        "sources": [{"name": SOURCE, "path": str(disk.path / SOURCE)}],
        "snapshots": {"base_dir": str(disk.path / "snapshots")},
        "state_path": str(tmp_path / "state.db"),
        "lock_path": str(tmp_path / "b2s.lock"),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    (tmp_path / "machine-id").write_text("f" * 32)

    def over_there(*options: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
        as_other = f'mount --bind {tmp_path}/machine-id /etc/machine-id && exec "$@"'
        b2s = [sys.executable, "-m", "b2s", "backup", "--config", str(tmp_path / "config.yaml"), *options]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", as_other, "sh", *b2s],
            env=site.b2s.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        events = [json.loads(line) for line in done.stderr.splitlines()]
        (decided,) = [event for event in events if event["event"] == "plan_decided"]
        return done.returncode, decided, events[-1]

    before = planned.objects()
    code, decided, last = over_there("--once")
    assert (code, decided["action"], decided["reason"]) == (1, "refuse", "foreign_host")
    assert "--adopt" in last["hint"]
    assert planned.objects() == before
    code, decided, last = over_there("--adopt")
    assert (code, decided["action"], decided["reason"]) == (0, "full", "foreign_host")
    assert planned.objects().items() >= before.items()
    refused = site.b2s.call("backup", "--once", *site.configured())
    assert refused.exit_code == 1
    assert refused.event("plan_decided")["reason"] == "foreign_host"
    (adopted,) = [result["backup_id"] for result in last["results"]]
    site.b2s.succeed(
        "verify", *site.where(), "--source", SOURCE, "--backup", adopted
    )  # other tests of this module damage other chains
    assert planned.decide("--adopt") == ("full", "foreign_host")
