"""Time zones: this machine's own, and those that have a name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from b2s.errors import ConfigError

_EPOCH = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)


class SystemZone(tzinfo):
    """The machine's own zone, with all its rules, as the C library knows it.

    `datetime.astimezone()` gives only today's fixed offset, and `/etc/localtime` may be a copy that names no
    zone; the C library honours `TZ` and the file alike.
    """

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        """Return the offset of a wall-clock reading, its `fold` honoured (PEP 495)."""
        if moment is None:
            return None
        wall = moment.replace(tzinfo=None)
        return wall - (_EPOCH + timedelta(seconds=wall.timestamp()))

    def dst(self, moment: datetime | None) -> timedelta | None:
        """Return None: the C library does not say how much of the offset is daylight saving."""
        return None

    def tzname(self, moment: datetime | None) -> str:
        """Return the name by which the config calls this zone."""
        return "local"

    def fromutc(self, moment: datetime) -> datetime:
        """Return the wall-clock reading of a UTC moment that carries this zone."""
        wall = datetime.fromtimestamp(moment.replace(tzinfo=UTC).timestamp())  # noqa: DTZ006 - the machine's is meant
        return wall.replace(tzinfo=self)


def zone(name: str) -> tzinfo:
    """Return the zone that a config's `timezone` names: "local" or an IANA name.

    Raises:
        ConfigError: No such zone.
    """
    if name == "local":
        return SystemZone()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"time zone {name!r} is not known", hint="use local or a name like Europe/Berlin") from error
