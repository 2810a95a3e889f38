"""All checks, one after the other: what one of them cannot say does not keep the next from speaking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from b2s.core.settings import Settings
from b2s.doctor import host_checks, source_checks, spool_checks, state_checks, store_checks
from b2s.doctor.finding import Finding, ok
from b2s.errors import B2sError, Stopped


def examine(settings: Settings, stop: Callable[[], None]) -> Iterator[Finding]:
    """Yield every finding, as it is found.

    Args:
        settings: The config.
        stop: Raises `Stopped` when nobody wants to know any more.
    """
    yield from _guarded("tools", lambda: host_checks.check_tools(settings))
    yield from _guarded("root", host_checks.check_root)
    yield from _guarded("directories", lambda: host_checks.check_directories(settings))
    yield from _guarded("state", lambda: state_checks.check_state(settings))
    for source in settings.sources:
        stop()
        yield from _guarded("source", lambda source=source: source_checks.check_source(settings, source))  # type: ignore[misc]
    yield from _guarded("spool", lambda: spool_checks.check_spool(settings))
    yield from _guarded("storage_class", lambda: store_checks.check_storage_class(settings))
    yield from _examine_store(settings, stop)


def _examine_store(settings: Settings, stop: Callable[[], None]) -> Iterator[Finding]:
    """Ask the store; without credentials or a bucket the rest would only say the same again."""
    try:
        bucket = store_checks.inspected(settings.s3, stop)
    except Stopped:
        raise
    except B2sError as error:
        yield store_checks.as_problem("credentials", error)
        return
    try:
        yield ok("credentials", "found; what they allow is seen below")
        reached = list(_guarded("bucket", lambda: store_checks.check_reachable(bucket)))
        yield from reached
        if any(finding.check == "bucket" and finding.level != "ok" for finding in reached):
            return
        yield from _guarded("store", lambda: store_checks.check_store(bucket))
        yield from _guarded("lifecycle", lambda: store_checks.check_lifecycle(bucket, settings))
        yield from _guarded("stored_data", lambda: store_checks.check_content(bucket, settings))
    finally:
        bucket.close()


def _guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of one check; its failure is one, too."""
    try:
        yield from findings()
    except Stopped:
        raise
    except (B2sError, OSError) as error:
        yield store_checks.as_problem(check, error)
