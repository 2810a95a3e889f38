"""The `btrfs send` of one upload: judged when its stream is over, ended whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from b2s.adapters.btrfs_process import BtrfsProcess
from b2s.core import events
from b2s.core.messages import StreamEnded
from b2s.errors import B2sError, BtrfsError, SendFailed

EXIT_SECONDS_MAX = 30.0  # between the end of the stream and the end of `btrfs send`
STOP_SECONDS = 1.0
TICK_SECONDS = 0.5


def judge(send: BtrfsProcess, ended: StreamEnded, check_stop: Callable[[], None]) -> None:
    """Compare what the stream was with how `btrfs send` ends; waits for that, half a minute at most.

    Raises:
        SendFailed: It exited with another status than 0, or not at all, or its stream is not whole.
    """
    status = _exit_of(send, check_stop)
    if status == 0 and ended.whole:
        return
    if status is None:
        problem = f"btrfs send (pid {send.pid}) does not end after its stream did"
    elif ended.given_up:
        problem = f"btrfs send makes no valid stream: {ended.detail}"
    elif status != 0:
        problem = f"btrfs send failed: {send.describe_exit()}"
    else:
        problem = f"btrfs send exited 0 but {ended.detail}"
    raise SendFailed(problem, stream_bytes=ended.stream_bytes)


def _exit_of(send: BtrfsProcess, check_stop: Callable[[], None]) -> int | None:
    deadline = time.monotonic() + EXIT_SECONDS_MAX
    while (status := send.wait(TICK_SECONDS)) is None and time.monotonic() < deadline:
        check_stop()
    return status


def end(send: BtrfsProcess, error: BaseException, log: Any) -> None:
    """End it because of an error, which learns what it said.

    One that even SIGKILL does not end is named and left; the first error stays the first.
    """
    try:
        send.stop(STOP_SECONDS)
    except BtrfsError as stuck:
        log.error(events.SEND_FAILED, error=stuck.message, hint=stuck.hint, child_pid=send.pid)
        if isinstance(error, B2sError):
            error.hint = f"{stuck.message}: {stuck.hint}"
    if isinstance(error, B2sError):
        error.context.setdefault("send_stderr", send.stderr_tail())
