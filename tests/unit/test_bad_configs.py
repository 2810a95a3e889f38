"""X01: every kind of bad config file ends in exit 2, tells each problem with file, line and key, and makes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from b2s.adapters import config_file
from b2s.core.limits import CONFIG_BYTES_MAX
from b2s.errors import ConfigError

BASE = """\
sources:
  - name: data
    path: /srv/b2s-test/data
snapshots:
  base_dir: /srv/b2s-test/snapshots
s3:
  bucket: my-backups
"""
SOURCE = "sources:\n  - name: data\n    path: /srv/b2s-test/data\n"


def s3(lines: str) -> str:
    """Return the good config with more lines in its last section, s3; they begin at line 8."""
    return BASE + "".join(f"  {line}\n" for line in lines.splitlines())


def named(name: str) -> str:
    """Return the good config with another source name."""
    return BASE.replace("name: data", f"name: {name}")


# name -> (text, "line: key: " that must be told, and a word of it)
BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", (":1: is empty",)),
    "only comments": ("# nothing\n", (":1: is empty",)),
    "broken syntax": ("sources: [\n", ("is not YAML",)),
    "tab": ("log:\n\tlevel: info\n", (":2: is not YAML",)),
    "two documents": (BASE + "---\na: 1\n", ("more than one document",)),
    "not a mapping": ("- a\n", (":1: is not a mapping",)),
    "deeply nested": ("a: " + "[" * 5000 + "]" * 5000, ("nested too deep",)),
    "endless list": ("a: [" + "1," * 21_000 + "]", ("holds too much",)),
    "unknown key": (s3("bukket: x"), (":8: s3.bukket: unknown key; did you mean bucket?",)),
    "misplaced key": (BASE + "bucket: x\n", (":8: bucket: unknown key; did you mean s3.bucket?",)),
    "duplicate key": (s3("bucket: other"), (":8: s3.bucket: is there twice, first in line 7",)),
    "duplicate section": (BASE + "s3:\n  bucket: other\n", (":8: s3: is there twice, first in line 6",)),
    "key that is a list": (BASE + "? [a]\n: 1\n", ("has a key that is not a word",)),
    "text for a bool": (BASE + 'spool:\n  enabled: "false"\n', (':9: spool.enabled: found "false"; allowed: true',)),
    "yes for a bool": (BASE + "restore:\n  wait: yes\n", (':9: restore.wait: found "yes"; allowed: true or false',)),
    "bool for a number": (s3("concurrency: true"), (":8: s3.concurrency: found true",)),
    "float for a number": (s3("concurrency: 4.0"), (":8: s3.concurrency: found 4.0",)),
    "nan for a number": (s3("concurrency: .nan"), (":8: s3.concurrency: found NaN",)),
    "number for a text": (s3("region: 3"), (":8: s3.region: found 3",)),
    "text for a section": (BASE + "spool: big\n", (':8: spool: found "big"; allowed: a mapping',)),
    "null for a section": (BASE + "spool:\n", (":8: spool: found null; allowed: a mapping",)),
    "list for a section": (BASE + "spool: [1]\n", (":8: spool: found a list",)),
    "python object": (
        BASE + "log: !!python/object/apply:os.system ['touch /tmp/b2s-x01']\n",
        (":8: log: has a tag (tag:yaml.org,2002:python/object/apply:os.system)",),
    ),
    "alias": (BASE + "log: &a {level: info}\nspool: *a\n", (":9: spool: has an alias",)),
    "secret in the file": (
        s3("aws_secret_access_key: wJalrXUtnFEMI/CANARY"),
        (":8: s3.aws_secret_access_key: secrets are not accepted",),
    ),
    "access key as a value": (s3("profile: AKIAIOSFODNN7EXAMPLE"), (":8: s3.profile: secrets are not accepted",)),
    "no sources": ("s3:\n  bucket: my-backups\n", (":1: sources: missing",)),
    "empty sources": ("sources: []\ns3:\n  bucket: my-backups\n", (":1: sources: found an empty list",)),
    "sources as a mapping": ("sources: {a: b}\ns3: {bucket: bbb}\n", (":1: sources: found a mapping",)),
    "source as a word": ("sources: [data]\ns3: {bucket: bbb}\n", (':1: sources[0]: found "data"',)),
    "no bucket": (SOURCE + "s3: {}\n", (":4: s3.bucket: missing",)),
    "no s3": (SOURCE, (":1: s3: missing",)),
    "no path": ("sources:\n  - name: a\ns3: {bucket: bbb}\n", (":2: sources[0].path: missing",)),
    "names twice": (
        SOURCE + "  - name: data\n    path: /srv/b2s-test/other\ns3: {bucket: bbb}\n",
        (":4: sources[1].name: found data; allowed: another name than that of sources[0]",),
    ),
    "name with a slash": (named("a/b"), (":2: sources[0].name:",)),
    "name ..": (named('".."'), (":2: sources[0].name:",)),
    "name with newline": (named(r'"a\nb"'), (":2: sources[0].name:",)),
    "name with NUL": (named(r'"a\0b"'), (":2: sources[0].name:",)),
    "name with dash first": (named("-rf"), (":2: sources[0].name:",)),
    "long name": (named("n" * 300), (":2: sources[0].name:", "(300 characters)")),
    "empty name": (named('""'), (":2: sources[0].name:",)),
    "relative path": (BASE.replace("/srv/b2s-test/data", "srv/data"), (":3: sources[0].path:", "absolute")),
    "path with ..": (BASE.replace("/b2s-test/data", "/../data"), (":3: sources[0].path:",)),
    "path twice": (
        SOURCE + "  - name: b\n    path: /srv//b2s-test/data/\ns3: {bucket: bbb}\n",
        (":5: sources[1].path:", "each path once"),
    ),
    "nested paths": (
        SOURCE + "  - name: b\n    path: /srv/b2s-test/data/inner\ns3: {bucket: bbb}\n",
        (":5: sources[1].path:", "do not lie inside each other"),
    ),
    "snapshots in the source": (
        BASE.replace("base_dir: /srv/b2s-test/snapshots", "base_dir: /srv/b2s-test/data/.snapshots"),
        (":5: snapshots.base_dir:", "which is part of /srv/b2s-test/data"),
    ),
    "snapshots at the source": (
        BASE.replace("base_dir: /srv/b2s-test/snapshots", "base_dir: /srv/b2s-test/data"),
        (":5: snapshots.base_dir:",),
    ),
    "bucket URL": (BASE.replace("my-backups", "s3://my-backups"), (':7: s3.bucket: found "s3://my-backups"',)),
    "bucket with capitals and space": (BASE.replace("my-backups", "My Backups"), (":7: s3.bucket:",)),
    "prefix /": (s3("prefix: /"), (":8: s3.prefix:",)),
    "prefix a//b": (s3("prefix: a//b"), (":8: s3.prefix:",)),
    "prefix ../x": (s3("prefix: ../x"), (":8: s3.prefix:",)),
    "prefix too long": (s3(f"prefix: {'p' * 1100}"), (":8: s3.prefix:",)),
    "endpoint without scheme": (s3("endpoint_url: localhost:9000"), (":8: s3.endpoint_url:",)),
    "endpoint with credentials": (
        s3("endpoint_url: https://user:CANARY@host"),
        (':8: s3.endpoint_url: found "https://***@host"',),
    ),
    "endpoint with a wild port": (s3("endpoint_url: http://host:99999"), (":8: s3.endpoint_url:",)),
    "segment size 0": (s3("segment_size: 0"), (":8: s3.segment_size: found 0; allowed: a size from 5MiB to 5GiB",)),
    "segment size -1": (s3("segment_size: -1"), (":8: s3.segment_size: found -1",)),
    "segment size 10XB": (s3("segment_size: 10XB"), (':8: s3.segment_size: found "10XB"',)),
    "chunk size 6TiB": (s3("chunk_size: 6TiB"), (":8: s3.chunk_size:",)),
    "chunk no multiple": (s3("chunk_size: 48MiB"), (":8: s3.chunk_size:", "a multiple of segment_size (32MiB)")),
    "10,001 segments": (
        s3("segment_size: 5MiB\nchunk_size: 50005MiB"),
        (":9: s3.chunk_size:", "10,001 segments of 5MiB"),
    ),
    "default chunk size too big": (
        s3("segment_size: 5MiB"),
        ("s3.chunk_size: found 200GiB, which is 40,960 segments",),
    ),
    "spool below a segment": (
        BASE + "spool:\n  enabled: true\n  size: 31MiB\n",
        (":10: spool.size: found 31MiB; allowed: at least one segment (32MiB)",),
    ),
    "concurrency 0": (s3("concurrency: 0"), (":8: s3.concurrency: found 0; allowed: a whole number from 1 to 256",)),
    "concurrency 10^6": (s3("concurrency: 1000000"), (":8: s3.concurrency: found 1000000",)),
    "unknown class": (s3("storage_class: {chunks: COLD}"), (':8: s3.storage_class.chunks: found "COLD"',)),
    "archived manifests": (s3("storage_class: {manifests: DEEP_ARCHIVE}"), (":8: s3.storage_class.manifests:",)),
    "unknown tier": (BASE + "restore: {tier: Fast}\n", (':8: restore.tier: found "Fast"; allowed: Standard, Bulk',)),
    "unknown sse": (s3("sse: AES"), (':8: s3.sse: found "AES"',)),
    "key without kms": (s3("kms_key_id: alias/x"), (":8: s3.kms_key_id:", 'unless sse is "aws:kms"')),
    "compressed data on protocol 1": (BASE + "send: {compressed_data: true}\n", (":8: send.compressed_data:",)),
    "protocol 3": (BASE + "send: {protocol: 3}\n", (":8: send.protocol: found 3; allowed: 1 or 2",)),
    "interval 0": (
        BASE + "schedule:\n  incremental_every: 0d\n  full_every: 0s\n",
        (":9: schedule.incremental_every:", ":10: schedule.full_every:"),
    ),
    "interval without unit": (BASE + "schedule: {full_every: 7}\n", (":8: schedule.full_every: found 7",)),
    "run_at 25:00": (BASE + "schedule: {run_at: 25:00}\n", (':8: schedule.run_at: found "25:00"',)),
    "unknown zone": (BASE + "schedule: {timezone: Mars/Olympus}\n", (":8: schedule.timezone:",)),
    "zone with ..": (BASE + "schedule: {timezone: ../../etc/passwd}\n", (":8: schedule.timezone:",)),
    "zone directory": (BASE + "schedule: {timezone: Europe}\n", (":8: schedule.timezone:",)),
    "one file for two": (BASE + "lock_path: /var/lib/b2s/state.db\n", (":8: lock_path:",)),
    "file that is a directory": (BASE + "lock_path: /run/\n", (":8: lock_path:",)),
    "retain 0": (BASE.replace("s3:", "  retain: 0\ns3:"), (":6: snapshots.retain: found 0",)),
    "nice 20": (BASE + "process: {nice: 20}\n", (":8: process.nice:",)),
}


def problems_of(path: Path) -> list[str]:
    """Return the lines of the error that loading a file raises."""
    with pytest.raises(ConfigError) as raised:
        config_file.load(path)
    assert raised.value.exit_code == 2
    return str(raised.value).splitlines()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to open a socket fail."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a bad config must not reach the network")

    monkeypatch.setattr(socket, "socket", refuse)


def test_the_base_is_good(tmp_path: Path) -> None:
    """What the bad configs differ from is accepted."""
    path = tmp_path / "config.yaml"
    path.write_text(BASE)
    assert config_file.load(path).sources[0].name == "data"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", BAD)
def test_bad_config_is_told_with_line_and_key(name: str, tmp_path: Path) -> None:
    """Each problem names file, line and key; secrets and control characters are not shown; nothing is made."""
    text, wanted = BAD[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    lines = problems_of(path)
    for words in wanted:
        assert any(words in line for line in lines), lines
    assert all(line.startswith(f"{path}:") and line.isprintable() and len(line) < 1000 for line in lines)
    assert not any("CANARY" in line for line in lines)
    assert os.listdir(tmp_path) == ["config.yaml"]
    assert not os.path.exists("/tmp/b2s-x01")
    assert not os.path.exists("/srv/b2s-test")


@pytest.mark.parametrize("name", [name for name, (_, wanted) in BAD.items() if len(wanted) == 1])
def test_one_mistake_is_one_problem(name: str, tmp_path: Path) -> None:
    """A mistake is not told twice, and brings no other complaint with it."""
    path = tmp_path / "config.yaml"
    path.write_text(BAD[name][0])
    assert len(problems_of(path)) == 1


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Syntax of values, unknown keys and contradictions are told together, in the order of the lines."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "sources:\n  - {name: a, path: /a}\n  - {name: a, path: b}\n  - {path: /a/c}\n"
        "s3:\n  bucket: s3://x\n  segment_size: 7MiB\n  regoin: x\nspool: {size: 1MiB}\nlog: {level: loud}\n"
    )
    lines = [line.removeprefix(f"{path}:") for line in problems_of(path)]
    starts = [
        "3: sources[1].name:",
        "3: sources[1].path:",
        "4: sources[2].name:",
        "4: sources[2].path:",
        "5: s3.chunk_size:",
        "6: s3.bucket:",
        "8: s3.regoin:",
        "9: spool.size:",
        "10: log.level:",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "big", "binary", "device", "nul", "broken link"])
def test_what_is_no_config_file_is_refused(kind: str, tmp_path: Path) -> None:
    """Nothing hangs and nothing is read that is not a small regular text file."""
    path = tmp_path / "config.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "big":
        path.write_bytes(b"a" * (5 * CONFIG_BYTES_MAX))
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00" * 100)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "nul":
        path = Path("/tmp/a\0b")
    elif kind == "broken link":
        path.symlink_to("/nonexistent/x")
    (line,) = problems_of(path)
    assert ":1: " in line


@pytest.mark.parametrize(
    ("command", "kind"),
    [("backup", "bad"), ("plan", "bad"), ("config", "bad"), ("config", "fifo"), ("config", "missing")],
)
def test_every_command_exits_2(command: str, kind: str, tmp_path: Path) -> None:
    """The program ends at once with exit 2, one JSON line that lists the problems, and no trace."""
    path = tmp_path / "config.yaml"
    if kind == "bad":
        path.write_text(s3("segment_size: 10XB\nbukket: x"))
    elif kind == "fifo":
        os.mkfifo(path)
    arguments = [*([command] if command != "config" else ["config", "check"]), "--config", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "b2s", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    if kind == "bad":
        assert ":8: s3.segment_size:" in done.stderr
        assert ":9: s3.bukket:" in done.stderr
    assert set(os.listdir(tmp_path)) <= {"config.yaml"}
