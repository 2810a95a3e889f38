"""A filesystem of its own for a test: a sparse image on a loop device."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil

from . import workspace

MIB = 1 << 20


class LoopFilesystem:
    """A freshly made, mounted filesystem that `close()` removes without a trace.

    Attributes:
        directory: Private directory that holds image and mount point.
        image: The backing file; flip its bits to damage the filesystem.
        path: The mount point.
    """

    def __init__(
        self,
        *,
        size_bytes: int = 512 * MIB,
        kind: Literal["btrfs", "ext4"] = "btrfs",
        options: tuple[str, ...] = (),
    ) -> None:
        self.directory = workspace.make_directory("loopfs")
        self.image = self.directory / "image"
        self.path = self.directory / "mnt"
        self.options = options
        try:
            self.path.mkdir()
            with self.image.open("wb") as image:
                image.truncate(size_bytes)
            quiet = ["-q", "-K"] if kind == "btrfs" else ["-q", "-E", "nodiscard"]
            _run(f"mkfs.{kind}", *quiet, self.image)
            self.mount()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the mounted filesystem."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def mount(self, *options: str) -> None:
        """Mount the image with the options given at the start and these; `umount` detaches the loop device."""
        _run("mount", "-o", ",".join(("loop", *self.options, *options)), self.image, self.path)

    def unmount(self) -> None:
        """Unmount; fails when something still uses the filesystem."""
        _run("umount", self.path)

    def remount(self, *options: str) -> None:
        """Change mount options in place (``remount("ro")``); without options unmount and mount again."""
        if options:
            _run("mount", "-o", ",".join(("remount", *options)), self.path)
        else:
            self.unmount()
            self.mount()

    def subvolume(self, name: str) -> Path:
        """Create the subvolume `name`, which may lie inside another one (``"data/nested"``)."""
        _run("btrfs", "-q", "subvolume", "create", self.path / name)
        return self.path / name

    def snapshot(self, source: Path, name: str, *, writable: bool = False) -> Path:
        """Create a snapshot of `source` at `name`, read-only unless `writable`."""
        _run("btrfs", "-q", "subvolume", "snapshot", *([] if writable else ["-r"]), source, self.path / name)
        return self.path / name

    def close(self) -> None:
        """Unmount, detach and delete, also when busy; ends only processes this test run started. Safe to repeat."""
        if workspace.mounts_below(self.directory):
            unmounted = subprocess.run(["umount", self.path], capture_output=True, check=False).returncode == 0
            if not unmounted:
                self._end_own_users()
        workspace.remove(self.directory)

    def _end_own_users(self) -> None:
        users = [process for process in workspace.own_processes() if self._uses(process)]
        for process in users:
            process.kill()
        # Watched, not waited for: whoever started them still wants their exit status.
        gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        with contextlib.suppress(TimeoutError, psutil.NoSuchProcess):
            workspace.poll(lambda: all(user.status() in gone for user in users), seconds=3, what="users ended")

    def _uses(self, process: psutil.Process) -> bool:
        try:
            paths = [process.cwd(), *(file.path for file in process.open_files())]
        except psutil.Error:
            return False
        return any(Path(path).is_relative_to(self.path) for path in paths)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()}")
