"""JSON from a bucket, parsed within bounds of time and memory whatever it contains.

The standard library's parser is fast but trusting: a few MiB of `{},{},` become a GiB of objects, and a manifest of a
million segments would be held three times. So the one thing of which there may be very many, lists of segment hashes,
is cut out and converted first, and what is left is bounded before it is parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

from b2s.core.limits import MANIFEST_SEGMENTS_MAX, MIB, PARTS_PER_UPLOAD_MAX

# What a document may contain besides its lists of hashes: some fields and names, and for each list the object (one
# chunk) around it. A document without lists is thus refused long before it is large.
REST_BYTES_MAX = 16 * MIB
REST_BYTES_PER_LIST_MAX = 512
REST_VALUES_MAX = 50_000
REST_VALUES_PER_LIST_MAX = 16
INTEGER_DIGITS_MAX = 20

# Every byte has one way to match, and no list is in another, so backtracking is linear for any input. Not possessive
# (`*+`): Python before 3.11.5 matches possessive groups wrongly (CPython issue 106052), and Debian 12 has 3.11.2.
# One hash more than is allowed, so that it can be told from a list that is none.
_HASH_LIST = re.compile(
    rb'"segment_sha256"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*'
    rb'((?:"[0-9a-f]{64}"[ \t\r\n]*,[ \t\r\n]*){0,%d}"[0-9a-f]{64}")[ \t\r\n]*\]' % PARTS_PER_UPLOAD_MAX
)
_NOT_HEX = b'", \t\r\n'


class UntrustedJsonError(ValueError):
    """The text is not JSON, or not within the bounds; the message says which."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Values under a key `segment_sha256` that are lists of hex SHA-256 come back as a tuple of 32-byte values; anything
    else there stays what JSON makes of it, so a tuple means that the list was well-formed and not empty.

    Args:
        body: The document, at most as long as the caller allows.

    Raises:
        UntrustedJsonError: It is not one JSON object in UTF-8, names a key twice, contains NaN or Infinity, or is too
            large, too deep or too full of values.
    """
    mark = hashlib.sha256(body).hexdigest()  # no document can contain its own hash, so nobody can forge a mark
    rest, hash_lists = _cut_hash_lists(body, mark)
    bytes_max = REST_BYTES_MAX + REST_BYTES_PER_LIST_MAX * len(hash_lists)
    if len(rest) > bytes_max:
        raise UntrustedJsonError(f"more than {bytes_max} bytes besides the segment hashes")
    values_max = REST_VALUES_MAX + REST_VALUES_PER_LIST_MAX * len(hash_lists)
    if sum(rest.count(sign) for sign in (b",", b":", b"[", b"{")) > values_max:
        raise UntrustedJsonError(f"more than {values_max} values besides the segment hashes")

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise UntrustedJsonError("a key occurs twice in one object")
        hashes = made.get("segment_sha256")
        if isinstance(hashes, str) and hashes.startswith(mark):
            made["segment_sha256"] = hash_lists[int(hashes[len(mark) :])]
        return made

    try:
        parsed = json.loads(
            rest.decode("utf-8"), object_pairs_hook=make_object, parse_int=_bounded_int, parse_constant=_no_constant
        )
    except UntrustedJsonError:
        raise
    except RecursionError:
        raise UntrustedJsonError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise UntrustedJsonError(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise UntrustedJsonError(f"not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise UntrustedJsonError("not a JSON object")
    return parsed


def _cut_hash_lists(body: bytes, mark: str) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Return the document with each list of hashes replaced by the mark and a number, and the lists by number."""
    pieces = []
    lists: list[tuple[bytes, ...]] = []
    position = 0
    hashes_left = MANIFEST_SEGMENTS_MAX
    for match in _HASH_LIST.finditer(body):
        hashes = body.count(b'"', match.start(1), match.end(1)) // 2
        if hashes > PARTS_PER_UPLOAD_MAX:
            raise UntrustedJsonError(f"{hashes} segments in one chunk; at most {PARTS_PER_UPLOAD_MAX} are allowed")
        hashes_left -= hashes
        if hashes_left < 0:
            raise UntrustedJsonError(f"more than {MANIFEST_SEGMENTS_MAX} segments")
        digests = bytes.fromhex(match[1].translate(None, _NOT_HEX).decode("ascii"))
        pieces.append(body[position : match.start()])
        pieces.append(b'"segment_sha256":"%s%d"' % (mark.encode("ascii"), len(lists)))
        lists.append(tuple(digests[start : start + 32] for start in range(0, len(digests), 32)))
        position = match.end()
    pieces.append(body[position:])
    return b"".join(pieces), lists


def _bounded_int(digits: str) -> int:
    if len(digits) > INTEGER_DIGITS_MAX:
        raise UntrustedJsonError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise UntrustedJsonError(f"{name} is not a JSON value")
