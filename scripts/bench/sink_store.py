"""What the sink remembers, as files in one directory: several processes and several sinks may share it.

<root>/<bucket>/objects/<quoted key>      JSON: size, ETag, checksum, and the files that hold its bytes (or none)
<root>/<bucket>/uploads/<id>/key          the key it is for
<root>/<bucket>/uploads/<id>/parts        one JSON line per stored part, appended in one write
<root>/<bucket>/data/<random>             bytes, where they are kept
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, unquote


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an upload."""

    number: int
    bytes: int
    etag: str  # without the quotes
    sha256: str  # base64, empty where none was declared
    file: str  # below data/, empty where the bytes were thrown away


@dataclass(frozen=True, slots=True)
class Object:
    """One object."""

    bytes: int
    etag: str  # without the quotes
    sha256: str  # base64, with "-N" of a multipart object; empty where unknown
    modified: float  # seconds since the epoch
    files: tuple[tuple[str, int], ...]  # names below data/ and their bytes, in order; empty: thrown away


class Store:
    """One bucket."""

    def __init__(self, root: Path, bucket: str) -> None:
        self._root = root / bucket

    @property
    def exists(self) -> bool:
        """Tell whether the bucket was made."""
        return bool(self._root.name) and self._root.is_dir()

    def make(self) -> None:
        """Make the bucket."""
        for name in ("objects", "uploads", "data"):
            (self._root / name).mkdir(parents=True, exist_ok=True)

    # --- bytes ---

    def new_file(self) -> tuple[str, int]:
        """Make a file for bytes; return its name and a descriptor to write to."""
        name = secrets.token_hex(12)
        return name, os.open(self._root / "data" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def open_file(self, name: str) -> int:
        """Open a file of bytes for reading."""
        return os.open(self._root / "data" / name, os.O_RDONLY)

    # --- objects ---

    def get(self, key: str) -> Object | None:
        """Return what is known of an object."""
        try:
            fields = json.loads(self._object(key).read_text())
        except FileNotFoundError:
            return None
        return Object(**{**fields, "files": tuple((name, size) for name, size in fields["files"])})

    def put(self, key: str, stored: Object, *, only_new: bool = False) -> bool:
        """Record an object; with `only_new`, return False where the key is taken."""
        draft = self._root / f"draft-{secrets.token_hex(8)}"
        draft.write_text(json.dumps(asdict(stored)))
        try:
            if only_new:
                os.link(draft, self._object(key))
            else:
                self.delete(key)
                os.rename(draft, self._object(key))
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def delete(self, key: str) -> None:
        """Forget an object and its bytes."""
        old = self.get(key)
        if old is not None:
            for name, _ in old.files:
                (self._root / "data" / name).unlink(missing_ok=True)
            self._object(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, in order."""
        found = (unquote(name) for name in os.listdir(self._root / "objects"))
        return sorted((key for key in found if key.startswith(prefix)), key=lambda key: key.encode())

    def _object(self, key: str) -> Path:
        return self._root / "objects" / quote(key, safe="")

    # --- uploads ---

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload; return its id."""
        upload_id = secrets.token_hex(16)
        directory = self._root / "uploads" / upload_id
        directory.mkdir()
        (directory / "parts").touch()
        (directory / "key").write_text(key)
        return upload_id

    def upload_key(self, upload_id: str) -> str | None:
        """Return the key an upload is for; None when there is no such upload."""
        if not upload_id.isalnum():
            return None
        with contextlib.suppress(FileNotFoundError):
            return (self._root / "uploads" / upload_id / "key").read_text()
        return None

    def add_part(self, upload_id: str, part: Part) -> None:
        """Record a part; a later one of the same number takes its place."""
        line = json.dumps(asdict(part)).encode() + b"\n"
        descriptor = os.open(self._root / "uploads" / upload_id / "parts", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def parts(self, upload_id: str) -> dict[int, Part]:
        """Return the parts by number, in order."""
        lines = (self._root / "uploads" / upload_id / "parts").read_text().splitlines()
        found = {part.number: part for part in (Part(**json.loads(line)) for line in lines)}
        return dict(sorted(found.items()))

    def complete(self, upload_id: str, numbers: list[int], modified: float) -> Object | None:
        """Make parts an object; None where one of them is missing."""
        parts = self.parts(upload_id)
        if not numbers or any(number not in parts for number in numbers):
            return None
        chosen = [parts[number] for number in numbers]
        md5 = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in chosen), usedforsecurity=False).hexdigest()
        sha256 = ""
        if all(part.sha256 for part in chosen):
            digest = hashlib.sha256(b"".join(base64.b64decode(part.sha256) for part in chosen)).digest()
            sha256 = f"{base64.b64encode(digest).decode()}-{len(chosen)}"
        files = tuple((part.file, part.bytes) for part in chosen if part.file)
        size = sum(part.bytes for part in chosen)
        stored = Object(size, f"{md5}-{len(chosen)}", sha256, modified, files)
        self.put(self.upload_key(upload_id) or "", stored)
        self.abort(upload_id)
        return stored

    def abort(self, upload_id: str) -> None:
        """Forget an upload; bytes that no object took stay until the directory goes."""
        shutil.rmtree(self._root / "uploads" / upload_id, ignore_errors=True)

    def uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield key and id of every open upload, by key."""
        found = ((self.upload_key(upload_id), upload_id) for upload_id in os.listdir(self._root / "uploads"))
        yield from sorted((key, upload_id) for key, upload_id in found if key is not None and key.startswith(prefix))
