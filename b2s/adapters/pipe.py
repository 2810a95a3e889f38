"""Pipes between btrfs and us."""

from __future__ import annotations

import errno
import fcntl

from b2s.core.limits import PIPE_BYTES


def enlarge(descriptor: int) -> None:
    """Give a pipe 1 MiB of room, where the kernel allows it; a smaller one only costs speed."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
