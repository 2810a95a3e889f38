"""Two years of cron: every slot is backed up once, fulls come every 180 days, nothing slips."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from b2s.core.journal import BackupIntent
from b2s.core.model import ActionKind, Kind, Reason
from b2s.core.plan import Decision, PlanOptions, decide
from b2s.core.schedule import Slots
from b2s.core.world import BackupSummary, HeadChain, Health, SourceWorld, Unfinished
from tests.unit.planning import DAY, HOST, backup, begun, rhythm, snapshot_of, source

HOUR = timedelta(hours=1)
BEGIN = datetime(2026, 2, 1, tzinfo=UTC)  # a Sunday
END = datetime(2028, 2, 6, tzinfo=UTC)
PLACES = [("Europe/Berlin", "02:00"), ("America/New_York", "02:30"), ("Australia/Lord_Howe", "01:45")]


@dataclass
class Luck:
    """How often something goes wrong, per call."""

    seed: int = 0
    off: float = 0.0  # the host goes down for up to twelve days
    fails: float = 0.0  # the backup fails before anything is stored
    interrupted: float = 0.0  # the backup is cut off and can be resumed
    journal_lost: float = 0.0  # the state file is lost before the call
    snapshots_lost: float = 0.0  # somebody deletes all snapshots before the call


@dataclass
class Life:
    """One host for two years: cron calls, b2s decides, and the decision is carried out."""

    zone: ZoneInfo
    run_at: time
    luck: Luck
    committed: list[BackupSummary] = field(default_factory=list)
    calls: list[tuple[datetime, Decision]] = field(default_factory=list)
    journal: Unfinished | None = None
    _snapshot_is_here: bool = True

    def live(self, cron: list[datetime]) -> None:
        """Go through all calls of cron that find the host up."""
        dice = random.Random(self.luck.seed)
        down_until = cron[0]
        for now in cron:
            if now < down_until:
                continue
            if dice.random() < self.luck.off:
                down_until = now + dice.random() * 12 * DAY
                continue
            if dice.random() < self.luck.journal_lost:
                self.journal = None
            if dice.random() < self.luck.snapshots_lost:
                self._snapshot_is_here = False
                self.journal = self.journal and replace(self.journal, snapshot=None, send_parent=None)
            decision = self._decide(now, PlanOptions())
            resumed = decision.resume
            if self._execute(now, decision, dice.random()) and resumed is not None:
                options = PlanOptions().after_resume(resumed.intent.kind)
                self._execute(now, self._decide(now, options), dice.random())

    def world(self, now: datetime) -> SourceWorld:
        """Observe."""
        chain = self.chain()
        head = chain[-1] if chain else None
        return SourceWorld(
            name="data",
            now=now,
            rhythm=rhythm(slots=Slots(self.run_at, self.zone)),
            host_id=HOST.id,
            source=source(),
            candidates=(snapshot_of(head),) if head and self._snapshot_is_here else (),
            top=head.link if head else None,
            chain=HeadChain.of(chain, Health.WHOLE) if chain else None,
            unfinished=self.journal,
        )

    def chain(self) -> list[BackupSummary]:
        """Return the newest chain."""
        fulls = [index for index, made in enumerate(self.committed) if made.kind is Kind.FULL]
        return self.committed[fulls[-1] :] if fulls else []

    def day(self, moment: datetime) -> date:
        """Return the day a moment belongs to, by the wall clock alone (the test's own arithmetic)."""
        wall = moment.astimezone(self.zone)
        if wall.utcoffset() != (moment - 2 * HOUR).astimezone(self.zone).utcoffset():
            wall = max(wall, (moment - HOUR).astimezone(self.zone), key=lambda each: each.replace(tzinfo=None))
        return wall.date() if wall.replace(tzinfo=None).time() >= self.run_at else wall.date() - DAY

    def _decide(self, now: datetime, options: PlanOptions) -> Decision:
        decision = decide(self.world(now), options)
        self.calls.append((now, decision))
        return decision

    def _execute(self, now: datetime, decision: Decision, die: float) -> bool:
        """Carry a decision out, as far as luck allows; return whether a backup was committed."""
        if decision.action is ActionKind.SKIP:
            return False
        assert decision.action is not ActionKind.REFUSE
        if decision.resume is not None:
            made = self._made(decision.resume.intent.created_at, decision)
            assert made.backup_id == decision.resume.intent.backup_id
        else:
            made = self._made(now + timedelta(seconds=90), decision)
        if die < self.luck.fails:
            return False
        self.journal = None
        if die < self.luck.fails + self.luck.interrupted:
            previous = self.committed[-1] if self.committed else None
            parent = snapshot_of(previous) if previous and made.send_parent else None
            self.journal = Unfinished(begun(made, previous), snapshot_of(made), parent)
            return False
        self.committed.append(made)
        self._snapshot_is_here = True
        return True

    def _made(self, created_at: datetime, decision: Decision) -> BackupSummary:
        parent = self.committed[-1] if decision.kind is Kind.INCREMENTAL else None
        assert decision.sequence == len(self.committed) + 1
        return backup(decision.sequence, created_at, parent, previous=decision.previous)


def hourly(zone: ZoneInfo) -> list[datetime]:
    """Return cron's calls at minute 17 of every hour."""
    return [BEGIN + timedelta(minutes=17) + count * HOUR for count in range(int((END - BEGIN) / HOUR))]


def weekly(zone: ZoneInfo, run_at: time, seed: int) -> list[datetime]:
    """Return one call every Sunday, up to an hour after run_at by the wall clock, at another minute each time."""
    dice = random.Random(seed)
    sundays = [date(2026, 2, 1) + count * 7 * DAY for count in range(105)]
    jitter = [timedelta(minutes=dice.randrange(60)) for _ in sundays]
    walls = [datetime.combine(day, run_at, zone) + late for day, late in zip(sundays, jitter, strict=True)]
    return [wall.astimezone(UTC) for wall in walls]


@pytest.mark.parametrize(("zone_name", "run_at"), PLACES)
def test_hourly_cron_makes_one_backup_a_slot(zone_name: str, run_at: str) -> None:
    """Called every hour: a backup on each seventh day in the first call of its slot, a full on each 180th."""
    life = Life(ZoneInfo(zone_name), time.fromisoformat(run_at), Luck())
    life.live(hourly(life.zone))
    full_day = last_day = life.day(life.committed[0].created_at)
    for made in life.committed[1:]:
        expected = min(last_day + 7 * DAY, full_day + 180 * DAY)
        assert life.day(made.created_at) == expected
        assert life.day(made.created_at - HOUR) == expected - DAY  # no earlier call could have made it
        assert (made.kind is Kind.FULL) == (expected == full_day + 180 * DAY)
        last_day = expected
        full_day = expected if made.kind is Kind.FULL else full_day
    fulls = [made for made in life.committed if made.kind is Kind.FULL]
    assert len(fulls) == 1 + 730 // 180
    assert last_day + 7 * DAY >= life.day(END - HOUR)


@pytest.mark.parametrize(("zone_name", "run_at"), PLACES)
def test_weekly_cron_at_a_jittered_minute_never_skips_a_week(zone_name: str, run_at: str) -> None:
    """Called once a week, earlier or later in the hour: every call makes a backup, every 26th a full."""
    life = Life(ZoneInfo(zone_name), time.fromisoformat(run_at), Luck())
    cron = weekly(life.zone, life.run_at, seed=4)
    life.live(cron)
    assert len(life.committed) == len(cron)
    assert [made.sequence for made in life.committed if made.kind is Kind.FULL] == [1, 27, 53, 79, 105]


@pytest.mark.parametrize(("zone_name", "run_at"), PLACES)
def test_nothing_slips_or_doubles_on_a_bad_host(zone_name: str, run_at: str) -> None:
    """Off for days, failing, killed, its state or snapshots lost: what is due is tried, what is not is left alone."""
    luck = Luck(1, off=0.002, fails=0.15, interrupted=0.25, journal_lost=0.01, snapshots_lost=0.0002)
    life = Life(ZoneInfo(zone_name), time.fromisoformat(run_at), luck)
    life.live(hourly(life.zone))
    _check_calls(life)
    _check_backups(life)
    # The luck was bad enough to prove something:
    seen = {decision.reason for _, decision in life.calls}
    assert {Reason.INTERRUPTED, Reason.SEND_PARENT_MISSING, Reason.INTERVAL, Reason.FULL_INTERVAL} <= seen
    assert len(life.calls) < len(hourly(life.zone))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("zone_name", "run_at"), PLACES)
def test_no_week_is_left_out_on_a_bad_host(zone_name: str, run_at: str, seed: int) -> None:
    """The same with one call a week: every call that finds the host up tries what is due."""
    luck = Luck(seed, off=0.05, fails=0.15, interrupted=0.25, journal_lost=0.05, snapshots_lost=0.02)
    life = Life(ZoneInfo(zone_name), time.fromisoformat(run_at), luck)
    life.live(weekly(life.zone, life.run_at, seed))
    assert all(decision.action is not ActionKind.SKIP for _, decision in life.calls)
    _check_calls(life)
    _check_backups(life)


def _check_calls(life: Life) -> None:
    """Check that every call did something exactly when something was due by the wall clock's dates."""
    committed = iter(life.committed)
    upcoming = next(committed, None)
    last: BackupSummary | None = None
    full: BackupSummary | None = None
    for now, decision in life.calls:
        due = last is None or full is None or _days(life, last, now) >= 7 or _days(life, full, now) >= 180
        if decision.action is ActionKind.SKIP:
            assert not due, f"slipped at {now}"
        elif decision.reason is not Reason.INTERRUPTED:
            assert due, f"made too early at {now}"
        if upcoming is not None and decision.sequence == upcoming.sequence and _is_made(life, now, decision, upcoming):
            last, full = upcoming, upcoming if upcoming.kind is Kind.FULL else full
            upcoming = next(committed, None)
    assert upcoming is None


def _check_backups(life: Life) -> None:
    """Check numbers, distances and chains of everything that was committed."""
    assert [made.sequence for made in life.committed] == list(range(1, len(life.committed) + 1))
    assert len(life.committed) > 50
    full = life.committed[0]
    for older, made in zip(life.committed, life.committed[1:], strict=False):
        assert made.previous == older.link
        if made.kind is Kind.FULL:
            full = made
        else:
            assert made.send_parent == older.as_send_parent()
            assert _days(life, full, made.created_at) < 180
        due_full = made.kind is Kind.FULL and _days(life, full, made.created_at) == 0
        assert due_full or _days(life, older, made.created_at) >= 7


def _is_made(life: Life, now: datetime, decision: Decision, made: BackupSummary) -> bool:
    """Return whether this call committed this backup: the last call that worked on its number."""
    later = [each for moment, each in life.calls if moment > now and each.sequence == made.sequence]
    return not later


def _days(life: Life, made: BackupSummary, now: datetime) -> int:
    return (life.day(now) - life.day(made.created_at)).days


def test_intents_keep_their_moment_through_a_resume() -> None:
    """A backup resumed a day later still counts from the day of its snapshot."""
    life = Life(ZoneInfo("Europe/Berlin"), time(2, 0), Luck())
    made = backup(1, BEGIN)
    life.journal = Unfinished(begun(made), snapshot_of(made), None)
    life.live([BEGIN + 30 * HOUR, BEGIN + 31 * HOUR])
    intent: BackupIntent = begun(made).intent
    assert [each.created_at for each in life.committed] == [intent.created_at]
    assert [decision.action for _, decision in life.calls] == [ActionKind.RESUME, ActionKind.SKIP, ActionKind.SKIP]
