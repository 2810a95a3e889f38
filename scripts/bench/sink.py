"""A cheap S3-shaped sink: the client is what is measured, so everything here costs as little as it can.

    python -m scripts.bench.sink --root DIR --bucket NAME [--store] [--certificate PEM]
        [--latency-ms 30] [--hold-ms 200] [--rate-mb 50] [--line-mb 1.25]

One process per connection. Bodies of parts are thrown away (over plain TCP the kernel drops them unread) or kept
with `--store`; other objects are always kept. Signatures are not checked. A SHA-256 or MD5 that a request declares is
believed and echoed, and the composites of multipart objects are made of them like AWS does, but bodies of up to
64 KiB are really compared: so b2s's probe finds a store that verifies. A benchmark is no place for real data.

Prints one JSON line `{"port": ..., "pid": ...}` when it listens. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from pathlib import Path

from scripts.bench.sink_replies import Refused, Service
from scripts.bench.sink_store import Object, Part, Store
from scripts.bench.sink_wire import Line, Request, Uplink, Wire

VERIFIED_BYTES_MAX = 64 * 1024


def main() -> None:
    """Listen until SIGTERM."""
    options = _parser().parse_args()
    Store(options.root, options.bucket).make()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    listener = socket.create_server((options.host, options.port), backlog=256)
    listener.settimeout(0.2)
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    print(json.dumps({"port": listener.getsockname()[1], "pid": os.getpid()}), flush=True)
    uplink = Uplink(options.line_mb * 1e6)
    children: set[int] = set()
    while not ended:
        with contextlib.suppress(TimeoutError):
            sock, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                listener.close()
                _serve(sock, context, options, uplink)
            children.add(pid)
            sock.close()
        _reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A cheap S3-shaped sink.")
    parser.add_argument("--root", type=Path, required=True, help="directory of what it remembers, best on tmpfs")
    parser.add_argument("--bucket", default="bench")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--store", action="store_true", help="keep the bodies of parts")
    parser.add_argument("--certificate", type=Path, help="PEM file with certificate and key: speak https")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="round trip before every reply")
    parser.add_argument("--hold-ms", type=float, default=0.0, help="time that every part takes in the store")
    parser.add_argument("--rate-mb", type=float, default=0.0, help="10^6 bytes a second per connection")
    parser.add_argument("--line-mb", type=float, default=0.0, help="10^6 bytes a second of all connections together")
    return parser


def _reap(children: set[int]) -> None:
    """Collect ended connections: their CPU time is then ours, where the benchmark reads it."""
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            children.discard(pid)


def _serve(sock: socket.socket, context: ssl.SSLContext | None, options: argparse.Namespace, uplink: Uplink) -> None:
    """Answer one connection's requests and end the process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 0
    try:
        sock.settimeout(None)
        line = Line(options.latency_ms / 1000, options.rate_mb * 1e6, uplink)
        wire = Wire(sock, context, line)
        while (request := wire.next_request()) is not None:
            _answer(request, wire, Store(options.root, request.bucket), options)
    except (OSError, ValueError):
        status = 0  # clients break off as they like
    except BaseException as error:
        print(f"sink: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        status = 1
        raise
    finally:
        os._exit(status)


def _answer(request: Request, wire: Wire, store: Store, options: argparse.Namespace) -> None:
    service = Service(store, wire, request)
    try:
        if not store.exists and not (request.method == "PUT" and not request.key):
            wire.discard(request.body_bytes)
            raise Refused("404 Not Found", "NoSuchBucket")
        if request.method == "PUT" and "uploadId" in request.query:
            time.sleep(options.hold_ms / 1000)
            _take_part(request, wire, store, keep=options.store)
        elif request.method == "PUT" and request.key:
            _take_object(request, wire, store)
        else:
            service.answer(wire.read(request.body_bytes))
    except Refused as refused:
        service.refuse(refused)


def _take_part(request: Request, wire: Wire, store: Store, *, keep: bool) -> None:
    upload_id, number = request.query["uploadId"], int(request.query["partNumber"])
    name = ""
    if request.body_bytes <= VERIFIED_BYTES_MAX or keep:
        name = _keep(request, wire, store)
    else:
        wire.discard(request.body_bytes)
    if store.upload_key(upload_id) != request.key:
        raise Refused("404 Not Found", "NoSuchUpload")
    part = Part(number, request.decoded_bytes, _etag(request), _sha256(request), name)
    store.add_part(upload_id, part)
    headers = {"ETag": f'"{part.etag}"'}
    if part.sha256:
        headers["x-amz-checksum-sha256"] = part.sha256
    wire.reply("200 OK", headers)


def _take_object(request: Request, wire: Wire, store: Store) -> None:
    name = _keep(request, wire, store)
    files = ((name, request.decoded_bytes),) if request.decoded_bytes else ()
    stored = Object(request.decoded_bytes, _etag(request), _sha256(request), time.time(), files)
    if not store.put(request.key, stored, only_new=request.headers.get("if-none-match") == "*"):
        raise Refused("412 Precondition Failed", "PreconditionFailed")
    wire.reply("200 OK", {"ETag": f'"{stored.etag}"'})


def _keep(request: Request, wire: Wire, store: Store) -> str:
    """Write a body to a file, and refuse it when it is small and another than was declared."""
    name, descriptor = store.new_file()
    try:
        if request.is_chunked:
            _decode(wire, descriptor)
        elif request.body_bytes <= VERIFIED_BYTES_MAX:
            body = wire.read(request.body_bytes)
            _compare(request, body)
            os.write(descriptor, body)
        else:
            wire.save(request.body_bytes, descriptor)
    finally:
        os.close(descriptor)
    return name


def _decode(wire: Wire, descriptor: int) -> None:
    """Write an aws-chunked body without its framing, signatures and trailers."""
    while size := int(wire.read_line().partition(b";")[0], 16):
        wire.save(size, descriptor)
        wire.read_line()
    while wire.read_line():
        continue


def _compare(request: Request, body: bytes) -> None:
    sha256, md5 = hashlib.sha256(body).digest(), hashlib.md5(body, usedforsecurity=False).digest()
    declared = {
        "x-amz-checksum-sha256": base64.b64encode(sha256).decode(),
        "content-md5": base64.b64encode(md5).decode(),
    }
    for header, right in declared.items():
        if request.headers.get(header, right) != right:
            raise Refused("400 Bad Request", "BadDigest")
    request.headers["content-md5"] = declared["content-md5"]


def _etag(request: Request) -> str:
    """Return the body's MD5 where it is known, else something of its shape."""
    declared = request.headers.get("content-md5")
    return base64.b64decode(declared).hex() if declared else secrets.token_hex(16)


def _sha256(request: Request) -> str:
    return request.headers.get("x-amz-checksum-sha256", "")


if __name__ == "__main__":
    main()
