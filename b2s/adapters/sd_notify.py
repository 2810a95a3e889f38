"""Tell systemd how the service is, where it asked for it."""

from __future__ import annotations

import os
import socket

SOCKET_VARIABLE = "NOTIFY_SOCKET"


def wanted() -> bool:
    """Return whether systemd listens."""
    return bool(os.environ.get(SOCKET_VARIABLE))


def sd_notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` or `STATUS=...`; without a listener do nothing, and never fail.

    Source: systemd, sd_notify(3) (read 2026-11): one datagram, a line each; `@` begins an abstract socket's name.
    """
    address = os.environ.get(SOCKET_VARIABLE, "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    message = "\n".join(line.replace("\n", " ") for line in assignments)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifying:
            notifying.setblocking(False)
            notifying.sendto(message.encode("utf-8", "backslashreplace"), address)
    except OSError:
        return  # a status nobody reads is no reason to fail a backup
