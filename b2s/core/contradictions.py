"""Settings that are fine one by one and impossible together: the rules, on plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from b2s.core.limits import OBJECT_BYTES_MAX, PARTS_PER_UPLOAD_MAX
from b2s.core.units import exact_size, format_bytes

KeyPath = tuple[str | int, ...]  # ("sources", 0, "path")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two or more settings that cannot be true together."""

    keys: tuple[KeyPath, ...]  # the first is the one to report
    found: str
    allowed: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{key_name(self.keys[0])}: found {self.found}; allowed: {self.allowed}"


def key_name(path: KeyPath) -> str:
    """Return a key path as people write it: `sources[0].path`."""
    name = ""
    for step in path:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name


def is_inside(path: str, directory: str) -> bool:
    """Return whether an absolute path lies below a directory; a directory is not below itself."""
    return path != directory and path.startswith(directory.rstrip("/") + "/")


def impossible_sizes(chunk_size: int, segment_size: int) -> Iterator[Contradiction]:
    """Yield why no multipart upload can be cut by these sizes, in bytes; each is within its own bounds."""
    keys: tuple[KeyPath, ...] = (("s3", "chunk_size"), ("s3", "segment_size"))
    chunk, segment = exact_size(chunk_size), exact_size(segment_size)
    if chunk_size % segment_size:
        yield Contradiction(keys, chunk, f"a multiple of segment_size ({segment})")
    elif chunk_size // segment_size > PARTS_PER_UPLOAD_MAX:
        most = min(segment_size * PARTS_PER_UPLOAD_MAX, OBJECT_BYTES_MAX)
        yield Contradiction(
            keys,
            f"{chunk}, which is {chunk_size // segment_size:,} segments of {segment}",
            f"at most {PARTS_PER_UPLOAD_MAX:,} segments ({exact_size(most)}, about {format_bytes(most)}), "
            "or a bigger segment_size",
        )


def key_without_kms(kms_key_id: str | None, sse: str | None) -> Iterator[Contradiction]:
    """Yield a key for an encryption that takes none."""
    if kms_key_id is not None and sse != "aws:kms":
        yield Contradiction((("s3", "kms_key_id"), ("s3", "sse")), "a key", 'only null, unless sse is "aws:kms"')


def spool_too_small(spool_size: int, segment_size: int) -> Iterator[Contradiction]:
    """Yield a spool that holds not one segment; both in bytes."""
    if spool_size < segment_size:
        yield Contradiction(
            (("spool", "size"), ("s3", "segment_size")),
            exact_size(spool_size),
            f"at least one segment ({exact_size(segment_size)})",
        )


def shared_files(files: Sequence[tuple[KeyPath, str | None]]) -> Iterator[Contradiction]:
    """Yield every file that has two uses; None is no file."""
    for index, (key, path) in enumerate(files):
        for other_key, other in files[:index]:
            if path is not None and path == other:
                yield Contradiction((key, other_key), path, f"another file than that of {key_name(other_key)}")


def sources_not_apart(sources: Sequence[tuple[str, str]]) -> Iterator[Contradiction]:
    """Yield sources, each a name and a path, that share a name or a path or lie inside each other."""
    for index, (name, path) in enumerate(sources):
        for earlier, (other_name, other_path) in enumerate(sources[:index]):
            there = f"sources[{earlier}]"
            if name == other_name:
                names: tuple[KeyPath, ...] = (("sources", index, "name"), ("sources", earlier, "name"))
                yield Contradiction(names, name, f"another name than that of {there}")
            paths: tuple[KeyPath, ...] = (("sources", index, "path"), ("sources", earlier, "path"))
            if path == other_path:
                yield Contradiction(paths, path, f"each path once; {there} has it already")
            elif is_inside(path, other_path) or is_inside(other_path, path):
                yield Contradiction(paths, path, f"paths that do not lie inside each other; {there} is {other_path}")


def snapshots_on_sources(base_dirs: Sequence[tuple[KeyPath, str]], paths: Sequence[str]) -> Iterator[Contradiction]:
    """Yield snapshot directories that are the source at one of these paths itself."""
    for key, base_dir in base_dirs:
        for index, path in enumerate(paths):
            if base_dir == path:
                yield Contradiction(
                    (key, ("sources", index, "path")), base_dir, f"another directory than that of sources[{index}]"
                )


def compressed_in_protocol_1(sections: Sequence[tuple[KeyPath, bool, int]]) -> Iterator[Contradiction]:
    """Yield sections `send`, each with its compressed_data and protocol in force, that ask for what 1 has not."""
    for key, compressed_data, protocol in sections:
        if compressed_data and protocol != 2:
            yield Contradiction(
                ((*key, "compressed_data"), (*key, "protocol"), ("send", "protocol"), ("send", "compressed_data")),
                "true",
                f"false, unless protocol is 2 (it is {protocol})",
            )
