"""What AWS says of a spot machine, by a server on loopback that answers as its metadata service does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raytrain.cluster import spot

SAID: dict[str, str] = {}


class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._answer("token-1" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        trusted = self.headers["X-aws-ec2-metadata-token"] == "token-1"
        self._answer(SAID.get(self.path) if trusted else None)

    def _answer(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        if text is not None:
            self.wfile.write(text.encode())

    def log_message(self, *unused: object) -> None: ...


@pytest.fixture
def metadata() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    SAID.clear()
    yield f"http://127.0.0.1:{server.server_port}/latest"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_notice_is_read(metadata: str) -> None:
    assert spot.time_left(metadata) is None
    at = datetime.now(UTC) + timedelta(seconds=120)
    SAID["/latest/meta-data/spot/instance-action"] = (
        f'{{"action": "terminate", "time": "{at.strftime("%Y-%m-%dT%H:%M:%SZ")}"}}'
    )
    assert spot.time_left(metadata) == pytest.approx(120.0, abs=3.0)
    SAID["/latest/meta-data/spot/instance-action"] = '{"action": "terminate", "time": "2020-01-01T00:00:00Z"}'
    assert spot.time_left(metadata) == 0.0


def test_where_there_is_no_such_service_nothing_is_said() -> None:
    assert spot.time_left("http://127.0.0.1:1/latest") is None


def test_ray_is_told_of_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(spot.subprocess, "run", lambda command, check: told.append(command))
    answers = iter([None, None, 97.4])
    monkeypatch.setattr(spot, "time_left", lambda: next(answers))
    monkeypatch.setattr(spot.time, "sleep", lambda seconds: None)
    spot.main()
    (command,) = told
    assert command[:2] == ["ray", "drain-node"] and "--deadline-remaining-seconds=97" in command
    assert "--reason=DRAIN_NODE_REASON_PREEMPTION" in command
