"""Keys: built in one way, parsed only if built that way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from b2s.core.layout import (
    PREFIX_BYTES_MAX,
    Layout,
    check_prefix,
    check_source_name,
    new_backup_id,
    parse_backup_id,
    parse_chunk_relative,
    source_of_manifest_key,
    sources_prefix,
)
from b2s.core.limits import KEY_BYTES_MAX
from b2s.core.model import Kind
from b2s.errors import ManifestDamaged, UsageError

ID = "20261122T010203Z-full-00c0ffee"


def test_keys_are_the_documented_ones() -> None:
    """The keys are those of the format, with a prefix and without."""
    layout = Layout("hosts/web1", "data")
    assert layout.manifest_key(42) == "hosts/web1/data/manifests/00000042.json"
    assert layout.chunk_key(ID, 7) == f"hosts/web1/data/chunks/{ID}/000007"
    assert layout.absolute(layout.chunk_relative(ID, 7)) == layout.chunk_key(ID, 7)
    assert Layout("", "data").manifest_key(1) == "data/manifests/00000001.json"


def test_backup_id() -> None:
    """An id carries the moment in UTC, the kind and the random part, and gives them back."""
    moment = datetime(2026, 11, 22, 3, 2, 3, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert new_backup_id(moment, Kind.FULL, "00c0ffee") == ID
    parsed = parse_backup_id(ID)
    assert parsed is not None
    assert (parsed.created_at, parsed.kind) == (datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC), Kind.FULL)
    assert parse_backup_id(ID.replace("full", "inc")) is not None


@pytest.mark.parametrize("random_hex", ["", "00C0FFEE", "00c0ffe", "00c0ffeee", "../../x."])
def test_bad_random_part(random_hex: str) -> None:
    """A random part of another form is a bug and is not built into a key."""
    with pytest.raises(ValueError, match="not a backup id"):
        new_backup_id(datetime(2026, 1, 1, tzinfo=UTC), Kind.FULL, random_hex)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ID + "\n",
        " " + ID,
        ID[:-1],
        ID + "0",
        ID.upper(),
        ID.replace("1122", "1322"),
        ID.replace("T01", "T24"),
        ID.replace("full", "incremental"),
        ID.replace("2026", "\u0662\u0660\u0662\u0666"),
        ID.replace("2026", "0000"),
    ],
)
def test_no_backup_id(text: str) -> None:
    """Anything but the exact form is no backup id, also where Python's `int` or a calendar would shrug."""
    assert parse_backup_id(text) is None


@pytest.mark.parametrize("name", ["a", "_", "0", "data", "a.b-c_D9", "x" * 64])
def test_good_source_names(name: str) -> None:
    """Names of the allowed characters are allowed up to 64 of them."""
    assert check_source_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "\n", "a\0", "x" * 65, "x" * 300, "\u00e4", "a\\b", "%2e"]
)
def test_bad_source_names(name: str) -> None:
    """Names that could be a path, an option or unprintable are refused in one printable line."""
    with pytest.raises(UsageError) as caught:
        check_source_name(name)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("prefix", ["", "a", "hosts/web1", "a b/c", "\u00fc", "...", "x" * PREFIX_BYTES_MAX])
def test_good_prefixes(prefix: str) -> None:
    """Any printable path without empty or dot components is a prefix."""
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize(
    "prefix",
    [
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../x",
        "a/./b",
        "a/..",
        "a\nb",
        "a\0",
        "\ud800",
        "x" * (PREFIX_BYTES_MAX + 1),
        "\u00fc" * PREFIX_BYTES_MAX,
    ],
)
def test_bad_prefixes(prefix: str) -> None:
    """Prefixes that would make other or unprintable keys are refused in one printable line."""
    with pytest.raises(UsageError) as caught:
        Layout(prefix, "data")
    assert caught.value.message.isprintable()


def test_longest_key_fits() -> None:
    """The longest prefix and source name give keys that S3 still takes."""
    layout = Layout("x" * PREFIX_BYTES_MAX, "y" * 64)
    assert len(layout.chunk_key(ID, 99_999)) == KEY_BYTES_MAX
    assert len(layout.manifest_key(99_999_999)) <= KEY_BYTES_MAX


@pytest.mark.parametrize("sequence", [0, -1, 100_000_000])
def test_sequences_out_of_range(sequence: int) -> None:
    """A sequence that does not fit 8 digits has no key."""
    with pytest.raises(ValueError, match="sequence"):
        Layout("", "data").manifest_key(sequence)


@pytest.mark.parametrize(
    "key",
    [
        "p/data/manifests/00000000.json",
        "p/data/manifests/1.json",
        "p/data/manifests/000000001.json",
        "p/data/manifests/00000001.json.tmp",
        "p/data/manifests/00000001.json\n",
        "p/data/manifests/+0000001.json",
        "p/data/manifests/x/00000001.json",
        "p/data/00000001.json",
        "p/data2/manifests/00000001.json",
        "data/manifests/00000001.json",
        "p/data/manifests/\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661.json",
    ],
)
def test_foreign_manifest_keys(key: str) -> None:
    """A key that is not exactly a manifest key of this source is none."""
    assert Layout("p", "data").parse_manifest_key(key) is None


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "chunks",
        f"chunks/{ID}",
        f"chunks/{ID}/0",
        f"chunks/{ID}/0000000",
        f"chunks/{ID}/00000a",
        f"chunks//{ID}/000000",
        f"/chunks/{ID}/000000",
        f"../chunks/{ID}/000000",
        f"chunks/{ID}/../000000",
        f"chunks/{ID}/000000/",
        "chunks/x/000000",
        f"chunks%2f{ID}/000000",
        f"chunks/{ID}/000000\0",
        f"Chunks/{ID}/000000",
    ],
)
def test_foreign_chunk_keys(relative: str) -> None:
    """Nothing but the exact relative key of a chunk becomes an absolute one."""
    assert parse_chunk_relative(relative) is None
    assert Layout("p", "data").parse_chunk_key(f"p/data/{relative}") is None
    with pytest.raises(ManifestDamaged):
        Layout("p", "data").absolute(relative)


def test_sources_under_a_prefix() -> None:
    """Only manifests directly under the prefix name a source, whatever its neighbours are called."""
    found = {
        key: source_of_manifest_key("hosts", key)
        for key in (
            "hosts/web1/manifests/00000001.json",
            "hosts/web1/data/manifests/00000001.json",  # prefix hosts/web1
            f"hosts/web1/chunks/{ID}/000000",
            "hosts/manifests/manifests/00000001.json",
            "hosts/chunks/manifests/00000001.json",
            "hosts2/web1/manifests/00000001.json",
            "hosts/-x/manifests/00000001.json",
            "hosts",
        )
    }
    assert [source for source in found.values() if source] == ["web1", "manifests", "chunks"]
    assert (sources_prefix("hosts"), sources_prefix("")) == ("hosts/", "")
    assert source_of_manifest_key("", "web1/manifests/00000001.json") == "web1"
