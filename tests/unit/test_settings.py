"""The models: defaults, overrides, strictness, and the texts made from them."""

from __future__ import annotations

import ast
import json
from datetime import time, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from b2s.adapters import config_file
from b2s.adapters.config_problems import all_keys
from b2s.adapters.config_table import config_table
from b2s.adapters.yaml_text import read_yaml
from b2s.core.limits import GIB, MIB, TIB
from b2s.core.settings import Settings
from b2s.core.store_settings import S3Settings

ROOT = Path(__file__).parents[2]
SMALLEST = {"sources": [{"name": "data", "path": "/srv/data"}], "s3": {"bucket": "my-backups"}}


def settings_of(**sections: object) -> Settings:
    """Build settings from the smallest config and some sections more."""
    return Settings.model_validate({**SMALLEST, **sections})


def test_sample_config_is_the_defaults() -> None:
    """The sample parses to exactly what leaving everything out gives."""
    assert config_file.load(ROOT / "sample-config.yaml", check_host=False) == settings_of()


def test_sample_config_names_every_key() -> None:
    """No key of the models is missing in the sample."""
    lines = read_yaml((ROOT / "sample-config.yaml").read_text()).lines
    wanted = set(all_keys(Settings, ()))
    wanted |= {("sources", 0, key) for key in ("name", "path", "schedule", "snapshots", "send")}
    assert wanted <= set(lines)


def test_docs_hold_the_table_of_the_models() -> None:
    """docs/configuration.md is up to date (scripts/config-table writes it), and has no key more."""
    whole = f"<!-- table: scripts/config-table -->\n{config_table()}<!-- end of table -->\n"
    assert whole in (ROOT / "docs" / "configuration.md").read_text()


def test_every_key_is_read_by_somebody() -> None:
    """No key does nothing: some module beside the models and their contradictions reads each of them."""
    told_apart = {ROOT / "b2s/core" / name for name in ("settings.py", "contradictions.py")}
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "b2s").rglob("*.py")) if path not in told_apart]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = set(all_keys(Settings, ()))
    sections = {path[:-1] for path in keys}
    assert {path[-1] for path in keys - sections} <= read


def test_every_key_is_described() -> None:
    """Each key has a meaning and says what is allowed, for docs and messages."""
    schema = config_file.json_schema()
    models = [schema, *schema["$defs"].values()]
    fields = [field for model in models for field in model.get("properties", {}).values()]
    assert len(fields) > 60
    assert all(field.get("allowed") for field in fields)
    assert all(field.get("description") or "$ref" in field for field in fields)


def test_defaults_have_their_types() -> None:
    """Sizes are bytes, durations timedeltas, run_at a time of day."""
    settings = settings_of()
    assert settings.s3.segment_size == 32 * 1024**2
    assert settings.s3.chunk_size == 200 * 1024**3
    assert settings.s3.retry_for == timedelta(minutes=30)
    assert settings.schedule.run_at == time(2, 0)
    assert settings.spool.size == 8 * 1024**3
    assert settings.log.file is None


def test_a_source_overrides_only_what_it_names() -> None:
    """The keys of a source's own section win, the others come from the common one, not from the defaults."""
    settings = Settings.model_validate(
        {
            "schedule": {"full_every": "30d", "max_chain_length": 5},
            "send": {"protocol": 2},
            "sources": [
                {"name": "a", "path": "/a", "schedule": {"max_chain_length": None, "incremental_every": "1h"}},
                {"name": "b", "path": "/b", "send": {"compressed_data": True}},
            ],
            "s3": {"bucket": "my-backups"},
        }
    )
    own, common = settings.schedule_of(settings.sources[0]), settings.schedule_of(settings.sources[1])
    assert (own.full_every, own.incremental_every, own.max_chain_length) == (
        timedelta(days=30),
        timedelta(hours=1),
        None,
    )
    assert common == settings.schedule
    assert settings.send_of(settings.sources[1]).protocol == 2
    assert settings.source("b") is settings.sources[1]
    assert settings.source("c") is None


@pytest.mark.parametrize(
    ("section", "sse"),
    [
        ({}, "AES256"),
        ({"endpoint_url": "http://localhost:9000"}, "none"),
        ({"endpoint_url": "http://localhost:9000", "sse": "AES256"}, "AES256"),
        ({"sse": "aws:kms", "kms_key_id": "alias/x"}, "aws:kms"),
        ({"sse": "none"}, "none"),
    ],
)
def test_encryption_defaults_to_what_the_store_can_do(section: dict[str, str], sse: str) -> None:
    """AWS gets AES256, another store none, unless the file says otherwise."""
    assert S3Settings.model_validate({"bucket": "my-backups", **section}).effective_sse == sse


def test_models_refuse_contradictions_by_themselves() -> None:
    """Settings that were not read from a file are checked as well."""
    with pytest.raises(ValidationError, match="multiple of segment_size"):
        S3Settings(bucket="my-backups", chunk_size=33 * 1024**2, segment_size=32 * 1024**2)


def test_settings_are_frozen() -> None:
    """Nothing can be changed after the checks."""
    with pytest.raises(ValidationError):
        settings_of().s3.bucket = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("segment", "chunk"),
    [
        (5 * MIB, 5 * MIB),
        (5 * MIB, 9_999 * 5 * MIB),
        (5 * MIB, 10_000 * 5 * MIB),
        (5 * GIB, 5 * GIB),
        (5 * GIB, 5 * TIB),
        (5 * TIB // 10_000 + 1, (5 * TIB // 10_000 + 1) * 9_999),
    ],
)
def test_sizes_at_their_bounds(segment: int, chunk: int) -> None:
    """Whatever S3 can take is taken: parts from 5 MiB to 5 GiB, up to 10,000 of them, up to 5 TiB together."""
    settings = S3Settings(bucket="my-backups", segment_size=segment, chunk_size=chunk)
    assert (settings.segment_size, settings.chunk_size) == (segment, chunk)


@pytest.mark.parametrize(
    ("segment", "chunk", "told"),
    [
        (5 * MIB - 1, 10 * (5 * MIB - 1), "segment_size"),
        (5 * GIB + 1, 2 * (5 * GIB + 1), "segment_size"),
        (0, 5 * MIB, "segment_size"),
        (-1, 5 * MIB, "segment_size"),
        (5 * MIB, 0, "chunk_size"),
        (5 * MIB, -5 * MIB, "chunk_size"),
        (1 * GIB, 5 * TIB + 1 * GIB, "chunk_size"),
        (32 * MIB, 48 * MIB, r"chunk_size: found 48MiB; allowed: a multiple of segment_size \(32MiB\)"),
        (5 * MIB, 5 * MIB + 1, "allowed: a multiple of segment_size"),
        (5 * MIB, 10_001 * 5 * MIB, r"which is 10,001 segments of 5MiB; allowed: at most 10,000 segments \(50000MiB"),
        (5 * TIB // 10_000, 10_001 * (5 * TIB // 10_000), "chunk_size"),
    ],
)
def test_sizes_beyond_their_bounds(segment: int, chunk: int, told: str) -> None:
    """What S3 could not take is refused before the run, with the setting that is wrong and what is allowed."""
    with pytest.raises(ValidationError, match=told):
        S3Settings(bucket="my-backups", segment_size=segment, chunk_size=chunk)


def test_effective_config_reads_back_as_itself() -> None:
    """What `config show` prints is a config file with the same meaning."""
    settings = settings_of(s3={"bucket": "my-backups", "max_bandwidth": 1500, "endpoint_url": "https://s3.example"})
    shown = config_file.dump_effective(settings)
    again, problems = config_file.check_text(shown)
    assert problems == []
    assert again is not None
    assert again.model_dump(exclude={"sources", "s3"}) == settings.model_dump(exclude={"sources", "s3"})
    assert again.s3.max_bandwidth == 1500
    assert again.s3.effective_sse == settings.s3.effective_sse


def test_schema_is_json() -> None:
    """The JSON Schema can be written and names every section."""
    schema = json.loads(json.dumps(config_file.json_schema()))
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["required"] == ["sources", "s3"]
