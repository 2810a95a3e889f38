"""Whether the snapshot directory is part of a source, asked of a real filesystem."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import config_file
from b2s.adapters.source_paths import is_part_of
from b2s.errors import ConfigError


def write_config(path: Path, base_dir: Path, *sources: Path) -> Path:
    """Write a config file with these sources and this snapshot directory."""
    entries = "".join(f"  - {{name: s{index}, path: {source}}}\n" for index, source in enumerate(sources))
    path.write_text(f"sources:\n{entries}snapshots: {{base_dir: {base_dir}}}\ns3: {{bucket: my-backups}}\n")
    return path


def test_a_nested_subvolume_is_no_part_of_its_source(loopfs: Any, tmp_path: Path) -> None:
    """Snapshots may lie in a nested subvolume, also in a directory of it yet to be made, and nowhere else inside."""
    root = Path(loopfs().path)
    source = root / "data"
    nested = source / "inner"
    for subvolume in (source, nested):
        subprocess.run(["btrfs", "subvolume", "create", str(subvolume)], check=True, capture_output=True)
    (source / "plain").mkdir()
    assert not is_part_of(str(source), str(nested))
    assert not is_part_of(str(source), str(nested / "snapshots"))
    assert not is_part_of(str(source), str(root / "data-snapshots"))
    assert is_part_of(str(source), str(source / "plain"))
    assert is_part_of(str(source), str(source / "missing" / "inner"))
    config = tmp_path / "config.yaml"
    assert config_file.load(write_config(config, nested / "snapshots", source))
    with pytest.raises(ConfigError, match=r":3: snapshots\.base_dir: .* which is part of"):
        config_file.load(write_config(config, source / "plain", source))
    assert sorted(entry.name for entry in source.iterdir()) == ["inner", "plain"]
    assert list(nested.iterdir()) == []


def test_links_do_not_hide_that_paths_are_the_same(tmp_path: Path) -> None:
    """A source under a second name, and a snapshot directory behind a link, are noticed."""
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    config = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match=r":3: sources\[1\]\.path: "):
        config_file.load(write_config(config, tmp_path / "snapshots", data, tmp_path / "link"))
    with pytest.raises(ConfigError, match=r":3: snapshots\.base_dir: "):
        config_file.load(write_config(config, tmp_path / "link" / "snapshots", data))
    assert config_file.load(write_config(config, tmp_path / "link" / "snapshots", data), check_host=False)
