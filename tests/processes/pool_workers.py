"""Worker mains for the pool tests; importable by the forkserver's children."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any

from b2s.core.messages import Stop, TaskFailed, WorkerReady
from b2s.errors import AccessDenied


def echo(tasks: Queue[Any], replies: Connection) -> None:
    """Answer every task with itself; some words have effects."""
    replies.send(WorkerReady())
    while True:
        task = tasks.get()
        match task:
            case Stop():
                return
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "deny":
                replies.send(TaskFailed(AccessDenied("no s3:PutObject on x").to_wire()))
                continue
            case ("die-once", path) if not os.path.exists(path):
                with open(path, "w"):
                    os.kill(os.getpid(), signal.SIGKILL)
            case ("answer-and-die", path) if not os.path.exists(path):
                replies.send(task)
                with open(path, "w"):
                    os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(1)
            case "always-die":
                os.kill(os.getpid(), signal.SIGKILL)
        replies.send(task)


def never_ready(tasks: Queue[Any], replies: Connection) -> None:
    """Stand still before being ready, as one whose credentials nobody gives it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stillborn(tasks: Queue[Any], replies: Connection) -> None:
    """Die before being ready."""
    os._exit(3)
