"""The tools that are compared, and how each is told to take a stream or to give one back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts.bench.fixture import Fixture, Sendable
from scripts.bench.measured import Pipeline, run
from scripts.bench.servers import REPOSITORY, Target

HERE = Path(__file__).resolve().parent
PEERS_DIRECTORY = HERE / ".peers" / "bin"
WAN_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Case:
    """What one tool has to do once."""

    fixture: Fixture
    sendable: Sendable
    sink: Target
    work: Path  # an empty directory for this tool and this case
    in_flight: int  # how many parts or ranges at once, for tools that are tuned


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        prepare: Called before every run, not measured.
        needs_store: It reads back what it wrote, so the sink must keep it.
    """

    name: str
    backup: Callable[[Case], Pipeline]
    program: str
    prepare: Callable[[Case], None] = field(default=lambda case: case.fixture.renew(case.sendable))
    needs_store: bool = False

    @property
    def available(self) -> bool:
        """Tell whether its program is there."""
        return find(self.program) is not None


def find(program: str) -> str | None:
    """Return the path of a program: one that `peers` installed, or from PATH."""
    return shutil.which(program, path=os.pathsep.join([str(PEERS_DIRECTORY), os.environ.get("PATH", os.defpath)]))


def _piped(case: Case, argv: list[str], environment: dict[str, str]) -> Pipeline:
    program = find(argv[0])
    assert program is not None
    return Pipeline(
        stages=[list(case.sendable.argv), [program, *argv[1:]]],
        tool=1,
        environment={**case.sink.environment, "TMPDIR": str(case.work), **environment},
    )


# --- peers ------------------------------------------------------------------------------------------------


def _aws(case: Case, config: str) -> Pipeline:
    (case.work / "aws-config").write_text(config)
    argv = ["aws", "s3", "cp", "-", f"s3://{case.sink.bucket}/aws/stream", "--endpoint-url", case.sink.endpoint_url]
    argv += ["--expected-size", str(case.sendable.bytes)]
    return _piped(case, argv, {"AWS_CONFIG_FILE": str(case.work / "aws-config")})


def aws_default(case: Case) -> Pipeline:
    """Return `aws s3 cp -` as it comes."""
    return _aws(case, "[default]\n")


def aws_tuned(case: Case) -> Pipeline:
    """Return `aws s3 cp -` with large parts and without a CRC of its own."""
    return _aws(
        case,
        "[default]\nrequest_checksum_calculation = when_required\ns3 =\n"
        f"  max_concurrent_requests = {case.in_flight}\n  multipart_chunksize = 64MB\n",
    )


def rclone_environment(sink: Target, in_flight: int) -> dict[str, str]:
    """Return what tells rclone where the sink is."""
    return {
        **sink.environment,
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_ENDPOINT": sink.endpoint_url,
        "RCLONE_S3_REGION": "us-east-1",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
        "RCLONE_S3_CHUNK_SIZE": "64M",
        "RCLONE_S3_UPLOAD_CONCURRENCY": str(in_flight),
        **({"RCLONE_CA_CERT": str(sink.certificate.ca)} if sink.profile.https else {}),
    }


def rclone(case: Case) -> Pipeline:
    """Return `rclone rcat` with large parts."""
    argv = ["rclone", "rcat", f":s3:{case.sink.bucket}/rclone/stream"]
    return _piped(case, argv, rclone_environment(case.sink, case.in_flight))


def s5cmd(case: Case) -> Pipeline:
    """Return `s5cmd pipe` with large parts."""
    argv = ["s5cmd", "--endpoint-url", case.sink.endpoint_url, "pipe", "--concurrency", str(case.in_flight)]
    return _piped(case, [*argv, "--part-size", "64", f"s3://{case.sink.bucket}/s5cmd/stream"], {})


def restic_environment(case: Case) -> dict[str, str]:
    """Return what tells restic where its repository is."""
    return {
        **case.sink.environment,
        "RESTIC_REPOSITORY": f"s3:{case.sink.endpoint_url}/{case.sink.bucket}/restic",
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": str(case.work / "cache"),
        **({"RESTIC_CACERT": str(case.sink.certificate.ca)} if case.sink.profile.https else {}),
    }


def restic(case: Case) -> Pipeline:
    """Return `restic backup --stdin`."""
    return _piped(case, ["restic", "-q", "backup", "--stdin"], restic_environment(case))


def restic_init(case: Case) -> None:
    """Make a new, empty repository."""
    import subprocess

    case.fixture.renew(case.sendable)
    case.sink.forget("restic/")
    program = find("restic")
    assert program is not None
    environment = {**os.environ, **restic_environment(case)}
    subprocess.run([program, "-q", "init"], env=environment, check=True, capture_output=True)


def btrfs2s3(case: Case) -> Pipeline:
    """Return `btrfs2s3 update` of the same content; it makes its own snapshot and runs `btrfs send` itself."""
    snapshots = case.fixture.path / "btrfs2s3-snapshots"
    endpoint: dict[str, object] = {"endpoint_url": case.sink.endpoint_url}
    if case.sink.profile.https:
        endpoint["verify"] = str(case.sink.certificate.ca)
    config = {
        "timezone": "UTC",
        "sources": [
            {
                "path": str(case.fixture.source),
                "snapshots": str(snapshots),
                "upload_to_remotes": [{"id": "sink", "preserve": "1y"}],
            }
        ],
        "remotes": [{"id": "sink", "s3": {"bucket": case.sink.bucket, "endpoint": endpoint}}],
    }
    (case.work / "config.yaml").write_text(json.dumps(config))
    program = find("btrfs2s3")
    assert program is not None
    return with_btrfs_times(
        case,
        Pipeline([[program, "update", str(case.work / "config.yaml"), "--force"]], environment={"TMPDIR": "/dev/shm"}),
    )


def btrfs2s3_prepare(case: Case) -> None:
    """Put the source into its first state and forget what was uploaded."""
    case.fixture.delete_below(case.fixture.path / "btrfs2s3-snapshots")
    case.fixture.reset_source()
    (case.fixture.path / "btrfs2s3-snapshots").mkdir()
    case.sink.forget("source")


# --- b2s --------------------------------------------------------------------------------------------------


def b2s_argv() -> list[str]:
    """Return the b2s of this working tree."""
    return [sys.executable, "-m", "b2s"]


def with_btrfs_times(case: Case, pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with what btrfs below the tool uses counted apart."""
    real = shutil.which("btrfs")
    assert real is not None
    (case.work / "bin").mkdir(exist_ok=True)
    link = case.work / "bin" / "btrfs"
    link.unlink(missing_ok=True)
    link.symlink_to(HERE / "btrfs-stand-in")
    times = case.work / "btrfs-times"
    times.unlink(missing_ok=True)
    environment = {
        **case.sink.environment,
        **pipeline.environment,
        "PATH": f"{link.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "B2S_BENCH_BTRFS": real,
        "B2S_BENCH_TIMES": str(times),
    }
    return replace(pipeline, environment=environment, btrfs_times=str(times))


_OTHER_SECTIONS = ("spool", "send", "restore")


def b2s_config(case: Case, **s3: object) -> Path:
    """Write a config with everything at its default but where things are and what is given."""
    config = {
        "state_path": str(case.work / "state" / "state.db"),
        "lock_path": str(case.work / "b2s.lock"),
        "snapshots": {"base_dir": str(case.fixture.snapshots)},
        "sources": [{"name": "data", "path": str(case.fixture.source)}],
        "s3": {
            "bucket": case.sink.bucket,
            "region": "us-east-1",
            "endpoint_url": case.sink.endpoint_url,
            "prefix": "b2s",
        }
        | {"concurrency": case.in_flight}
        | {key: value for key, value in s3.items() if key not in _OTHER_SECTIONS},
    }
    config |= {key: value for key, value in s3.items() if key in _OTHER_SECTIONS}
    path = case.work / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def b2s(case: Case, **s3: object) -> Pipeline:
    """Return `b2s backup --once`, full or incremental as the state has it."""
    argv = [*b2s_argv(), "--config", str(b2s_config(case, **s3)), "backup", "--once"]
    return with_btrfs_times(case, Pipeline([argv]))


def b2s_when_due(case: Case) -> Pipeline:
    """Return `b2s backup` as cron calls it."""
    return with_btrfs_times(case, Pipeline([[*b2s_argv(), "--config", str(b2s_config(case)), "backup"]]))


def b2s_synthetic(case: Case, stream_bytes: int) -> Pipeline:
    """Return `b2s backup --once` of a stream of any length that no filesystem has to hold."""
    pipeline = b2s(case)
    synthetic = {"B2S_BENCH_STREAM_BYTES": str(stream_bytes), "B2S_BENCH_PYTHON": sys.executable}
    return replace(pipeline, environment={**pipeline.environment, **synthetic})


def b2s_disk(case: Case) -> Pipeline:
    """Return `b2s backup` with its spool in a directory."""
    return b2s(case, spool={"enabled": True, "dir": str(case.work / "spool"), "size": "512MiB"})


def b2s_prepare(case: Case) -> None:
    """Go back to before the backup: for an incremental, to after a full one that is not measured."""
    shutil.rmtree(case.work / "state", ignore_errors=True)
    case.sink.forget("b2s/")
    case.fixture.reset_source()
    if case.sendable.name == "incremental":
        run(b2s(case))
        case.fixture.change_source()


def b2s_interrupted(case: Case) -> None:
    """Go to where every part of a full backup is stored and nothing is committed, because its send failed at last."""
    b2s_prepare(case)
    pipeline = b2s(case)
    failing = replace(pipeline, environment={**pipeline.environment, "B2S_BENCH_SEND_STATUS": "1"})
    try:
        run(failing)
    except RuntimeError as error:
        if "exit status 1" in str(error):
            return
        raise
    raise RuntimeError("a backup whose send failed did not fail")


TOOLS = (
    Tool("b2s", b2s, sys.executable, b2s_prepare),
    Tool("b2s, disk spool", b2s_disk, sys.executable, b2s_prepare),
    Tool("aws s3 cp (tuned)", aws_tuned, "aws"),
    Tool("aws s3 cp", aws_default, "aws"),
    Tool("rclone rcat", rclone, "rclone"),
    Tool("s5cmd pipe", s5cmd, "s5cmd"),
    Tool("btrfs2s3", btrfs2s3, "btrfs2s3", btrfs2s3_prepare),
    Tool("restic", restic, "restic", restic_init, needs_store=True),
)
