"""Translate what S3 and botocore say into our errors: once, here.

Everything a server sends is untrusted text: it is cut, control characters are escaped, and our own secrets are
taken out should a server echo them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Final

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from b2s.errors import (
    AccessDenied,
    B2sError,
    BucketMissing,
    CertificateRejected,
    ClockSkewed,
    CredentialsMissing,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    PartRejected,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    UploadGone,
)

TEXT_LENGTH_MAX = 300
CLOCK_SKEW_SECONDS_MAX = 900  # Source: AWS Signature Version 4, "15 minutes" (read 2026-11).

# The permission each operation needs. Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API
# operations" (read 2026-11).
_ACTIONS: Final = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "RestoreObject": "s3:RestoreObject",
}

_UPLOAD_OPERATIONS: Final = frozenset({"UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "ListParts"})

_TRANSIENT_CODES: Final = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequests",
        "RequestTimeout",
        "InternalError",
        "InternalFailure",
        "ServiceUnavailable",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "BandwidthLimitExceeded",
    }
)
_REJECTED_CODES: Final = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
_CREDENTIAL_CODES: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "TokenRefreshRequired", "InvalidClientTokenId"}
)
_DENIED_CODES: Final = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem"})
_REGION_CODES: Final = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_EXPIRED_CODES: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})

HINT_UNAVAILABLE = (
    "nothing is lost: run the same command again when the store can be reached; s3.retry_for says how long b2s waits"
)
HINT_CREDENTIALS = (
    "give credentials the way boto3 finds them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials "
    "and s3.profile, SSO, or a role"
)
HINT_CERTIFICATE = "if the store uses a private certificate authority, set AWS_CA_BUNDLE to its certificate file"
HINT_CLOCK = "set this host's clock (NTP) and run again"
HINT_REGION = "set s3.region to the bucket's own region"


@dataclass(frozen=True, slots=True)
class S3Call:
    """What was asked of S3: named in every error about it."""

    operation: str  # S3's name of it
    bucket: str
    key: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to occur in a message

    @property
    def action(self) -> str:
        """Return the permission it needs."""
        return _ACTIONS.get(self.operation, f"s3:{self.operation}")

    @property
    def place(self) -> str:
        """Return what it was asked about, as S3 writes it."""
        return f"s3://{self.bucket}/{self.key}" if self.key is not None else f"bucket {self.bucket}"


def clean(text: object, secrets: Iterable[str] = (), length_max: int = TEXT_LENGTH_MAX) -> str:
    """Return foreign text as one short line: control characters escaped, secrets replaced."""
    line = str(text)[: length_max * 8]
    for secret in secrets:
        line = line.replace(secret, "[secret]")
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def is_expired(error: BaseException) -> bool:
    """Tell whether S3 said that the session token is too old."""
    return isinstance(error, boto.ClientError) and _code_of(error) in _EXPIRED_CODES


def is_not_implemented(error: B2sError) -> bool:
    """Tell whether the store does not know what it was asked for."""
    return error.context.get("code") in {"NotImplemented", "501"} or error.context.get("http_status") == 501


def translate(error: BaseException, call: S3Call) -> B2sError | None:
    """Return our error for `error`, or None when it is a bug and should keep its trace."""
    if isinstance(error, B2sError):
        return error
    if isinstance(error, boto.ClientError):
        return _from_reply(error, call)
    return _from_client(error, call)


# --- errors that S3 answered -------------------------------------------------------------------------


def _code_of(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _from_reply(error: boto.ClientError, call: S3Call) -> B2sError:
    metadata: Any = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers = {str(name).lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
    code = clean(_code_of(error), call.secrets, 64)
    said = clean(error.response.get("Error", {}).get("Message", ""), call.secrets)
    detail = f"{code}: {said}" if said else code
    context: dict[str, Any] = {"code": code, "http_status": status, "operation": call.operation}
    if call.key is not None:
        context["key"] = call.key

    def make(
        cls: type[StoreError], message: str, hint: str | None = None, *, transient: bool | None = None
    ) -> B2sError:
        return cls(message, hint=hint, transient=transient, **context)

    where = f"{call.operation} on {call.place}"
    if code in _REJECTED_CODES:
        return make(PartRejected, f"{where}: the store received other bytes than were sent ({detail})")
    if code == "GlacierExpeditedRetrievalNotAvailable":
        hint = "choose another tier: --tier Standard or --tier Bulk"
        return make(StoreRefused, f"{where}: the tier is not available now ({detail})", hint)
    if code == "NoSuchBucket" or (call.operation == "HeadBucket" and status == 404):
        hint = "create it, or correct s3.bucket and s3.endpoint_url; b2s never creates a bucket"
        return make(BucketMissing, f"bucket {call.bucket} does not exist", hint)
    if code == "NoSuchUpload" or (status == 404 and call.operation in _UPLOAD_OPERATIONS):
        return make(UploadGone, f"{where}: the multipart upload no longer exists")
    if call.operation == "UploadPart" and code == "NotImplemented":
        # rclone streams parts on as they come: one that arrived wrong, or changed, cannot be replaced any more.
        return make(UploadGone, f"{where}: the multipart upload cannot be used any more ({detail})")
    if code in _EXPIRED_CODES:
        hint = "renew the session credentials, then run the same command again; it goes on where it stopped"
        return make(CredentialsMissing, f"{where}: the session credentials have expired ({detail})", hint)
    if code in _CREDENTIAL_CODES:
        return make(
            CredentialsMissing, f"{where}: the store does not accept the credentials ({detail})", HINT_CREDENTIALS
        )
    if code == "RequestTimeTooSkewed" or (status == 403 and code in {"403", "Forbidden"} and _skewed(headers)):
        return make(ClockSkewed, f"{where}: the store refuses this host's clock ({detail})", HINT_CLOCK)
    if code == "InvalidObjectState":
        return make(ObjectArchived, f"{call.place} lies in an archive class and is not retrieved")
    if code in _REGION_CODES or status in {301, 302, 303, 307, 308}:
        return make(
            StoreRefused, f"{where}: the store points elsewhere, which b2s does not follow ({detail})", HINT_REGION
        )
    if status == 403 or code in _DENIED_CODES:
        hint = f"allow {call.action} on it to these credentials"
        if call.operation in {"HeadObject", "GetObject"}:
            hint += "; without s3:ListBucket a missing object is refused too"
        if "kms" in said.lower():
            hint += "; the message speaks of KMS: they need kms:GenerateDataKey and kms:Decrypt on the key as well"
        return make(AccessDenied, f"{where}: access denied, it needs {call.action} ({detail})", hint)
    if code in _TRANSIENT_CODES or status in {408, 429} or (status >= 500 and status != 501):
        context["retry_after_seconds"] = _retry_after(headers)
        return make(StoreUnavailable, f"{where}: the store answered {status} ({detail})", HINT_UNAVAILABLE)
    if status == 404:
        return make(ObjectMissing, f"{call.place} is not in the bucket")
    if status == 412:
        return make(ObjectChanged, f"{where}: {call.place} is not what it should be ({detail})")
    unnamed = status == 400 and code in {"400", "Bad Request"}
    message = f"{where}: the store refused with {status} ({detail})"
    return make(StoreRefused, message, HINT_REGION if unnamed else None)


def _retry_after(headers: dict[str, str]) -> float:
    asked = headers.get("retry-after", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 0.0


def _skewed(headers: dict[str, str]) -> bool:
    """A HEAD has no body to name the reason; the two clocks tell it."""
    try:
        theirs = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return False
    theirs = theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)
    return abs((datetime.now(UTC) - theirs).total_seconds()) > CLOCK_SKEW_SECONDS_MAX


# --- errors before any answer ------------------------------------------------------------------------


def _from_client(error: BaseException, call: S3Call) -> B2sError | None:
    where = f"{call.operation} on {call.place}"
    detail = clean(error, call.secrets)
    if isinstance(error, boto.ProfileNotFound):
        return CredentialsMissing(detail, hint="correct s3.profile or add the profile to ~/.aws/config")
    if isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.CredentialRetrievalError
        | boto.NoAuthTokenError
        | boto.TokenRetrievalError
        | boto.SSOError
        | boto.UnknownCredentialError
        | boto.InvalidConfigError,
    ):
        return CredentialsMissing(f"{where}: no usable credentials ({detail})", hint=HINT_CREDENTIALS)
    if is_certificate_error(error):
        return certificate_rejected(where, detail)
    if isinstance(
        error,
        ResponseParserError
        | boto.HTTPClientError
        | boto.ConnectionError
        | boto.IncompleteReadError
        | boto.MetadataRetrievalError
        | OSError
        | HTTPException,
    ):
        return StoreUnavailable(f"{where}: {type(error).__name__}: {detail}", hint=HINT_UNAVAILABLE)
    if isinstance(error, RuntimeError) and "refreshed credentials" in detail.lower():
        return CredentialsMissing(f"{where}: the credentials could not be renewed ({detail})", hint=HINT_CREDENTIALS)
    if isinstance(error, boto.BotoCoreError):
        return StoreRefused(f"{where}: {detail}")
    if isinstance(error, ValueError):  # botocore converts numbers and dates of a reply without a net
        return StoreRefused(f"{where}: the reply makes no sense ({detail})")
    return None


def is_certificate_error(error: BaseException | None) -> bool:
    """Tell whether a refused certificate is at the bottom of `error`."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def certificate_rejected(where: str, detail: str) -> CertificateRejected:
    """Return the error for a certificate that was not accepted."""
    return CertificateRejected(f"{where}: the server's certificate was not accepted ({detail})", hint=HINT_CERTIFICATE)
