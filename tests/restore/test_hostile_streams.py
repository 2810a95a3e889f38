"""H01: streams made by hand that want out of the directory they are received into, under perfect manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from b2s.adapters.btrfs import subvolume_facts
from b2s.core.limits import MANIFEST_BYTES_MAX
from b2s.errors import ChunkDamaged, ManifestDamaged, ReceiveFailed, StreamRefused
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import SeaweedServer
from tests.restore import send_stream
from tests.restore.conftest import Origin
from tests.restore.test_restore_command import where
from tests.system.commands import Caller

MakeOrigin = Callable[..., Origin]
Filesystems = Callable[..., LoopFilesystem]


@pytest.fixture
def outside() -> Iterator[Path]:
    """A file name outside of everything, which must never come to be."""
    path = Path("/tmp/b2s-escaped")
    assert not path.exists()
    yield path
    assert not path.exists()


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(lambda out: (b"s", send_stream.make_file(b"../../../../../../" + out, b"x")), id="dotdot-file"),
        pytest.param(lambda out: (b"s", send_stream.make_file(b"../sibling", b"x")), id="sibling"),
        pytest.param(
            lambda out: (
                b"s",
                send_stream.symlink(b"link", b"/tmp") + send_stream.make_file(b"link/" + out.rpartition(b"/")[2], b"x"),
            ),
            id="symlink-write",
        ),
        pytest.param(lambda out: (b"../../../../../../" + out, b""), id="dotdot-name"),
        pytest.param(lambda out: (b"/" + out, b""), id="absolute-name"),
    ],
)
def test_stream_cannot_write_outside(
    make_origin: MakeOrigin,
    seaweed: SeaweedServer,
    loopfs: Filesystems,
    outside: Path,
    attack: Callable[[bytes], tuple[bytes, bytes]],
) -> None:
    """Whatever the stream does, nothing appears beside the private directory, and what is in there is deleted."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    facts = subvolume_facts(str(origin.snapshots[0]))
    name, commands = attack(str(outside).encode())
    uploader = replace(origin.uploader, source="evil", stored=[])
    uploader.stream(send_stream.stream(name, facts.uuid, facts.ctransid, commands), origin.snapshots[0])
    elsewhere = loopfs()
    (elsewhere.path / "sibling").write_text("mine")
    with pytest.raises((StreamRefused, ChunkDamaged)) as caught:
        origin.restorer()(elsewhere.path / "restored", source="evil")
    assert caught.value.exit_code == 4
    assert caught.value.message.isprintable()
    assert [path.name for path in elsewhere.path.iterdir()] == ["sibling"]
    assert (elsewhere.path / "sibling").read_text() == "mine"


def test_stream_of_two_subvolumes_is_refused(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """A stream that is followed by a second whole one leaves nothing."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    facts = subvolume_facts(str(origin.snapshots[0]))
    two = b"".join(send_stream.stream(name, facts.uuid, facts.ctransid) for name in (b"one", b"two"))
    uploader = replace(origin.uploader, source="evil", stored=[])
    uploader.stream(two, origin.snapshots[0])
    elsewhere = loopfs()
    with pytest.raises(StreamRefused, match="2 entries") as caught:
        origin.restorer()(elsewhere.path / "restored", source="evil")
    assert caught.value.exit_code == 4
    assert list(elsewhere.path.iterdir()) == []


@pytest.mark.parametrize("what", ["cut", "short", "crc", "end-in-the-middle", "garbage-after", "nameless"])
def test_stream_that_is_none_is_not_to_be_trusted(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, what: str
) -> None:
    """Bytes that hash right but that `btrfs receive` cannot make sense of are exit 4, with what it said."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    facts = subvolume_facts(str(origin.snapshots[0]))
    big = b"".join(send_stream.make_file(b"f%d" % number, b"content" * 1000) for number in range(30))
    whole = send_stream.stream(b"s", facts.uuid, facts.ctransid, big)
    content = {
        "cut": whole[:-10],
        "short": whole[:5000],
        "nameless": send_stream.stream(b"s", facts.uuid, facts.ctransid, send_stream.command(send_stream.WRITE)),
        "crc": whole.replace(b"content", b"CONTENT", 1),
        "end-in-the-middle": send_stream.stream(b"s", facts.uuid, facts.ctransid) + b"x" * (40 << 20),
        "garbage-after": whole + b"garbage" * 1000,
    }[what]
    uploader = replace(origin.uploader, source="evil", stored=[])
    uploader.stream(content, origin.snapshots[0])
    elsewhere = loopfs()
    with pytest.raises(StreamRefused) as caught:
        origin.restorer()(elsewhere.path / "restored", source="evil")
    assert caught.value.exit_code == 4
    assert "choose another point" in (caught.value.hint or "")
    assert list(elsewhere.path.iterdir()) == []


def test_stream_of_a_newer_protocol(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """What this host's `btrfs` is too old for is no damage: exit 1, and what to install."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    facts = subvolume_facts(str(origin.snapshots[0]))
    stream = send_stream.stream(b"s", facts.uuid, facts.ctransid)
    uploader = replace(origin.uploader, source="new", stored=[])
    uploader.stream(stream[:13] + b"\x09" + stream[14:], origin.snapshots[0])
    elsewhere = loopfs()
    with pytest.raises(ReceiveFailed, match="version 9 not supported") as caught:
        origin.restorer()(elsewhere.path / "restored", source="new")
    assert caught.value.exit_code == 1
    assert "newer btrfs-progs" in (caught.value.hint or "")
    assert list(elsewhere.path.iterdir()) == []


def test_names_in_a_stream_cannot_break_the_log(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path
) -> None:
    """H04: newlines and escape sequences in a name that receive complains about stay inside one line, in any format."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    facts = subvolume_facts(str(origin.snapshots[0]))
    uploader = replace(origin.uploader, source="evil", stored=[])
    made = send_stream.make_file(b"a\nINJECTED\x1b[31m\x1b]0;title\x07/nowhere/x", b"x")
    uploader.stream(send_stream.stream(b"s", facts.uuid, facts.ctransid, made), origin.snapshots[0])
    caller, target = Caller(tmp_path, seaweed), loopfs().path / "restored"
    restore = ["restore", *where(origin), "--source", "evil", "--target", str(target)]
    done = caller.call(*restore)
    assert done.exit_code == done.last["exit_code"] == 4  # `events` takes nothing but JSON lines
    assert "INJECTED" in done.event("receive_failed")["stderr"]
    people = caller.call(*restore, "--log-format", "console")
    assert "\\nINJECTED" in people.stderr
    assert "\nINJECTED" not in people.stderr
    assert "\x1b" not in people.stderr
    checked = caller.succeed("verify", *where(origin), "--source", "evil", "--data")
    assert "INJECTED" not in checked.stdout + checked.stderr  # `--dump` only reads, and b2s does not print it


def test_swapped_segments_are_refused(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """H03: an object with two of its segments in each other's place never reaches `btrfs receive`."""
    origin = make_origin(seaweed, size_bytes=30 << 20)
    uploader = origin.uploader
    key, size = uploader.chunk_keys()[0], uploader.segment_bytes
    body = uploader.client.get_object(Bucket=uploader.bucket, Key=key)["Body"].read()
    uploader.client.put_object(Bucket=uploader.bucket, Key=key, Body=body[size : 2 * size] + body[:size])
    elsewhere, restore = loopfs(), origin.restorer()
    with pytest.raises(ChunkDamaged):
        restore(elsewhere.path / "restored")
    assert list(elsewhere.path.iterdir()) == []


def test_stream_of_another_snapshot_is_refused_before_receive(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """H03: chunks of another backup under a manifest of this one are noticed in their first segment."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    newer = origin.change_and_back_up()
    facts = subvolume_facts(str(newer))
    uploader = replace(origin.uploader, source="evil", stored=[])
    uploader.stream(send_stream.stream(b"s", facts.uuid, facts.ctransid), origin.snapshots[0])
    elsewhere = loopfs()
    with pytest.raises(ChunkDamaged, match="manifest says"):
        origin.restorer()(elsewhere.path / "restored", source="evil")
    assert list(elsewhere.path.iterdir()) == []


def test_bytes_that_are_no_stream_are_refused(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """What does not begin like a stream never reaches `btrfs receive`."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    for source, content in (("noise", b"noise" * 1000), ("cut", b"btrfs-stream\0\1\0\0\0"), ("one", b"b")):
        uploader = replace(origin.uploader, source=source, stored=[])
        uploader.stream(content, origin.snapshots[0])
        elsewhere = loopfs()
        with pytest.raises(ChunkDamaged, match="not the beginning"):
            origin.restorer()(elsewhere.path / "restored", source=source)
        assert list(elsewhere.path.iterdir()) == []


def test_manifest_of_another_source_is_refused(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """H03: a manifest copied under another source's key is not believed."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    uploader = origin.uploader
    other = replace(uploader, source="other", stored=[])
    uploader.client.copy_object(
        Bucket=uploader.bucket,
        Key=other.layout.manifest_key(1),
        CopySource={"Bucket": uploader.bucket, "Key": uploader.layout.manifest_key(1)},
    )
    elsewhere = loopfs()
    with pytest.raises(ManifestDamaged):
        origin.restorer()(elsewhere.path / "restored", source="other")
    assert list(elsewhere.path.iterdir()) == []


def test_huge_manifest_is_refused_unread(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """H02: a manifest over the bound is damaged by definition; nobody reads it into memory."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    uploader = origin.uploader
    body = b" " * (MANIFEST_BYTES_MAX + 1)
    uploader.client.put_object(Bucket=uploader.bucket, Key=uploader.layout.manifest_key(2), Body=body)
    elsewhere = loopfs()
    with pytest.raises(ManifestDamaged, match="at most"):
        origin.restorer()(elsewhere.path / "restored")
    assert list(elsewhere.path.iterdir()) == []
