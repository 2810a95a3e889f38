"""Which spool slots may be filled: those that were before, and a new one where none of them is free."""

from __future__ import annotations

from dataclasses import dataclass, field

LENT_AHEAD = 2  # the one being filled and the next: the chunker never waits for a message while there is room


@dataclass(slots=True)
class SlotLender:
    """Lends at most `slots` slots; the chunker fills as few different ones as the uploaders' speed allows.

    Attributes:
        slots: The budget.
        allocated: How many different slots were ever filled; times the slot size it is the peak of the spool.
        exhausted: True when a slot was refused for want of room and no other slot is left to wait for.
    """

    slots: int
    allocated: int = 0
    exhausted: bool = False
    _fresh: int = 0  # the lowest slot never lent
    _free: list[int] = field(default_factory=list)
    _lent: set[int] = field(default_factory=set)  # at the chunker, not filled yet
    _filled: set[int] = field(default_factory=set)

    @property
    def in_use(self) -> int:
        """Return how many slots hold a segment that is not stored yet."""
        return len(self._filled)

    @property
    def lent(self) -> int:
        """Return how many slots the chunker has and has not filled."""
        return len(self._lent)

    def lend(self) -> list[int]:
        """Return the slots to hand to the chunker now: all that are free again, and new ones so that it has two."""
        lent, self._free = self._free, []
        while len(self._lent) + len(lent) < LENT_AHEAD and self._fresh < self.slots:
            lent.append(self._fresh)
            self._fresh += 1
        self._lent.update(lent)
        return lent

    def filled(self, slot: int) -> None:
        """Take in that the chunker filled a slot."""
        self._lent.discard(slot)
        self._filled.add(slot)
        self.allocated = max(self.allocated, slot + 1)

    def freed(self, slot: int) -> None:
        """Take in that the content of a slot is no longer needed."""
        self._filled.discard(slot)
        self._free.append(slot)

    def refused(self, slot: int) -> None:
        """Take in that the filesystem has no room for a slot: from now on, only those it had room for."""
        self._lent.discard(slot)
        self.slots = min(self.slots, slot)
        self._fresh = max(self._fresh, self.slots)
        self._free = [free for free in self._free if free < self.slots]
        usable = self._filled or self._free or any(lent < self.slots for lent in self._lent)
        self.exhausted = not usable
