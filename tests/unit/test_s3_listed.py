"""The quick reader of LIST replies reads what botocore reads, and leaves the rest to it."""

from __future__ import annotations

from typing import Any

import pytest

from b2s.adapters.s3_listed import read_listing

SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def read(body: str, status: int = 200) -> tuple[dict[str, Any], bytes]:
    """Return what was read and what is left of the body."""
    response, found = {"status_code": status, "body": body.encode()}, dict[str, Any]()
    read_listing(response_dict=response, customized_response_dict=found, model=None)
    left = response["body"]
    assert isinstance(left, bytes)
    return found, left


@pytest.mark.parametrize("space", ["", SPACE])
def test_objects_and_the_next_page_are_read(space: str) -> None:
    """Keys unescaped, sizes as numbers, the token of the next page; with or without a namespace."""
    found, left = read(
        f"<ListBucketResult {space}><IsTruncated>true</IsTruncated><Contents><Key>a&amp;b</Key><Size>12</Size>"
        "<ETag>&quot;e&quot;</ETag></Contents><Contents><Key>c</Key><Size>0</Size><StorageClass>GLACIER</StorageClass>"
        "</Contents><NextContinuationToken>next</NextContinuationToken></ListBucketResult>"
    )
    assert found == {
        "Contents": [
            {"Key": "a&b", "Size": 12, "ETag": '"e"', "StorageClass": ""},
            {"Key": "c", "Size": 0, "ETag": "", "StorageClass": "GLACIER"},
        ],
        "IsTruncated": True,
        "NextContinuationToken": "next",
    }
    assert left == b"<ListBucketResult/>"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("<ListBucketResult>", 200),
        ("<Error><Code>InternalError</Code></Error>", 200),
        ("", 200),
        ("<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>", 200),
        ("<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>", 200),
        ("<ListBucketResult/>", 503),
    ],
)
def test_anything_else_is_left_to_botocore(body: str, status: int) -> None:
    """Cut XML, an error inside a 200, sizes that are none, other statuses: untouched."""
    assert read(body, status) == ({}, body.encode())
