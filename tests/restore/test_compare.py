"""Every way in which a restored tree can differ is seen and named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from b2s.errors import Stopped
from b2s.restore.compare import DIFFERENCES_SHOWN_MAX, Comparison, compare_trees


def make(top: Path) -> Path:
    """Make a small tree of every kind, with fixed times."""
    (top / "directory").mkdir(parents=True)
    (top / "directory" / "file").write_bytes(b"content" * 300_000)
    (top / "empty").touch()
    (top / "link").symlink_to("directory/file")
    os.mkfifo(top / "fifo")
    os.link(top / "empty", top / "hard-link")
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    return top


def compare(left: Path, right: Path, sample: int | None = None) -> Comparison:
    """Compare without anybody asking to stop."""
    return compare_trees(left, right, sample, lambda: None)


def rewrite(path: Path) -> None:
    """Change one byte and keep the times."""
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"X")
    os.utime(path, ns=(1, 1))


def replace_link(path: Path) -> None:
    """Let a link lead elsewhere."""
    path.unlink()
    path.symlink_to("directory/elsw")
    os.utime(path, ns=(1, 1), follow_symlinks=False)


def replace_by_directory(path: Path) -> None:
    """Put a directory in the place of a file."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("directory/file", rewrite, "other content"),
        ("directory/file", lambda path: path.chmod(0o600), "another mode"),
        ("directory/file", lambda path: os.utime(path, ns=(1, 2)), "another mtime_ns"),
        ("directory/file", lambda path: os.truncate(path, 5), "another size"),
        ("directory/file", lambda path: os.setxattr(path, "user.name", b"value"), "extended attributes"),
        ("hard-link", lambda path: path.unlink(), "is missing"),
        ("new", lambda path: path.touch(), "is not in the snapshot"),
        ("link", replace_link, "links to something else"),
        ("fifo", replace_by_directory, "another kind"),
    ],
)
def test_difference_is_named(tmp_path: Path, name: str, change: Callable[[Path], object], told: str) -> None:
    """A change of content, metadata, names or kinds is told with the path it is at."""
    left, right = make(tmp_path / "left"), make(tmp_path / "right")
    assert compare(left, right).differences == []
    change(right / name)
    os.utime(right / "directory", ns=(1, 1))
    result = compare(left, right)
    assert any(name in line and told in line for line in result.differences), result.differences
    assert result.different == len(result.differences)


def test_counts_and_sample(tmp_path: Path) -> None:
    """Everything is counted; a sample reads so many files and no more, and still compares all metadata."""
    left, right = make(tmp_path / "left"), make(tmp_path / "right")
    whole = compare(left, right)
    assert (whole.entries, whole.files, whole.content_bytes) == (7, 3, 2_100_000)
    assert compare(left, right, sample=2).files == 2
    (right / "fifo").chmod(0o600)
    assert compare(left, right, sample=1).different == 1


def test_many_differences_are_counted_and_few_shown(tmp_path: Path) -> None:
    """The report stays short, the count is whole."""
    (tmp_path / "left").mkdir()
    (tmp_path / "right").mkdir()
    for number in range(50):
        (tmp_path / "right" / f"new-{number}").touch()
    result = compare(tmp_path / "left", tmp_path / "right")
    assert (result.different, len(result.differences)) == (50, DIFFERENCES_SHOWN_MAX)


def test_stop_ends_it(tmp_path: Path) -> None:
    """A stop request ends the comparison."""

    def stop() -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        compare_trees(make(tmp_path / "left"), make(tmp_path / "right"), None, stop)
