"""The main job on parts that need nothing else: full backup, change, incremental backup, restore elsewhere, compare.

`scripts/quickstart` prepares the machine and calls this. Filesystems, server and the tree with everything that has
ever broken a backup are those of the tests; every `b2s` call is what a user would type.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from b2s.core.units import format_bytes
from tests.parts import workspace
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import REGION, SeaweedServer
from tests.parts.tree import change_tree, differences, nasty_tree, tree_digest

MIB = 1 << 20
DATA_BYTES = 128 * MIB
BUCKET = "quickstart-bucket"
PREFIX = "hosts/quickstart"
STEPS = 8
NEEDED_BYTES = 1000 * MIB  # below the directory for temporary files: two filesystems and the bucket

CONFIG = """\
# Only sources and s3.bucket are required; docs/configuration.md has every key.
sources:
  - name: data
    path: {source}
snapshots: {{base_dir: {snapshots}}}
state_path: {directory}/state.db
lock_path: {directory}/b2s.lock
s3:
  bucket: {bucket}
  prefix: {prefix}
  endpoint_url: {endpoint}      # leave it out for AWS
  region: {region}
  chunk_size: 64MiB             # small, so that there is more than one; the default is 200GiB
  segment_size: 8MiB
"""


class Failed(Exception):
    """Something did not work; the message says what, in words for the user."""


class MainJob:
    """What was made so far, and the steps; everything registered on `stack` is undone at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.directory = workspace.make_directory("quickstart")
        stack.callback(workspace.remove, self.directory)
        self.config = self.directory / "config.yaml"
        self.step = 0

    def run(self) -> None:
        """Do the main job."""
        with self.says("making a btrfs filesystem with a subvolume full of awkward files"):
            here = self.stack.enter_context(LoopFilesystem(size_bytes=1 << 30))
            source = here.subvolume("data")
            nasty_tree(source, size_bytes=DATA_BYTES)
        with self.says("starting SeaweedFS, an S3 server, and creating a bucket"):
            server = self.stack.enter_context(_closing(SeaweedServer()))
            server.make_bucket(BUCKET)
        self.configure(here, source, server)

        with self.says("full backup"):
            full = self.backup()
        with self.says("changing, renaming, deleting and adding files"):
            change_tree(source, seed=1)
        with self.says("incremental backup (--once: due or not)"):
            incremental = self.backup("--once")
        with self.says("listing what is in the bucket"):
            listing = self.b2s("list").stdout
        with self.says("restoring onto another filesystem, knowing nothing but bucket, prefix and credentials"):
            there = self.stack.enter_context(LoopFilesystem(size_bytes=1 << 30))
            where = ["--bucket", BUCKET, "--prefix", PREFIX, "--endpoint-url", server.endpoint_url, "--region", REGION]
            target = there.path / "data"
            done = self.b2s("restore", *where, "--source", "data", "--target", str(target))
            restored = _last_event(done.stderr, "restore_metrics")
        with self.says("comparing names, content, xattrs, modes, owners, times, links and holes"):
            before, after = tree_digest(source), tree_digest(target)
            unequal = differences(before, after)
            if unequal:
                raise Failed("the restored tree is not equal:\n" + "\n".join(unequal[:20]))

        print(f"\n$ b2s list\n{listing}")
        self.print_report(
            ("full backup", _measured(full)),
            ("incremental", _measured(incremental)),
            ("restore", _measured(restored)),
            ("compared", f"{len(after):,} entries: equal"),
        )

    def configure(self, here: LoopFilesystem, source: Path, server: SeaweedServer) -> None:
        """Write the config; credentials go where boto3 looks for them."""
        self.config.write_text(
            CONFIG.format(
                source=source,
                snapshots=here.path / "snapshots",
                directory=self.directory,
                bucket=BUCKET,
                prefix=PREFIX,
                endpoint=server.endpoint_url,
                region=REGION,
            )
        )
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = server.access_key, server.secret_key
        os.environ["B2S_CONFIG"] = str(self.config)

    def backup(self, *options: str) -> dict[str, Any]:
        """Run `b2s backup` and return its metrics."""
        return _last_event(self.b2s("backup", *options).stderr, "backup_metrics")

    def b2s(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run b2s; a failure shows what it says of it."""
        print(f"      $ {shlex.join(['b2s', *arguments])}", flush=True)
        command = [sys.executable, "-m", "b2s", "--log-format", "json", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            _end(process)
            raise
        if process.returncode != 0:
            last = _last_event(stderr, "run_finished")
            hint = f"\nhint: {last['hint']}" if last.get("hint") else ""
            detail = last.get("error") or stderr[-2000:]
            raise Failed(f"b2s {arguments[0]} ended with exit code {process.returncode}: {detail}{hint}")
        return subprocess.CompletedProcess(command, 0, stdout, stderr)

    @contextmanager
    def says(self, what: str) -> Iterator[None]:
        """Say what comes now and, when it is done, how long it took."""
        self.step += 1
        print(f"[{self.step}/{STEPS}] {what}", flush=True)
        started = time.monotonic()
        yield
        print(f"      {time.monotonic() - started:.1f} s", flush=True)

    def print_report(self, *lines: tuple[str, str]) -> None:
        """Print the result."""
        print("Report")
        for name, value in lines:
            print(f"  {name:<12} {value}")

    def wait_for_user(self) -> None:
        """Leave everything up until Enter or Ctrl-C."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "B2S_CONFIG")
        print("\nAll of it stays up. In another terminal, as root:\n")
        for name in names:
            print(f"  export {name}={shlex.quote(os.environ[name])}")
        print(f"  export PATH={Path(sys.executable).parent}:$PATH\n  b2s list\n")
        print("Press Enter or Ctrl-C here to remove everything.", flush=True)
        sys.stdin.readline()


def main() -> int:
    """Run the job, clean up whatever happens, and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart")
    parser.add_argument("--keep", action="store_true", help="leave everything up for playing until Enter or Ctrl-C")
    keep = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in [name for name in os.environ if name.startswith(("AWS_", "B2S_"))]:
        del os.environ[name]
    os.environ[workspace.MARKER] = workspace.tag()
    started = time.monotonic()
    try:
        check_machine()
        workspace.remove_leftovers()
        with ExitStack() as stack:
            try:
                job = MainJob(stack)
                job.run()
                if keep:
                    job.wait_for_user()
            finally:
                _ignore_signals()  # nothing interrupts cleaning up
    except Failed as error:
        print(f"\nquickstart failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print("\nstopped; everything was removed again", file=sys.stderr)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    print(
        f'\nDone in {time.monotonic() - started:.0f} s; everything was removed again. Next: README.md, "First backup".'
    )
    return 0


def check_machine() -> None:
    """Say early what would fail late.

    Raises:
        Failed: Not root, no loop devices, no btrfs in the kernel, or no space.
    """
    if os.geteuid() != 0:
        raise Failed("only root can mount, snapshot, send and receive: run it as root")
    if not Path("/dev/loop-control").exists():
        raise Failed("there are no loop devices here (/dev/loop-control); a container needs --privileged for them")
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "btrfs"], check=False)
    if "btrfs" not in Path("/proc/filesystems").read_text().split():
        raise Failed("this kernel knows no btrfs (/proc/filesystems)")
    directory = workspace.make_directory("space")
    free = shutil.disk_usage(directory).free
    workspace.remove(directory)
    if free < NEEDED_BYTES:
        raise Failed(f"{directory.parent} has {format_bytes(free)} free; {format_bytes(NEEDED_BYTES)} are needed")


def _measured(metrics: dict[str, Any]) -> str:
    seconds = metrics["elapsed_seconds"]
    size = f"{format_bytes(metrics['total_bytes']):>10} in {seconds:5.1f} s, {metrics['throughput']}"
    return f"{size}, {_counted(metrics['chunks'], 'object')} of {_counted(metrics['segments'], 'part')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _last_event(log: str, event: str) -> dict[str, Any]:
    """Return the last event of this name in JSON lines; empty when there is none."""
    events: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    named = [each for each in events if each.get("event") == event]
    return (named or [{}])[-1]


@contextmanager
def _closing(server: SeaweedServer) -> Iterator[SeaweedServer]:
    try:
        yield server
    finally:
        server.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Ask it to stop in order, and see that it does."""
    process.terminate()
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _ignore_signals()
    raise KeyboardInterrupt(number)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
