"""The slot lender keeps the spool within its budget and as small as it can."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from b2s.core.slots import LENT_AHEAD, SlotLender


@given(slots=st.integers(1, 12), data=st.data())
def test_never_more_slots_than_the_budget(slots: int, data: st.DataObject) -> None:
    """Whatever the order of filling and freeing, no slot is lent twice and none beyond the budget."""
    lender = SlotLender(slots)
    lent: list[int] = []
    filled: list[int] = []
    for _ in range(data.draw(st.integers(1, 60))):
        for slot in lender.lend():
            assert slot not in lent
            assert slot not in filled
            assert 0 <= slot < slots
            lent.append(slot)
        if lent and (not filled or data.draw(st.booleans())):
            slot = lent.pop(0)
            lender.filled(slot)
            filled.append(slot)
        elif filled:
            lender.freed(filled.pop(data.draw(st.integers(0, len(filled) - 1))))
    assert lender.allocated <= slots


def test_reuses_before_it_grows() -> None:
    """With uploaders that keep up, a large budget costs only the slots lent ahead."""
    lender = SlotLender(100)
    for _ in range(50):
        for slot in lender.lend():
            lender.filled(slot)
            lender.freed(slot)
    assert lender.allocated <= LENT_AHEAD + 1


def test_goes_on_with_the_slots_there_is_room_for() -> None:
    """A refused slot shrinks the budget to those that hold segments now; theirs are lent again when free."""
    lender = SlotLender(10)
    first, second = lender.lend()
    lender.filled(first)
    lender.refused(second)
    assert not lender.exhausted
    assert lender.lend() == []
    lender.freed(first)
    assert lender.lend() == [first]


def test_exhausted_when_not_even_one_fits() -> None:
    """When every slot is refused there is nothing to wait for."""
    lender = SlotLender(10)
    for slot in sorted(lender.lend(), reverse=True):
        lender.refused(slot)
    assert lender.exhausted
