"""Tell the S3 operation of an HTTP request by method, path and query (path-style addressing)."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

_BUCKET_GET = {
    "uploads": "ListMultipartUploads",
    "list-type": "ListObjectsV2",
    "location": "GetBucketLocation",
    "lifecycle": "GetBucketLifecycleConfiguration",
}
_BUCKET = {"HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket", "GET": "ListObjects"}
_OBJECT = {"HEAD": "HeadObject", "GET": "GetObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_OBJECT_BY_QUERY = {
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("POST", "restore"): "RestoreObject",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploadId"): "ListParts",
    ("GET", "attributes"): "GetObjectAttributes",
}


@dataclass(frozen=True, slots=True)
class S3Request:
    """What a request asks for."""

    operation: str  # as boto3 names it, "Unknown" when it is none we know
    bucket: str
    key: str  # "" for operations on the bucket
    part_number: int | None
    upload_id: str | None


def parse_request(method: str, target: str) -> S3Request:
    """Return the operation that `method` on the request target `target` is."""
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    bucket, _, key = unquote(url.path).removeprefix("/").partition("/")
    return S3Request(
        operation=_operation(method, bucket, key, query),
        bucket=bucket,
        key=key,
        part_number=int(query["partNumber"]) if query.get("partNumber", "").isdigit() else None,
        upload_id=query.get("uploadId"),
    )


def _operation(method: str, bucket: str, key: str, query: dict[str, str]) -> str:
    if not bucket:
        return "ListBuckets" if method == "GET" else "Unknown"
    if not key:
        if method == "POST":
            return "DeleteObjects" if "delete" in query else "Unknown"
        by_query = [name for word, name in _BUCKET_GET.items() if word in query] if method == "GET" else []
        return by_query[0] if by_query else _BUCKET.get(method, "Unknown")
    for (wanted, word), name in _OBJECT_BY_QUERY.items():
        if method == wanted and word in query:
            return name
    return _OBJECT.get(method, "Unknown")
