"""X02: no text, however broken, makes the config parser fail in a way of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from b2s.adapters.config_file import check_text
from b2s.adapters.config_problems import all_keys
from b2s.core.settings import Settings
from b2s.core.units import parse_duration, parse_size

SAMPLE = (Path(__file__).parents[2] / "sample-config.yaml").read_text()
SECONDS_MAX = 10.0
KEYS = sorted({str(key[-1]) for key in all_keys(Settings, ())} | {"name", "path", "sources", "bogus", "<<"})

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["32MiB", "7d", "/srv", "local", "s3://x", "../x", "02:00"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=30,
)


def check(text: str) -> None:
    """Parse a text; there are settings exactly where there is no problem, and every problem is one line."""
    begun = time.monotonic()
    found, problems = check_text(text)
    assert (found is not None and not problems) or problems
    assert all(problem.line >= 1 and len(problem.text) < 20_000 for problem in problems)
    assert time.monotonic() - begun < SECONDS_MAX


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Any characters at all."""
    check(text)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="{}[]:,-&*!|>'\"%@`#?~ \n\tab1<", max_size=80))
def test_any_punctuation(text: str) -> None:
    """YAML's own punctuation in any order."""
    check(text)


@settings(deadline=None, max_examples=200)
@given(values)
def test_any_structure(value: Any) -> None:
    """Right and wrong keys with any values in any nesting."""
    check(json.dumps(value))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_sample(data: st.DataObject) -> None:
    """The sample with a piece cut out and another put in."""
    start = data.draw(st.integers(0, len(SAMPLE)))
    end = data.draw(st.integers(start, min(len(SAMPLE), start + 200)))
    check(SAMPLE[:start] + data.draw(st.text(max_size=10)) + SAMPLE[end:])


@given(st.text(max_size=60))
def test_sizes_and_durations(text: str) -> None:
    """Only ValueError comes out of the unit parsers."""
    for parse in (parse_size, parse_duration):
        try:
            parse(text)
        except ValueError:
            continue
