"""Call a monitoring URL, as healthchecks.io and its like want it: bounded in time, through the usual proxies."""

from __future__ import annotations

import threading
import time
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from b2s.errors import B2sError

TRIES = 2
TRY_SECONDS = 8.0  # for connecting, and for each wait for an answer
PAUSE_SECONDS = 1.0
DEADLINE_SECONDS = 20.0  # for everything: a name server that does not answer, an answer that drips
BODY_BYTES_MAX = 10_000  # Source: healthchecks.io, "Attaching logs", 100 kB are kept (read 2026-11)


def ping(url: str, signal: str, body: str, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """POST `body` to `url`, with `/<signal>` added to its path where there is a signal.

    Blocks at most `deadline_seconds`. Proxies come from the environment (`https_proxy`, `no_proxy`, ...).

    Args:
        url: http:// or https://.
        signal: "start", "fail", or empty: all went well.
        body: Kept by the service as this call's log; cut to `BODY_BYTES_MAX`.

    Raises:
        B2sError: It was not accepted; the message names the host only, since who knows the URL can call it.
    """
    host = urlsplit(url).hostname
    failures: list[str] = []
    done = threading.Event()
    data = body.encode("utf-8", "backslashreplace")[:BODY_BYTES_MAX]
    # A thread of its own, because nothing bounds a look-up of a host name.
    threading.Thread(target=_post, args=(_with(url, signal), data, failures, done), daemon=True).start()
    if not done.wait(deadline_seconds):
        failures.append(f"no answer within {deadline_seconds:g} s")
    if failures:
        raise B2sError(f"the ping to {host} failed: {failures[-1]}", hint="check notify.ping_url and the network")


def _with(url: str, signal: str) -> str:
    if not signal:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{signal}"))


def _post(url: str, body: bytes, failures: list[str], done: threading.Event) -> None:
    """Try until it is accepted; `failures` is left empty when it was."""
    found: list[str] = []
    opener = urllib.request.build_opener()  # looks at the environment now
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        request = urllib.request.Request(url, data=body, method="POST")
        request.add_header("Content-Type", "text/plain; charset=utf-8")
        request.add_header("User-Agent", "b2s")
        try:
            with opener.open(request, timeout=TRY_SECONDS):
                break
        except (OSError, HTTPException, ValueError) as error:  # URLError and HTTPError are OSErrors
            reason = getattr(error, "reason", None) or error
            status = getattr(error, "code", None)
            found.append(f"{status} {reason}" if status else f"{reason}")
    else:
        failures.extend(found)
    done.set()
