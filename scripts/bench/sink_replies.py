"""What the sink answers to everything but a body that comes in."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from xml.sax.saxutils import escape, unescape

from scripts.bench.sink_store import Object, Store
from scripts.bench.sink_wire import Request, Wire

PAGE = 1000
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Refused(Exception):
    """An error reply."""

    def __init__(self, status: str, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


def element(name: str, content: Any, attributes: str = "") -> str:
    """Return an XML element: of text, of a dict of elements, or one for each item of a list."""
    if isinstance(content, list):
        return "".join(element(name, item) for item in content)
    if isinstance(content, dict):
        inner = "".join(element(key, value) for key, value in content.items())
    else:
        inner = escape(str(content))
    return f"<{name}{attributes}>{inner}</{name}>"


class Service:
    """Answers one request whose body, if any, is small."""

    def __init__(self, store: Store, wire: Wire, request: Request) -> None:
        self.store = store
        self.wire = wire
        self.request = request

    def refuse(self, refused: Refused) -> None:
        """Send an error."""
        body = b"" if self.request.method == "HEAD" else (_XML + element("Error", {"Code": refused.code})).encode()
        self.wire.reply(refused.status, {"Content-Type": "application/xml"}, body)

    def answer(self, body: bytes) -> None:
        """Do what is asked and say so."""
        request, query = self.request, self.request.query
        match request.method, bool(request.key):
            case "HEAD", False:
                self.wire.reply("200 OK", {"x-amz-bucket-region": "us-east-1"}, length=0)
            case "PUT", False:
                self.store.make()
                self.wire.reply("200 OK", {})
            case "GET", False:
                self._list_bucket()
            case "POST", False:
                self._delete_many(body)
            case (("HEAD" | "GET"), True) if "uploadId" not in query:
                self._give()
            case "GET", True:
                self._list_parts()
            case "POST", True if "uploads" in query:
                upload_id = self.store.begin_upload(request.key)
                fields = {"Bucket": request.bucket, "Key": request.key, "UploadId": upload_id}
                self._send("InitiateMultipartUploadResult", fields)
            case "POST", True:
                self._complete(body.decode())
            case "DELETE", True:
                if "uploadId" in query:
                    self._known_upload()
                    self.store.abort(query["uploadId"])
                else:
                    self.store.delete(request.key)
                self.wire.reply("204 No Content", {})
            case _:
                raise Refused("501 Not Implemented", "NotImplemented")

    def _send(self, name: str, content: Any) -> None:
        body = _XML + element(name, content, _NAMESPACE)
        self.wire.reply("200 OK", {"Content-Type": "application/xml"}, body.encode())

    def _known_upload(self) -> str:
        upload_id = self.request.query["uploadId"]
        if self.store.upload_key(upload_id) != self.request.key:
            raise Refused("404 Not Found", "NoSuchUpload")
        return upload_id

    def _give(self) -> None:
        """HEAD and GET of an object, whole or a range."""
        stored = self.store.get(self.request.key)
        if stored is None:
            raise Refused("404 Not Found", "NoSuchKey")
        headers = self.request.headers
        if headers.get("if-match", stored.etag).strip('"') != stored.etag:
            raise Refused("412 Precondition Failed", "PreconditionFailed")
        fields = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "binary/octet-stream",
        }
        if stored.sha256 and headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            fields["x-amz-checksum-sha256"] = stored.sha256
            fields["x-amz-checksum-type"] = "COMPOSITE" if "-" in stored.sha256 else "FULL_OBJECT"
        start, end, status = 0, stored.bytes, "200 OK"
        asked = _RANGE.fullmatch(headers.get("range", ""))
        if asked is not None:
            start, end = int(asked[1]), min(stored.bytes, int(asked[2] or stored.bytes) + 1)
            if start >= stored.bytes:
                raise Refused("416 Requested Range Not Satisfiable", "InvalidRange")
            fields["Content-Range"] = f"bytes {start}-{end - 1}/{stored.bytes}"
            status = "206 Partial Content"
        self.wire.reply(status, fields, length=end - start)
        if self.request.method == "GET":
            self._give_bytes(stored, start, end)

    def _give_bytes(self, stored: Object, start: int, end: int) -> None:
        position = 0
        for name, size in stored.files:
            first, last = max(start, position), min(end, position + size)
            if first < last:
                descriptor = self.store.open_file(name)
                try:
                    self.wire.send_file(descriptor, first - position, last - first)
                finally:
                    os.close(descriptor)
            position += size

    def _complete(self, body: str) -> None:
        upload_id = self._known_upload()
        numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", body)]
        known = self.store.parts(upload_id)
        etags = [
            unescape(etag, {"&quot;": '"', "&#34;": '"'}).strip('"') for etag in re.findall("<ETag>(.*?)</ETag>", body)
        ]
        if any(number in known and known[number].etag != etag for number, etag in zip(numbers, etags, strict=True)):
            raise Refused("400 Bad Request", "InvalidPart")
        stored = self.store.complete(upload_id, numbers, time.time())
        if stored is None:
            raise Refused("400 Bad Request", "InvalidPart")
        fields = {"Bucket": self.request.bucket, "Key": self.request.key, "ETag": f'"{stored.etag}"'}
        if stored.sha256:
            fields |= {"ChecksumSHA256": stored.sha256, "ChecksumType": "COMPOSITE"}
        self._send("CompleteMultipartUploadResult", fields)

    def _list_bucket(self) -> None:
        query = self.request.query
        if "location" in query:
            self._send("LocationConstraint", "")
        elif "uploads" in query:
            self._list_uploads()
        elif "versioning" in query:
            self._send("VersioningConfiguration", "")
        else:
            self._list_objects()

    def _list_objects(self) -> None:
        query = self.request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or query.get("marker") or ""
        page = min(PAGE, int(query.get("max-keys", PAGE)))
        contents: list[dict[str, Any]] = []
        folders: list[str] = []
        last, cut = "", False
        for key in self.store.keys(prefix):
            rest = key[len(prefix) :]
            folder = prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else ""
            if (folder or key) <= after or (folder and folders and folders[-1] == folder):
                continue
            if len(contents) + len(folders) == page:
                cut = True
                break
            last = folder or key
            if folder:
                folders.append(folder)
            elif (stored := self.store.get(key)) is not None:
                contents.append(_entry(key, stored))
        fields: dict[str, Any] = {
            "Name": self.request.bucket,
            "Prefix": prefix,
            "KeyCount": len(contents) + len(folders),
            "MaxKeys": page,
            "IsTruncated": str(cut).lower(),
            "Contents": contents,
            "CommonPrefixes": [{"Prefix": folder} for folder in folders],
        }
        if cut:
            fields |= {"NextContinuationToken": last, "NextMarker": last}
        self._send("ListBucketResult", fields)

    def _list_uploads(self) -> None:
        query = self.request.query
        after = (query.get("key-marker", ""), query.get("upload-id-marker", "\U0010ffff"))
        found = [each for each in self.store.uploads(query.get("prefix", "")) if not after[0] or each > after]
        page = found[:PAGE]
        fields: dict[str, Any] = {
            "IsTruncated": str(len(found) > PAGE).lower(),
            "Upload": [{"Key": key, "UploadId": upload_id} for key, upload_id in page],
        }
        if len(found) > PAGE:
            fields |= {"NextKeyMarker": page[-1][0], "NextUploadIdMarker": page[-1][1]}
        self._send("ListMultipartUploadsResult", fields)

    def _list_parts(self) -> None:
        after = int(self.request.query.get("part-number-marker", 0))
        found = [part for number, part in self.store.parts(self._known_upload()).items() if number > after]
        page = found[:PAGE]
        parts = []
        for part in page:
            fields = {"PartNumber": part.number, "Size": part.bytes, "ETag": f'"{part.etag}"'}
            parts.append(fields | ({"ChecksumSHA256": part.sha256} if part.sha256 else {}))
        answer: dict[str, Any] = {"Key": self.request.key, "IsTruncated": str(len(found) > PAGE).lower(), "Part": parts}
        if len(found) > PAGE:
            answer["NextPartNumberMarker"] = page[-1].number
        self._send("ListPartsResult", answer)

    def _delete_many(self, body: bytes) -> None:
        for key in re.findall("<Key>(.*?)</Key>", body.decode()):
            self.store.delete(unescape(key))
        self._send("DeleteResult", "")


def _entry(key: str, stored: Object) -> dict[str, Any]:
    modified = datetime.fromtimestamp(stored.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        "Key": key,
        "LastModified": modified,
        "ETag": f'"{stored.etag}"',
        "Size": stored.bytes,
        "StorageClass": "STANDARD",
    }
