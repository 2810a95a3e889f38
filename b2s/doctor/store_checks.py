"""The bucket: whether it can be reached, what the store really does, and which rules of it concern backups."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta

from b2s.adapters.s3_inspection import PROBE_BODY, BucketInspection, LifecycleRule
from b2s.backup.catalog import Catalog
from b2s.core.layout import sources_prefix
from b2s.core.model import StoreFacts
from b2s.core.settings import Settings
from b2s.core.store_settings import S3Settings
from b2s.core.units import format_bytes, format_duration
from b2s.doctor.finding import Finding, ok, problem, warning
from b2s.errors import AccessDenied, B2sError

RETRY_FOR_MAX = timedelta(seconds=10)  # whoever waits for a doctor wants to know, not to wait
SKEW_SECONDS_WARNED = 60
SKEW_SECONDS_MAX = 900  # Source: AWS Signature Version 4, "15 minutes" (read 2026-11)
ABORT_DAYS_MIN = 7  # an upload that waits for a repaired disk or a new line must not be gone when it goes on

# Days each object is billed for at least. Source: Amazon S3 pricing and storage classes pages (read 2026-11).
BILLED_DAYS_MIN = {
    "STANDARD_IA": 30,
    "ONEZONE_IA": 30,
    "GLACIER_IR": 90,
    "GLACIER": 90,
    "DEEP_ARCHIVE": 180,
}


def inspected(settings: S3Settings, stop: Callable[[], None]) -> BucketInspection:
    """Connect for an inspection, with less patience than a backup has.

    Raises:
        CredentialsMissing: None were found.
    """
    hasty = settings.model_copy(
        update={
            "retry_for": min(settings.retry_for, RETRY_FOR_MAX),
            "connect_timeout": min(settings.connect_timeout, RETRY_FOR_MAX),
        }
    )
    return BucketInspection.connect(hasty, stop=stop)


def check_reachable(bucket: BucketInspection) -> Iterator[Finding]:
    """See that the bucket is there for these credentials, and that both clocks agree.

    Raises:
        StoreError: It is not.
    """
    bucket.check()
    where = bucket.settings.endpoint_url or f"AWS, region {bucket.settings.region or 'as boto3 finds it'}"
    yield ok("bucket", f"{bucket.settings.bucket} at {where}")
    ahead = bucket.clock_ahead_seconds()
    cure = "set this host's clock (NTP): signatures and times in manifests depend on it"
    if ahead is None:
        yield ok("clock", "the store does not tell its time")
    elif abs(ahead) > SKEW_SECONDS_WARNED:
        side = "ahead of" if ahead > 0 else "behind"
        differs = f"this host's clock is {format_duration(float(round(abs(ahead))))} {side} the store's"
        found = problem if abs(ahead) > SKEW_SECONDS_MAX else warning
        yield found("clock", differs, cure)
    else:
        yield ok("clock", f"within {SKEW_SECONDS_WARNED} s of the store's")


def check_store(bucket: BucketInspection) -> Iterator[Finding]:
    """See what the store does with parts, checksums and conditions; what is written for it is removed again.

    Raises:
        StoreError: It refuses something a backup needs.
    """
    base = f"{sources_prefix(bucket.settings.prefix)}.doctor"
    facts = bucket.probe(f"{base}/{secrets.token_hex(8)}")
    yield ok("multipart", "uploads can be begun, filled and aborted")
    yield from _integrity(facts)
    # A fixed name: whatever goes wrong, there is never more than one such object.
    key = f"{base}/probe"
    if not bucket.may_delete(key):
        detail = "not tested: these credentials may not delete, so the probe object could not be removed again"
        yield ok("conditional_writes", f"{detail}. A backup needs no permission to delete")
        return
    try:
        if bucket.honours_if_none_match(key):
            yield ok("conditional_writes", "the store refuses to overwrite where asked to (If-None-Match)")
        else:
            detail = "the store ignores If-None-Match; b2s looks before it writes and reads back afterwards"
            yield warning("conditional_writes", detail, "never let two hosts use one source name under one prefix")
        bucket.may_delete(key)
        sha256 = hashlib.sha256(PROBE_BODY).digest()
        stored = bucket.store_in_parts(key, sha256, hashlib.md5(PROBE_BODY, usedforsecurity=False).digest(), facts)
        yield ok("multipart", f"an object was stored in parts and confirmed, class {stored.storage_class}")
    finally:
        bucket.may_delete(key)


def _integrity(facts: StoreFacts) -> Iterator[Finding]:
    if facts.sha256:
        yield ok("checksums", "the store verifies the SHA-256 of every part")
    elif facts.content_md5 or facts.etag_is_md5:
        how = "Content-MD5" if facts.content_md5 else "the ETag it returns"
        detail = f"the store verifies no SHA-256; parts are checked by MD5 ({how}) and size"
        yield warning("checksums", detail, "`b2s verify --data` now and then, or a store that verifies SHA-256")
    else:
        detail = "the store verifies neither SHA-256 nor MD5: damage on the way would be noticed only by a restore"
        yield problem("checksums", detail, "use another store, or one that is reached without a proxy in between")


def check_lifecycle(bucket: BucketInspection, settings: Settings) -> Iterator[Finding]:
    """Look at the rules that apply to what b2s writes.

    Raises:
        StoreError: They could not be asked for.
    """
    try:
        rules = bucket.lifecycle_rules()
    except AccessDenied as error:
        cure = "allow s3:GetLifecycleConfiguration, or look yourself (docs/credentials.md)"
        yield warning("lifecycle", f"the bucket's lifecycle rules may not be read: {error.message}", cure)
        return
    if rules is None:
        detail = "this store has no lifecycle API; b2s aborts its own unfinished uploads at the next run"
        yield ok("lifecycle", detail)
        return
    concerned = [rule for rule in rules if not rule.tagged and _overlaps(rule.prefix, settings.s3.prefix)]
    aborting = [rule for rule in concerned if rule.abort_days is not None]
    if not aborting:
        detail = "no rule aborts incomplete uploads; those of a host that is gone would be billed for ever"
        yield warning("lifecycle", detail, "add AbortIncompleteMultipartUpload after 30 days (docs/sizes-and-costs.md)")
    for rule in aborting:
        if rule.abort_days is not None and rule.abort_days < ABORT_DAYS_MIN:
            detail = f"rule {rule.rule_id} aborts uploads after {rule.abort_days} days; an interrupted one starts anew"
            yield warning("lifecycle", detail, f"let it wait {ABORT_DAYS_MIN} days or more, 30 is a good number")
        else:
            yield ok("lifecycle", f"rule {rule.rule_id} aborts incomplete uploads after {rule.abort_days} days")
    for rule in concerned:
        yield from _harmful(rule)


def _harmful(rule: LifecycleRule) -> Iterator[Finding]:
    """Look at what a rule does to objects that are complete."""
    if rule.expire_days is not None:
        when = f"after {rule.expire_days} days" if rule.expire_days else "on a fixed date"
        detail = f"rule {rule.rule_id} deletes objects {when}: chains lose their chunks and manifests"
        yield problem("lifecycle", detail, "remove the rule, or keep it away from this prefix")
    # A manifest of a small source has some KiB.
    if rule.archive_days is not None and rule.bytes_over < 128 * 1024 * 1024:
        detail = f"rule {rule.rule_id} archives manifests too, after {rule.archive_days} days; every run reads them"
        cure = "set s3.storage_class.chunks instead of the rule, or let it spare objects up to 128 MiB"
        yield problem("lifecycle", detail, cure)


def _overlaps(rule_prefix: str, prefix: str) -> bool:
    ours = sources_prefix(prefix)
    return ours.startswith(rule_prefix) or rule_prefix.startswith(ours)


def check_storage_class(settings: Settings) -> Iterator[Finding]:
    """Look at classes that bill every object for a minimum time, beside how often fulls are made."""
    chosen = settings.s3.storage_class.chunks
    days = BILLED_DAYS_MIN.get(chosen, 0)
    often = [
        source.name for source in settings.sources if settings.schedule_of(source).full_every < timedelta(days=days)
    ]
    if often:
        detail = f"{chosen} bills every object for {days} days, and fulls are made more often ({', '.join(often)})"
        cure = f"let schedule.full_every be {days}d or more; deleting old chains earlier saves nothing"
        yield warning("storage_class", detail, cure)
    else:
        billed = f"; every object is billed for {days} days at least" if days else ""
        yield ok("storage_class", f"chunks are stored as {chosen}{billed}")
    archived = chosen in ("GLACIER", "DEEP_ARCHIVE")
    if archived and settings.restore.retrieval_days < 3:
        days_kept = settings.restore.retrieval_days
        detail = f"retrieved copies stay readable for {days_kept} days, and a restore must end within them"
        yield warning("storage_class", detail, "set restore.retrieval_days to 7 or more")


def check_content(bucket: BucketInspection, settings: Settings) -> Iterator[Finding]:
    """Look for bytes that are stored, billed, and belong to no backup.

    Raises:
        StoreError: S3 could not be asked.
    """
    names = [source.name for source in settings.sources]
    for source in Catalog.of(bucket, settings.s3.prefix, names).document()["sources"]:
        name = source["source"]
        for trouble in source.get("problems", [])[:3]:
            cure = "see `b2s verify`; `b2s backup --full` starts a new chain"
            yield problem("stored_data", f"{name}: {trouble}", cure)
        lost = source.get("unreferenced_bytes") or 0
        if lost:
            detail = f"{name}: {format_bytes(lost)} of completed chunks belong to no backup"
            cure = "a running or interrupted backup may own them; else `b2s list --json` helps to find them"
            yield warning("unreferenced", detail, cure)
        else:
            yield ok("unreferenced", f"{name}: no completed chunk is without a backup")


def as_problem(check: str, error: B2sError | OSError) -> Finding:
    """Return the finding for a check that could not be made."""
    if isinstance(error, B2sError):
        return problem(check, error.message, error.hint or "see the message")
    where = f"{error.filename}: " if error.filename else ""
    return problem(check, f"{where}{error.strerror or error}", "look at the message")
