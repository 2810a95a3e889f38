"""CPU and I/O priority of a process; what it starts later inherits both."""

from __future__ import annotations

import psutil

from b2s.errors import B2sError

_CLASSES = {"idle": psutil.IOPRIO_CLASS_IDLE, "best-effort": psutil.IOPRIO_CLASS_BE}


def set_priority(pid: int | None, nice: int | None, ionice: str | None) -> None:
    """Set the priorities of a process; None leaves one as it is. A process that is gone is fine.

    Args:
        pid: The process; None: the calling one.
        nice: -20 to 19.
        ionice: "idle", "best-effort", or "best-effort:0" (first) to "best-effort:7" (last).

    Raises:
        B2sError: The kernel refuses.
    """
    try:
        process = psutil.Process(pid)
        if nice is not None:
            process.nice(nice)
        if ionice is not None:
            name, _, level = ionice.partition(":")
            process.ionice(_CLASSES[name], int(level) if level else None)
    except psutil.NoSuchProcess:
        return  # its exit status says why
    except (psutil.AccessDenied, OSError) as error:
        raise B2sError(
            f"the priority of process {pid if pid is not None else 'b2s'} could not be set: {error}",
            hint="run as root, or leave process.nice and process.ionice null",
        ) from error
