"""How many workers a stream is worth. No I/O; the caller has the clock and asks the kernel.

Workers that only wait for a CPU take it from whom they work for: `btrfs send`, `btrfs receive`, and each other. Workers
that wait for the line are what makes it faster. So a stream begins with few, and gets more as long as it is held up
by them and the line is what they wait for: all there may be where they do little else, and at once where the store is
known to be far.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKERS_AT_FIRST = 2
FAR_SECONDS = 0.015  # a store in the same building answers sooner, one in another town later
HELD_UP_SECONDS = 0.1  # in sum, before there are twice as many
HELD_UP_SHARE = 0.2  # of the time, at least
WINDOW_SECONDS = 5.0  # what was longer ago says nothing about the line as it is now
LOOK_SECONDS = HELD_UP_SECONDS / 2  # how often it is worth looking
FIRST_SECONDS = 0.1  # for so long nothing can be expected of a stream that begins
IDLE_SHARE = 0.75  # of their time, from which on nobody but the line holds them
CROWDED_SHARE = 0.1  # of their time, that workers may wait for a CPU in any case


@dataclass(frozen=True, slots=True)
class CpuUse:
    """What workers had of the CPUs since they were started, in seconds, all of them together."""

    ran_seconds: float = 0.0
    waited_seconds: float = 0.0  # ready to run, and another had the CPU


@dataclass(slots=True)
class Appetite:
    """One stream's.

    Attributes:
        most: Workers there may be, at least 1.
        round_trip_seconds: What the store took for its fastest answer so far; 0 where nobody knows.
        workers: As many as there should be now.
    """

    most: int
    round_trip_seconds: float = 0.0
    workers: int = WORKERS_AT_FIRST
    _began: float | None = None  # seconds of the caller's clock, like all of these
    _since: float = 0.0
    _last: float = 0.0
    _held_up: float = 0.0  # since then
    _is_held_up: bool = False
    _cpu: CpuUse = CpuUse()  # until then

    def __post_init__(self) -> None:
        """Begin with a few, or with all there may be."""
        far = self.round_trip_seconds >= FAR_SECONDS
        self.workers = self.most if far else min(self.most, self.workers)

    @property
    def grows(self) -> bool:
        """Tell whether there may be more than now, so that it is worth looking often."""
        return self.workers < self.most

    def look(self, now_seconds: float, *, held_up: bool, begun: bool, cpu: CpuUse) -> int:
        """Return how many workers there should be.

        Args:
            now_seconds: Of a clock that never goes back.
            held_up: The stream could go on now if the workers were faster.
            begun: It has gone on before.
            cpu: Of all workers that there are now.
        """
        if self._began is None:
            self._began = self._since = self._last = now_seconds
        if self._is_held_up:
            self._held_up += now_seconds - self._last
        self._last = now_seconds
        self._is_held_up = held_up and (begun or now_seconds - self._began >= FIRST_SECONDS)
        elapsed = now_seconds - self._since
        if self._held_up >= max(HELD_UP_SECONDS, HELD_UP_SHARE * elapsed):
            waited, blocked = self._shares(elapsed, cpu)
            if blocked >= IDLE_SHARE:
                self.workers = self.most
            elif waited <= max(blocked / 2, CROWDED_SHARE):
                self.workers = min(self.most, 2 * self.workers)
        elif elapsed < WINDOW_SECONDS:
            return self.workers
        self._since, self._held_up, self._cpu = now_seconds, 0.0, cpu
        return self.workers

    def _shares(self, elapsed_seconds: float, cpu: CpuUse) -> tuple[float, float]:
        """Return for which shares of their time the workers waited for a CPU, and for the line.

        Measured 2026-11 on two cores: of the time of two uploaders beside their server a third was waiting for a CPU
        and a third for the server; with a round trip of 30 ms and 50 MB/s per connection it was 1 % and 93 %.
        """
        time_seconds = elapsed_seconds * self.workers
        waited = (cpu.waited_seconds - self._cpu.waited_seconds) / time_seconds
        ran = (cpu.ran_seconds - self._cpu.ran_seconds) / time_seconds
        return waited, 1.0 - waited - ran
