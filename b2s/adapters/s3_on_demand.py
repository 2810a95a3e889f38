"""A bucket that is connected when it is first needed: a run that finds nothing due pays for no S3 client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket
    from b2s.core.store_settings import S3Settings


class _BucketOnDemand:
    """Stands in for a bucket; its first use imports boto3 and looks for credentials."""

    def __init__(self, settings: S3Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._options = options
        self._bucket: Bucket | None = None

    def __getattr__(self, name: str) -> Any:
        """Connect, if that was not done yet, and pass on.

        Raises:
            CredentialsMissing: None were found.
        """
        if self._bucket is None:
            from b2s.adapters.s3 import Bucket

            self._bucket = Bucket.connect(self._settings, **self._options)
        return getattr(self._bucket, name)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._bucket is not None:
            self._bucket.close()


def bucket_on_demand(settings: S3Settings, **options: Any) -> Bucket:
    """Return what behaves as `Bucket.connect(settings, **options)` would, once it is used."""
    return cast("Bucket", _BucketOnDemand(settings, options))
