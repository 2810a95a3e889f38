"""Who this machine is, without telling its machine id to anyone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import socket

from b2s.core.manifest import Host
from b2s.errors import StateError

# Fixed for ever: another string would make every host a stranger to its own backups.
_APPLICATION = b"b2s host identity 1"

DEFAULT_FALLBACK_PATH = "/var/lib/b2s/host-id"

_MACHINE_ID_PATHS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_OWN_STATUS_PATH = "/proc/self/status"
_CAP_SYS_ADMIN = 21  # Source: Linux include/uapi/linux/capability.h (read 2026-11)
_BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


def host_identity(fallback_path: str = DEFAULT_FALLBACK_PATH) -> Host:
    """Return the name of this machine and an id that stays the same and gives nothing away.

    The id is HMAC-SHA256 keyed with the machine id over a constant, as `sd_id128_get_machine_app_specific` does
    it: two programs see two ids, and nobody gets back from it to the machine id.

    Args:
        fallback_path: Where a random id is kept on machines that have no machine id (some containers, a rescue
            system). It belongs beside the state file; lost, the machine counts as another one.

    Raises:
        StateError: There is no machine id and the fallback cannot be read or written.
    """
    machine_id = _machine_id() or _kept_id(fallback_path)
    digest = hmac.new(machine_id.encode(), _APPLICATION, hashlib.sha256).hexdigest()
    return Host(name=socket.gethostname(), id=digest)


def hint_for(error: OSError, otherwise: str) -> str:
    """Return what helps when the operating system refuses something: most often somebody forgot to be root."""
    return "run b2s as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else otherwise


def boot_id() -> str:
    """Return the id of this boot: no process of another boot lives."""
    with open(_BOOT_ID_PATH, encoding="ascii") as file:
        return file.read().strip()


def may_administer() -> bool:
    """Tell whether this process may make, receive and delete subvolumes: root in many containers may not."""
    with open(_OWN_STATUS_PATH, encoding="ascii", errors="replace") as file:
        (effective,) = [line.split()[1] for line in file if line.startswith("CapEff:")]
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def _machine_id() -> str | None:
    for path in _MACHINE_ID_PATHS:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                text = file.read(64).strip()
        except OSError:
            continue
        if _MACHINE_ID.fullmatch(text) and set(text) != {"0"}:
            return text
    return None


def _kept_id(path: str) -> str:
    """Read the random id beside the state, or make it; two makers at once agree on the first one's."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        kept = _read_kept(path)
        if kept is not None:
            return kept
        made = secrets.token_hex(16)
        temporary = f"{path}.{os.getpid()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, made.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
        kept = _read_kept(path)
    except OSError as error:
        raise StateError(
            f"this machine has no machine id, and {path}, which stands in for it, cannot be used: {error.strerror}",
            hint="make the file system writable, or create /etc/machine-id with systemd-machine-id-setup",
        ) from error
    if kept is None:
        raise StateError(f"{path} does not hold a machine id", hint="delete it; the next run makes a new one")
    return kept


def _read_kept(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(64).strip()
    except FileNotFoundError:
        return None
    return text if _MACHINE_ID.fullmatch(text) else None
