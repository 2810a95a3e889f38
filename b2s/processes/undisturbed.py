"""Imported first by the forkserver: it dies with the supervisor, and of nothing else that is meant for it.

`systemctl stop` and a closing terminal send their signal to every process at once. Only the supervisor answers; it
ends the others itself, and the kernel does when the supervisor is gone, also while the forkserver still imports.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from types import TracebackType

_PR_SET_PDEATHSIG = 1  # Source: prctl(2), linux/prctl.h


def _tell_no_broken_pipe(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing of a supervisor that went away while it started a process: stderr is for JSON lines."""
    if not isinstance(error, (EOFError, OSError, pickle.UnpicklingError)):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _tell_no_broken_pipe
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
if os.getppid() == 1:  # it was gone before the kernel knew
    os._exit(1)
