"""What a run was asked for, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from b2s.adapters.metrics_textfile import SourceFigures
from b2s.core.model import ActionKind
from b2s.core.plan import Decision, PlanOptions
from b2s.errors import B2sError, Stopped


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What the command line asked for."""

    sources: tuple[str, ...] = ()
    once: bool = False
    full: bool = False
    fresh: bool = False
    adopt: bool = False
    dry_run: bool = False
    no_s3: bool = False

    @property
    def plan(self) -> PlanOptions:
        """Return the part that planning needs."""
        return PlanOptions(once=self.once or self.full, full=self.full, fresh=self.fresh, adopt=self.adopt)


@dataclass(frozen=True, slots=True)
class SourceResult:
    """How one source ended."""

    source: str
    action: ActionKind
    reason: str
    ok: bool
    backup_id: str | None = None
    error: str | None = None
    hint: str | None = None


@dataclass(slots=True)
class RunResult:
    """How the run ended."""

    plan: list[Decision] = field(default_factory=list)
    sources: dict[str, SourceResult] = field(default_factory=dict)
    figures: dict[str, SourceFigures] = field(default_factory=dict)  # for monitoring, by source
    error: B2sError | None = None  # the first

    def note(self, error: B2sError) -> None:
        """Take in an error: the first one counts, unless somebody stopped the run."""
        if self.error is None or isinstance(error, Stopped):
            self.error = error

    def failed(self, source: str, error: B2sError) -> None:
        """Take in that a source failed, whatever was known of it before."""
        self.note(error)
        known = self.sources.get(source)
        self.sources[source] = SourceResult(
            source,
            known.action if known else ActionKind.REFUSE,
            known.reason if known else "",
            ok=False,
            error=error.message,
            hint=error.hint,
        )

    @property
    def exit_code(self) -> int:
        """Return 0 when everything due is done, else what the first error says."""
        if isinstance(self.error, Stopped):
            return 128 + self.error.signal_number
        return self.error.exit_code if self.error else 0
