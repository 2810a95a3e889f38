"""Pipes between btrfs and us."""

from __future__ import annotations

import errno
import fcntl
import select
import struct
import termios

from b2s.core.limits import PIPE_BYTES


def enlarge(descriptor: int, size_bytes: int = PIPE_BYTES) -> None:
    """Give a pipe more room, where the kernel allows it (more than 1 MiB: to root); a smaller one only costs speed."""
    for size in (size_bytes, PIPE_BYTES):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise


def unread_bytes(descriptor: int) -> int:
    """Return how much lies in a pipe, asked at either end; what is being copied out counts until it was copied.

    Source: Linux, fs/pipe.c: FIONREAD and a read take the same lock.
    """
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", answer)[0])


def reader_is_gone(descriptor: int) -> bool:
    """Tell, asked at the writing end, whether nobody can read any more."""
    poll = select.poll()
    poll.register(descriptor, 0)  # an error is told unasked
    return bool(poll.poll(0))
