"""A stranger with the docs, the AWS CLI, jq and btrfs-progs: the shell of the pages, as it is printed there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import REGION, SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.restore.conftest import Origin, make_origin, place_on

__all__ = ["make_origin", "place_on"]
ROOT = Path(__file__).parents[2]

# Where the AWS CLI and jq are not installed: the three calls that the pages make of them.
STAND_INS = {
    "aws": f"""#!{sys.executable}
import sys, boto3
words = [word for word in sys.argv[1:] if word != "--only-show-errors"]
bucket, _, key = words[2].removeprefix("s3://").partition("/")
s3 = boto3.client("s3")
if words[:2] == ["s3", "cp"]:
    to = sys.stdout.buffer if words[3] == "-" else open(words[3], "wb")
    to.write(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
else:
    page = s3.list_objects_v2(Bucket=bucket, Prefix=key, Delimiter="/")
    for common in page.get("CommonPrefixes", []):
        print("PRE", common["Prefix"].removeprefix(key))
    for entry in page.get("Contents", []):
        print("2026-01-01 00:00:00", entry["Size"], entry["Key"].removeprefix(key))
""",
    "jq": f"""#!{sys.executable}
import json, sys
assert sys.argv[1:3] == ["-r", ".chunks[].key"], sys.argv
print("\\n".join(chunk["key"] for chunk in json.load(open(sys.argv[3]) if sys.argv[3:] else sys.stdin)["chunks"]))
""",
}


@pytest.fixture
def shell(tmp_path: Path, seaweed: SeaweedServer) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run shell text with the tools that the pages name."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STAND_INS.items():
        found = shutil.which(name)
        if found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            (programs / name).symlink_to(found)
        else:
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": seaweed.endpoint_url,
    }

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def block(page: str, heading: str) -> str:
    """Return the shell block below a heading of a page."""
    text = (ROOT / page).read_text().partition(f"{heading}\n")[2]
    found = re.search(r"^( *)```sh\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    return "\n".join(line.removeprefix(found[1]) for line in found[2].splitlines())


def swapped(text: str, exchange: dict[str, str]) -> str:
    """Return the text with the examples in it exchanged for what there is; each must occur."""
    for example, real in exchange.items():
        assert example in text, example
        text = text.replace(example, real)
    return text


@pytest.fixture
def origin(make_origin: Callable[..., Origin], seaweed: SeaweedServer) -> Origin:
    """A full of several chunks and two incrementals."""
    made = make_origin(seaweed, size_bytes=22 << 20)
    made.change_and_back_up()
    made.change_and_back_up()
    return made


@pytest.fixture
def new_disk(loopfs: Callable[..., LoopFilesystem]) -> Path:
    """An empty btrfs."""
    return loopfs().path


def restored_by(origin: Origin, new_disk: Path) -> list[str]:
    """Return how what was received last differs from what was sent last; it must be read-only, with its UUID."""
    received = new_disk / "received" / origin.snapshots[-1].name
    shown = subprocess.run(["btrfs", "subvolume", "show", received], capture_output=True, text=True, check=True).stdout
    assert f"Received UUID: \t\t{origin.uploader.stored[-1].manifest.snapshot.uuid}" in shown
    return differences(tree_digest(origin.snapshots[-1]), tree_digest(new_disk / "data"))


def test_readme(origin: Origin, new_disk: Path, shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """The README's page for the worst day, without b2s."""
    ids = [stored.manifest.backup_id for stored in origin.uploader.stored]
    text = swapped(
        block("README.md", "### Without b2s"),
        {
            "s3://my-backups/hosts/web1": f"s3://b2s-restore/{origin.uploader.prefix}",
            "| less ": "| cat ",
            "20261108T020000Z-full-1f0c2a9b 20261115T020000Z-inc-77aa0d31 20261122T020000Z-inc-c4e190f2": " ".join(ids),
            "data.20261122T020000Z-inc-c4e190f2": origin.snapshots[-1].name,
            "/mnt/received": str(new_disk / "received"),
            "/srv/data": str(new_disk / "data"),
        },
    )
    done = shell(text)
    assert done.returncode == 0, done.stderr
    assert all(backup_id in done.stdout for backup_id in ids)
    assert restored_by(origin, new_disk) == []


def test_format_page(origin: Origin, new_disk: Path, shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """docs/format.md, with nothing else at hand."""
    text = swapped(
        block("docs/format.md", "## Restore without b2s"),
        {
            "s3://my-backups P=hosts/web1/data": f"s3://b2s-restore P={origin.uploader.prefix}/data",
            "00000040 00000042": "00000001 00000002 00000003",
            "/mnt/received": str(new_disk / "received"),
        },
    )
    then = swapped(
        "btrfs subvolume snapshot /mnt/received/<snapshot.name> /srv/data",
        {
            "/mnt/received/<snapshot.name>": str(new_disk / "received" / origin.snapshots[-1].name),
            "/srv/data": str(new_disk / "data"),
        },
    )
    assert "btrfs subvolume snapshot /mnt/received/<snapshot.name> /srv/data" in (ROOT / "docs/format.md").read_text()
    done = shell(f"{text}\n{then}")
    assert done.returncode == 0, done.stderr
    assert restored_by(origin, new_disk) == []


def test_restore_page(origin: Origin, new_disk: Path, shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """docs/restore.md: the loop for one member, for each member of the chain."""
    loop = swapped(
        block("docs/restore.md", "## Without b2s"),
        {
            "s3://my-backups/hosts/web1": f"s3://b2s-restore/{origin.uploader.prefix}",
            "/mnt/new": str(new_disk),
            "00000042": "$number",
        },
    )
    snapshot = f"btrfs subvolume snapshot {new_disk}/received/{origin.snapshots[-1].name} {new_disk}/data"
    done = shell(f"for number in 00000001 00000002 00000003; do {loop}\ndone\n{snapshot}")
    assert done.returncode == 0, done.stderr
    assert restored_by(origin, new_disk) == []


@pytest.mark.parametrize("page", ["README.md", "docs/format.md"])
def test_missing_chunk_is_not_overlooked(
    origin: Origin, new_disk: Path, shell: Callable[[str], subprocess.CompletedProcess[str]], page: str
) -> None:
    """Where the last chunk of the full cannot be had, the loop of the page stops there and nothing looks whole."""
    uploader = origin.uploader
    lost = uploader.layout.absolute(uploader.stored[0].manifest.chunks[-1].key)
    uploader.client.delete_object(Bucket=uploader.bucket, Key=lost)
    readme = page == "README.md"
    ids = " ".join(stored.manifest.backup_id for stored in uploader.stored)
    text = block(page, "### Without b2s" if readme else "## Restore without b2s")
    exchange = {"/mnt/received": str(new_disk / "received")}
    if readme:
        exchange |= {"s3://my-backups/hosts/web1": f"s3://b2s-restore/{uploader.prefix}", "| less ": "| cat "}
        exchange["20261108T020000Z-full-1f0c2a9b 20261115T020000Z-inc-77aa0d31 20261122T020000Z-inc-c4e190f2"] = ids
    else:
        exchange["s3://my-backups P=hosts/web1/data"] = f"s3://b2s-restore P={uploader.prefix}/data"
        exchange["00000040 00000042"] = "00000001 00000002 00000003"
    shell(swapped(text, exchange))
    found = sorted(path.name for path in (new_disk / "received").iterdir())
    assert found in ([], [origin.snapshots[0].name])
    for name in found:
        path = new_disk / "received" / name
        shown = subprocess.run(["btrfs", "subvolume", "show", path], capture_output=True, text=True, check=True).stdout
        assert "Received UUID: \t\t-" in shown
