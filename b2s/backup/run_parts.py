"""What one run holds open, lent to every step of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from b2s.adapters.clock import Clock
from b2s.adapters.state import State
from b2s.core.manifest import Host
from b2s.core.progress import ProgressSink
from b2s.core.settings import Settings
from b2s.core.store_settings import S3Settings
from b2s.processes.signals import StopRequest

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket


def store_name(s3: S3Settings) -> str:
    """Return where backups go, as one string: endpoint, bucket and prefix."""
    return f"{s3.endpoint_url or 'aws'}/{s3.bucket}/{s3.prefix}"


@dataclass(slots=True)
class RunParts:
    """What one run holds open; every step borrows from it."""

    settings: Settings
    run_id: str
    bucket: Bucket
    state: State
    stop: StopRequest
    log: Any
    clock: Clock
    host: Host
    progress: ProgressSink

    @property
    def store(self) -> str:
        """Return where backups go, as one string: endpoint, bucket and prefix."""
        return store_name(self.settings.s3)
