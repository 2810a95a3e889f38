"""S14: archived chunks are asked for once, in one pass, whatever happens in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from b2s.adapters.clock import FakeClock
from b2s.errors import AccessDenied, RetrievalPending, Stopped, StoreRefused, StoreUnavailable, UsageError
from b2s.processes.signals import STOP_SIGNALS, StopRequest
from b2s.restore.compare import Depth
from tests.parts.faults import Hold, Respond, RewriteHeaders
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import MotoServer, S3Server
from tests.parts.tree import differences, tree_digest
from tests.parts.workspace import poll
from tests.restore.conftest import RETRIEVAL, Origin, Restorer

MakeOrigin = Callable[..., Origin]
Filesystems = Callable[..., LoopFilesystem]
ONGOING = RewriteHeaders({"x-amz-restore": 'ongoing-request="true"'})


@pytest.fixture
def frozen(make_origin: MakeOrigin, moto: MotoServer) -> Origin:
    """A full and two incrementals in DEEP_ARCHIVE."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    origin.change_and_back_up()
    origin.change_and_back_up()
    return origin


@pytest.fixture
def front(frozen: Origin, proxy: Callable[[S3Server], FaultProxy]) -> FaultProxy:
    """A proxy before the store of the frozen origin."""
    return proxy(frozen.uploader.server)


def restorer(origin: Origin, front: FaultProxy, **changes: Any) -> Restorer:
    """Return a restorer through the proxy whose waiting costs no time."""
    clock = FakeClock(datetime.now(UTC))
    return origin.restorer(front.endpoint_url, clock=clock, retrieval=replace(RETRIEVAL, **changes))


class Told(list[str]):
    """Lines that somebody hears of as they come."""

    def __init__(self, hear: Callable[[str], object], lines: list[str]) -> None:
        super().__init__()
        self._hear = hear
        self._lines = lines

    def append(self, line: str) -> None:
        """Tell and keep."""
        self._hear(line)
        self._lines.append(line)


def requests(front: FaultProxy) -> Counter[str]:
    """Return how often each key was asked for."""
    return Counter(call.key for call in front.history("RestoreObject"))


def expires(moment: datetime) -> RewriteHeaders:
    """Return the fault that says a temporary copy expires at a moment."""
    date = format_datetime(moment, usegmt=True)
    return RewriteHeaders({"x-amz-restore": f'ongoing-request="false", expiry-date="{date}"'})


def test_one_request_per_object_and_none_when_repeated(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """The whole chain is asked for in one pass before the first download; a second restore asks for nothing."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    restore(elsewhere.path / "first", depth=Depth.NONE)
    assert requests(front) == Counter(frozen.uploader.chunk_keys())
    asked = max(call.finished or 0 for call in front.history("RestoreObject"))
    assert all(call.started > asked for call in front.history("GetObject", key="chunks/"))
    assert differences(tree_digest(frozen.snapshots[-1]), tree_digest(elsewhere.path / "first")) == []
    again = loopfs()
    restore(again.path / "second", depth=Depth.NONE)
    assert requests(front) == Counter(frozen.uploader.chunk_keys())
    (said,) = [line for line in restore.lines if line.startswith("asking for")]
    assert "9 to 12 hours" in said


def test_no_wait_says_when_to_come_back(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """`--no-wait` exits 5 after asking, again 5 without asking while it is under way, and restores when it is ready."""
    elsewhere, restore = loopfs(), restorer(frozen, front, wait=False)
    cold = len(frozen.uploader.chunk_keys())
    rule = front.rule("HeadObject", ONGOING, nth=cold + 1, times=None)
    for _ in range(2):
        with pytest.raises(RetrievalPending, match="9 to 12 hours") as caught:
            restore(elsewhere.path / "restored")
        assert caught.value.exit_code == 5
        assert "UTC" in (caught.value.hint or "")
        assert list(elsewhere.path.iterdir()) == []
    assert rule.hits == 2 * cold
    assert requests(front) == Counter(frozen.uploader.chunk_keys())
    front.clear()
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert requests(front) == Counter(frozen.uploader.chunk_keys())


def test_waiting_polls_until_all_are_ready(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """Waiting asks at the interval, reports how far it is, and goes on by itself."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    cold = len(frozen.uploader.chunk_keys())
    front.rule("HeadObject", ONGOING, nth=cold + 1, times=3 * cold)
    started = restore.clock.monotonic()
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert restore.clock.monotonic() - started == 3 * 300
    assert [event["pending"] for event in restore.log.named("retrieval_waiting")] == [cold] * 3
    assert len(restore.log.named("retrieval_ready")) == 1
    assert requests(front) == Counter(frozen.uploader.chunk_keys())
    assert len(front.history("HeadObject", key="chunks/")) == cold * 5


def test_timeout_ends_the_waiting(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """After the timeout it exits 5; what was asked for is not lost."""
    elsewhere, restore = loopfs(), restorer(frozen, front, timeout=timedelta(minutes=12))
    front.rule("HeadObject", ONGOING, times=None)
    with pytest.raises(RetrievalPending):
        restore(elsewhere.path / "restored")
    assert restore.clock.monotonic() == 720
    assert requests(front) == Counter()


def test_pass_that_broke_off_is_finished_by_the_next(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """When asking fails half-way, the next run asks only for the rest."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    keys = frozen.uploader.chunk_keys()
    front.rule("RestoreObject", Respond(403, "AccessDenied"), key=keys[1])
    with pytest.raises(AccessDenied):
        restore(elsewhere.path / "restored")
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    accepted = Counter(call.key for call in front.history("RestoreObject") if call.upstream_status is not None)
    assert accepted == Counter(keys)


def test_already_in_progress_is_fine(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """409 RestoreAlreadyInProgress and throttling do not stop the pass."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    keys = frozen.uploader.chunk_keys()
    front.rule("RestoreObject", Respond(409, "RestoreAlreadyInProgress", forward=True), key=keys[0])
    front.rule("RestoreObject", Respond(503, "SlowDown"), key=keys[1])
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert (elsewhere.path / "restored").is_dir()


def test_tier_that_the_class_does_not_offer(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """Expedited is refused for DEEP_ARCHIVE before anything is asked for."""
    elsewhere, restore = loopfs(), restorer(frozen, front, tier="Expedited")
    with pytest.raises(UsageError, match="DEEP_ARCHIVE") as caught:
        restore(elsewhere.path / "restored")
    assert "Standard or Bulk" in (caught.value.hint or "")
    assert requests(front) == Counter()


def test_copy_that_expires_early_is_extended(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """A temporary copy that would be gone before the download ends is asked for again, once."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    restore(elsewhere.path / "first", depth=Depth.NONE)
    before = requests(front)
    key = frozen.uploader.chunk_keys()[0]
    front.rule("HeadObject", expires(datetime.now(UTC) + timedelta(minutes=10)), key=key)
    restore(loopfs().path / "second", depth=Depth.NONE)
    assert requests(front) - before == Counter([key])
    assert len(restore.log.named("retrieval_extended")) == 1


@pytest.mark.parametrize("refused", [False, True])
def test_copies_are_extended_while_the_download_runs(
    frozen: Origin, front: FaultProxy, loopfs: Filesystems, refused: bool
) -> None:
    """Days after the download began, what would expire soon is asked for again; a refusal does not end the download."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    clock, keys = restore.clock, frozen.uploader.chunk_keys()
    if refused:
        front.rule("RestoreObject", Respond(403, "AccessDenied"), nth=len(keys) + 1, times=None)

    def six_days_later(_pid: int, process: str) -> None:
        if process == "btrfs" and clock.monotonic() == 0:
            clock.sleep(6 * 86_400)

    restore.on_child = six_days_later
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert requests(front) == Counter(keys) + Counter(keys[:1] if refused else keys)
    assert len(restore.log.named("retrieval_extended")) == (0 if refused else len(keys))
    assert len(restore.log.named("retrieval_expires")) == (1 if refused else 0)
    assert differences(tree_digest(frozen.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []


def test_stop_while_a_copy_is_extended(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """A store that takes the call and says nothing does not hold up a stop."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    clock, keys = restore.clock, frozen.uploader.chunk_keys()
    front.rule("RestoreObject", Hold(), nth=len(keys) + 1, times=None)

    def stop_when_held() -> None:
        poll(lambda: bool(front.in_flight("RestoreObject")), seconds=30, what="the extension is under way")
        os.kill(os.getpid(), signal.SIGTERM)

    def six_days_later(_pid: int, process: str) -> None:
        if process == "btrfs" and clock.monotonic() == 0:
            threading.Thread(target=stop_when_held, daemon=True).start()
            clock.sleep(6 * 86_400)

    restore.on_child = six_days_later
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        restore.stop = StopRequest.install()
        began = time.monotonic()
        with pytest.raises(Stopped):
            restore(elsewhere.path / "restored", depth=Depth.NONE)
        assert time.monotonic() - began < 20
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_copy_that_cannot_be_extended_is_refused(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """Where asking again does not help, the restore is refused instead of breaking off in its middle."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    restore(loopfs().path / "first", depth=Depth.NONE)
    key = frozen.uploader.chunk_keys()[0]
    front.rule("HeadObject", expires(datetime.now(UTC) + timedelta(minutes=10)), key=key, times=None)
    with pytest.raises(StoreRefused, match="expires"):
        restore(elsewhere.path / "second")
    assert list(elsewhere.path.iterdir()) == []


def test_copies_that_come_early_outlive_the_last_one(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """With a slow tier some are readable days before the others; that is thought of when they are asked for."""
    elsewhere, restore = loopfs(), restorer(frozen, front, tier="Bulk", days=1)
    keys = frozen.uploader.chunk_keys()
    front.rule("HeadObject", ONGOING, key=keys[0], nth=2, times=3)
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert requests(front) == Counter(keys)
    assert restore.log.named("retrieval_extended") == []
    (asked,) = restore.log.named("retrieval_requested")
    assert (asked["days"], asked["hours_max"]) == (4, 48)


def test_what_it_takes_is_said_before_anything_is_asked(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """Objects, size and hours, also of the other tiers, stand in a line that comes before the first request."""
    restore = restorer(frozen, front)
    asked_before: list[int] = []
    lines = restore.lines
    restore.lines = Told(lambda line: asked_before.append(len(front.history("RestoreObject"))), lines)
    restore(loopfs().path / "restored", depth=Depth.NONE)
    (index,) = [index for index, line in enumerate(lines) if line.startswith("asking for 3 archived chunks")]
    assert asked_before[index] == 0
    assert "Standard: about 9 to 12 hours (Bulk: 24 to 48 hours)" in lines[index]
    assert "MiB" in lines[index]


def test_intelligent_tiering_in_an_archive_tier(
    make_origin: MakeOrigin, moto: MotoServer, proxy: Callable[[S3Server], FaultProxy], loopfs: Filesystems
) -> None:
    """What says in x-amz-archive-status that it is archived is asked for, in the form that S3 takes for it."""
    origin = make_origin(moto, size_bytes=1 << 20)
    origin.change_and_back_up()
    front, keys = proxy(moto), origin.uploader.chunk_keys()
    archived = {"x-amz-storage-class": "INTELLIGENT_TIERING", "x-amz-archive-status": "DEEP_ARCHIVE_ACCESS"}
    coming = RewriteHeaders({**archived, "x-amz-restore": 'ongoing-request="true"'})
    for key in keys:
        front.rule("HeadObject", RewriteHeaders(archived), key=key)
        front.rule("HeadObject", coming, key=key, times=2)
        front.rule("HeadObject", RewriteHeaders({"x-amz-storage-class": "INTELLIGENT_TIERING"}), key=key, times=None)
        front.rule("RestoreObject", Respond(202, None), key=key, times=None)
    elsewhere, restore = loopfs(), restorer(origin, front)
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert requests(front) == Counter(keys)
    (asked,) = restore.log.named("retrieval_requested")
    assert (asked["hours_min"], asked["hours_max"]) == (3, 12)
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []


def test_throttling_that_does_not_end(frozen: Origin, front: FaultProxy, loopfs: Filesystems) -> None:
    """A store that only throttles fails the pass after `retry_for`; repeated, it asks for the rest."""
    elsewhere, restore = loopfs(), restorer(frozen, front)
    restore.retry_for = timedelta(seconds=1)
    keys = frozen.uploader.chunk_keys()
    front.rule("RestoreObject", Respond(503, "SlowDown"), key=keys[-1], times=None)
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        restore(elsewhere.path / "restored")
    front.clear()
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    accepted = Counter(call.key for call in front.history("RestoreObject") if call.upstream_status is not None)
    assert accepted == Counter(keys)


def test_expedited_that_is_not_to_be_had_now(
    make_origin: MakeOrigin, moto: MotoServer, proxy: Callable[[S3Server], FaultProxy], loopfs: Filesystems
) -> None:
    """GLACIER offers Expedited; without capacity for it the refusal names another tier."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="GLACIER")
    front = proxy(moto)
    rule = front.rule("RestoreObject", Respond(503, "GlacierExpeditedRetrievalNotAvailable"), times=None)
    with pytest.raises(StoreRefused) as caught:
        restorer(origin, front, tier="Expedited")(loopfs().path / "restored")
    assert rule.hits == 1
    assert "--tier Standard" in (caught.value.hint or "")


def test_instant_retrieval_needs_no_request(
    make_origin: MakeOrigin, moto: MotoServer, proxy: Callable[[S3Server], FaultProxy], loopfs: Filesystems
) -> None:
    """GLACIER_IR is read at once."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="GLACIER_IR")
    front = proxy(moto)
    restorer(origin, front)(loopfs().path / "restored")
    assert requests(front) == Counter()
