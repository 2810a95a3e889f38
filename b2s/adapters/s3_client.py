"""Build the botocore client: credentials, region and endpoint as boto3 finds them, everything else as we need it."""

from __future__ import annotations

import functools
import gzip
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.loaders import JSONFileLoader, Loader, create_loader

from b2s.adapters.s3_errors import HINT_CREDENTIALS, S3Call, translate
from b2s.adapters.s3_listed import read_listing
from b2s.adapters.s3_transport import Transport
from b2s.errors import CredentialsMissing

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.client import BaseClient
    from botocore.session import Session

    from b2s.core.store_settings import S3Settings


@dataclass(frozen=True, slots=True)
class Connection:
    """A client together with what must be known about its credentials."""

    client: BaseClient
    fingerprint: tuple[str, str]  # of the credentials: access key and session token
    refreshable: bool  # botocore can renew them by itself
    secrets: tuple[str, ...]  # values that must never be printed


def preload() -> None:
    """Read what botocore knows of S3 and its endpoints, so that clients made in this process or its forks need not.

    Reading and indexing it is four fifths of the cost of a client: 0.1 s of CPU and 7 MiB for every process.
    """
    loader = _service_data()
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", kind)


@functools.cache
def _service_data() -> Loader:
    """Return the one loader of all clients: it keeps what it read."""
    paths = create_loader(os.environ.get("AWS_DATA_PATH")).search_paths
    return _ServiceData(paths, file_loader=_PlainJson(), include_default_search_paths=False)


class _ServiceData(Loader):
    """botocore's loader, which lists its services without a look into the directories of all four hundred."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Return every name that may be a service's; what it has not is noticed when it is read."""
        return sorted({name for path in self.search_paths if os.path.isdir(path) for name in os.listdir(path)})


class _PlainJson(JSONFileLoader):
    """botocore's reader, without an `OrderedDict` for every object: half the time, and every `dict` has an order."""

    def load_file(self, file_path: str) -> Any:
        """Return what a file (named without its extension) holds; None where there is none."""
        for extension, opened in ((".json", open), (".json.gz", gzip.open)):
            if os.path.isfile(file_path + extension):
                with opened(file_path + extension, "rb") as file:
                    return json.loads(file.read())
        return None


def ca_bundle_of(session: Session) -> str | None:
    """Return the CA bundle the way botocore looks for it: AWS_CA_BUNDLE, `ca_bundle`, REQUESTS_CA_BUNDLE."""
    configured: Any = session.get_config_variable("ca_bundle")
    return configured or os.environ.get("REQUESTS_CA_BUNDLE") or None


def connect(settings: S3Settings, make_transport: Callable[[str | None], Transport]) -> Connection:
    """Build a client from the current environment and files; nothing is sent to S3.

    Credentials are looked up now (which may ask a role's own service), so that their absence shows at once.

    Raises:
        CredentialsMissing: None were found, or the profile does not exist.
        StoreRefused: Region or endpoint cannot be used.
    """
    call = S3Call("connect", settings.bucket)
    try:
        # boto3's own session would do the same, but it adds its resources to the loader's paths each time.
        session = botocore.session.Session(profile=settings.profile)
        session.register_component("data_loader", _service_data())
        if settings.region is not None:
            session.set_config_variable("region", settings.region)
        client = session.create_client("s3", endpoint_url=settings.endpoint_url, config=_config(settings, session))
        found = session.get_credentials()
        frozen = found.get_frozen_credentials() if found is not None else None
    except Exception as error:
        known = translate(error, call)
        if known is None:
            raise
        raise known from error
    if found is None or frozen is None or not frozen.access_key or not frozen.secret_key:
        raise CredentialsMissing("no S3 credentials were found", hint=HINT_CREDENTIALS)
    transport = make_transport(ca_bundle_of(session))
    events: Any = client.meta.events
    events.register_first("before-send.s3", transport.before_send)
    events.register("before-parse.s3.ListObjectsV2", read_listing)
    return Connection(
        client,
        fingerprint=(frozen.access_key, frozen.token or ""),
        refreshable=isinstance(found, RefreshableCredentials),
        secrets=tuple(secret for secret in (frozen.secret_key, frozen.token) if secret),
    )


def _config(settings: S3Settings, session: Session) -> Config:
    # A custom endpoint rarely has a name per bucket, and any region does for signing.
    own_endpoint = settings.endpoint_url is not None
    return Config(
        region_name=session.get_config_variable("region") or ("us-east-1" if own_endpoint else None),
        retries={"total_max_attempts": 1, "mode": "standard"},  # adapters/retry.py is the one owner of retries
        connect_timeout=settings.connect_timeout.total_seconds(),
        read_timeout=settings.read_timeout.total_seconds(),
        # The default checksums break several S3-compatible stores; every part carries our own SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        max_pool_connections=1,
        s3={
            "addressing_style": "path" if own_endpoint else "auto",
            # The signed header with the body's SHA-256 is the proof; hashing the body again proves nothing more.
            "payload_signing_enabled": False,
        },
    )
