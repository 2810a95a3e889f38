"""Where the configured paths really lie on this host."""

from __future__ import annotations

import os
from collections.abc import Iterator

from b2s.core.contradictions import Contradiction, is_inside
from b2s.core.settings import Settings


def host_contradictions(settings: Settings) -> list[Contradiction]:
    """Return which paths cannot be used together on this host; nothing is changed.

    Symbolic links are followed, so that one directory under two names is noticed.
    """
    return [*_same_sources(settings), *_snapshots_in_sources(settings)]


def _same_sources(settings: Settings) -> Iterator[Contradiction]:
    real = [os.path.realpath(source.path) for source in settings.sources]
    for index, path in enumerate(real):
        for earlier, other in enumerate(real[:index]):
            written, other_written = settings.sources[index].path, settings.sources[earlier].path
            if written == other_written or is_inside(written, other_written) or is_inside(other_written, written):
                continue  # the models have said so already
            if path == other or is_inside(path, other) or is_inside(other, path):
                yield Contradiction(
                    (("sources", index, "path"), ("sources", earlier, "path")),
                    f"{written}, which is {path}",
                    f"paths that do not lie inside each other; sources[{earlier}] is {other}",
                )


def _snapshots_in_sources(settings: Settings) -> Iterator[Contradiction]:
    for key, base_dir in settings.base_dirs():
        for index, source in enumerate(settings.sources):
            if base_dir != source.path and is_part_of(source.path, base_dir):
                yield Contradiction(
                    (key, ("sources", index, "path")),
                    f"{base_dir}, which is part of {source.path} (sources[{index}])",
                    "a directory outside, or in a nested subvolume that exists already",
                )


def is_part_of(source: str, directory: str) -> bool:
    """Return whether a snapshot of the source would hold this directory.

    It does when it lies below and no nested subvolume or mount begins in between: those have a `st_dev` of their
    own. What does not exist yet, or cannot be looked at, counts as a plain directory.
    """
    real_source, real_directory = os.path.realpath(source), os.path.realpath(directory)
    if real_directory == real_source:
        return True
    if not is_inside(real_directory, real_source):
        return False
    try:
        device = os.stat(real_source).st_dev
        path = real_source
        for name in os.path.relpath(real_directory, real_source).split("/"):
            path = os.path.join(path, name)
            if os.stat(path).st_dev != device:
                return False
    except OSError:
        return True
    return True
