"""Manifests as old buckets contain them."""

from __future__ import annotations

import json

import pytest

from b2s.core.chain import Stored, link_problems, resolve
from b2s.core.manifest_codec import decode, encode, sha256_of
from tests.format import sample

SAMPLES = {"manifest-v1-full.json": sample.full, "manifest-v1-incremental.json": sample.incremental}
# The bytes themselves are the contract: a file that is "repaired" together with the code proves nothing.
PINNED = {
    "manifest-v1-full.json": "782b030a54aec4b03d778be5d4d7330730b41b013cca40e6c598b7afa2d01c9c",
    "manifest-v1-incremental.json": "9c7fc62d2696a48efe243245ea03cb4350c689ccb658d285ac9a22a0fd17ce7b",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_stored_bytes_are_untouched(name: str) -> None:
    """A stored sample is the file that was once committed."""
    assert sha256_of((sample.HERE / name).read_bytes()) == PINNED[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_stored_sample_decodes(name: str) -> None:
    """Every stored sample decodes to the values it was made of."""
    expected = SAMPLES[name]()
    assert decode((sample.HERE / name).read_bytes(), key_sequence=expected.sequence, source="data") == expected


@pytest.mark.parametrize("name", SAMPLES)
def test_version_1_is_still_written_the_same(name: str) -> None:
    """Encoding the same manifest gives the same bytes as it did then."""
    assert encode(SAMPLES[name]()) == (sample.HERE / name).read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_layout_of_the_text_does_not_matter(name: str) -> None:
    """A sample that another JSON writer formatted and reordered decodes to the same values."""
    expected = SAMPLES[name]()
    parsed = json.loads((sample.HERE / name).read_bytes())
    for text in (json.dumps(parsed, indent=4, sort_keys=True), json.dumps(parsed, ensure_ascii=False)):
        assert decode(text.encode(), key_sequence=expected.sequence, source="data") == expected


def test_unknown_fields_are_ignored_everywhere() -> None:
    """Fields that a later b2s adds at any level do not stop this one."""
    parsed = json.loads((sample.HERE / "manifest-v1-full.json").read_bytes())
    for level in (parsed, parsed["host"], parsed["snapshot"], parsed["stream"], parsed["chunks"][0]):
        level["later"] = {"nested": [1.5, None, True, {"segment_sha256": ["x"]}]}
    assert decode(json.dumps(parsed).encode(), key_sequence=1, source="data") == sample.full()


def test_stored_samples_form_a_chain() -> None:
    """The stored incremental links to the stored full by the hash of its bytes."""
    world = {}
    for sequence, name in enumerate(SAMPLES, start=1):
        body = (sample.HERE / name).read_bytes()
        world[sequence] = Stored(decode(body, key_sequence=sequence, source="data"), sha256_of(body), len(body))
    assert [stored.manifest.sequence for stored in resolve(world, 2)] == [1, 2]
    assert link_problems(world) == ()
