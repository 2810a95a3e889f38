"""Pings and systemd: what arrives, and what happens when nobody is there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from b2s.adapters import notify
from b2s.adapters.sd_notify import sd_notify, wanted
from b2s.errors import B2sError


class Listener:
    """A monitoring service that remembers."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.calls: list[tuple[str, str, str]] = []  # method, target, body
        self.status = 200
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                listener.calls.append((self.command, self.path, body))
                self.send_response(listener.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A service for one test."""
    made = Listener()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("path", "signal", "called"),
    [
        ("/uuid", "", "/uuid"),
        ("/uuid", "start", "/uuid/start"),
        ("/uuid/", "fail", "/uuid/fail"),
        ("/ping?key=1", "fail", "/ping/fail?key=1"),
    ],
)
def test_the_signal_joins_the_path(listener: Listener, path: str, signal: str, called: str) -> None:
    """As healthchecks.io wants it, also with a query."""
    notify.ping(listener.origin + path, signal, "run_id 1")
    assert listener.calls == [("POST", called, "run_id 1")]


def test_a_refusal_is_tried_again_and_told(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names host and status, not the URL: who knows it can call it."""
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.0)
    listener.status = 503
    with pytest.raises(B2sError, match=r"ping to 127.0.0.1 failed: 503") as caught:
        notify.ping(listener.origin + "/secret-uuid", "", "")
    assert "secret-uuid" not in caught.value.message
    assert len(listener.calls) == notify.TRIES


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that accepts and never answers costs no more than the deadline."""
    monkeypatch.setattr(notify, "DEADLINE_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(B2sError, match=r"no answer within 0.3 s|timed out"),
    ):
        notify.ping(f"http://127.0.0.1:{silent.getsockname()[1]}/", "", "")


def test_goes_through_a_proxy(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the environment gets the whole URL."""
    monkeypatch.setenv("http_proxy", listener.origin)
    notify.ping("http://hc.example/uuid", "start", "")
    assert listener.calls[0][1] == "http://hc.example/uuid/start"


def test_systemd_hears_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datagram, a line each; a newline in a text starts no new one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert wanted()
        sd_notify("READY=1", "STATUS=a\nb")
        assert listening.recv(1000) == b"READY=1\nSTATUS=a b"


@pytest.mark.parametrize("address", ["", "/does/not/exist", "@nobody", "vsock:1:2"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a listener nothing happens."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    sd_notify("READY=1")
