"""One call to S3: signed by botocore, translated on failure, retried by the one owner of retries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from botocore import xform_name

from b2s.adapters import s3_client
from b2s.adapters.bandwidth import Bandwidth
from b2s.adapters.retry import OnRetry, Retrier, never_stop
from b2s.adapters.s3_errors import S3Call, is_expired, translate
from b2s.adapters.s3_transport import OnBytes, Transport
from b2s.errors import StoreUnavailable

if TYPE_CHECKING:
    from b2s.core.store_settings import S3Settings

T = TypeVar("T")


class S3Calls:
    """The connection to one bucket. Build it in the process that uses it; not safe for several threads.

    Attributes:
        round_trip_seconds: What the fastest answer so far took: a round trip and a little; infinite before the first.
    """

    def __init__(self, settings: S3Settings, transport_of: Callable[[str | None], Transport], retrier: Retrier) -> None:
        self.settings = settings
        self.round_trip_seconds = math.inf
        self._transport_of = transport_of
        self._retrier = retrier
        self._transport: Transport | None = None
        self._connection = s3_client.connect(settings, self._make_transport)
        self._expired_since_success = False

    @classmethod
    def connect(
        cls,
        settings: S3Settings,
        *,
        stop: Callable[[], None] = never_stop,
        on_retry: OnRetry | None = None,
        on_bytes: OnBytes | None = None,
        bandwidth: Bandwidth | None = None,
        downloads: bool = False,
    ) -> Self:
        """Build the client; nothing is sent to S3 yet.

        Args:
            settings: The `s3` section of the config.
            stop: Called between tries and while waiting; raises `Stopped` when the run is to end.
            on_retry: Told of every failure that is tried again.
            on_bytes: Told of the bytes of parts and objects as they move, both ways: a sign of life. Bytes sent again
                count again.
            bandwidth: A limit for what is sent, shared with other processes.
            downloads: Objects will be read; makes that cheaper, and sending a little dearer.

        Raises:
            CredentialsMissing: None were found.
        """

        def transport_of(ca_bundle: str | None) -> Transport:
            return Transport(
                ca_bundle=ca_bundle,
                connect_timeout_seconds=settings.connect_timeout.total_seconds(),
                read_timeout_seconds=settings.read_timeout.total_seconds(),
                stall_timeout_seconds=settings.stall_timeout.total_seconds(),
                on_bytes=on_bytes,
                bandwidth=bandwidth,
                stop=stop,
                downloads=downloads,
            )

        return cls(settings, transport_of, Retrier(settings.retry_for.total_seconds(), stop=stop, on_retry=on_retry))

    def close(self) -> None:
        """Close the connection; a later call would open it again."""
        if self._transport is not None:
            self._transport.close()

    def _make_transport(self, ca_bundle: str | None) -> Transport:
        self.close()
        self._transport = self._transport_of(ca_bundle)
        return self._transport

    def _moved(self, bytes_count: int) -> None:
        if self._transport is not None and self._transport.on_bytes is not None:
            self._transport.on_bytes(bytes_count)

    def _call(self, operation: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask S3 once.

        Raises:
            StoreError: What went wrong, `transient` when the same call may succeed later.
        """
        if key is not None:
            parameters["Key"] = key
        method = getattr(self._connection.client, xform_name(operation))
        began = time.monotonic()
        try:
            reply: dict[str, Any] = method(Bucket=self.settings.bucket, **parameters)
        except Exception as error:
            known = translate(error, S3Call(operation, self.settings.bucket, key, self._connection.secrets))
            if known is None:
                raise
            if is_expired(error) and self._renewed():
                raise StoreUnavailable(f"{known.message}; renewed", hint=known.hint, **known.context) from error
            raise known from error
        self._expired_since_success = False
        self.round_trip_seconds = min(self.round_trip_seconds, time.monotonic() - began)
        return reply

    def _retried(self, operation: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask S3, again and again while it may help."""
        return self._retrier.call(lambda: self._call(operation, key, **parameters))

    def _renewed(self) -> bool:
        """Look for credentials anew after S3 called them expired; tell whether trying again makes sense.

        Those that renew themselves get one more chance; static ones must have been replaced in their file.
        """
        before = self._connection.fingerprint
        self._connection = s3_client.connect(self.settings, self._make_transport)
        first_time, self._expired_since_success = not self._expired_since_success, True
        return self._connection.fingerprint != before or (self._connection.refreshable and first_time)
