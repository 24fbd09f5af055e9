"""The routes of a local Ray with its dashboard, asked with and without the token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.traces import listening, nothing_left

SCRIPT = """
import urllib.error, urllib.request, ray
from raytrain.cluster.local_ray import local_ray

def code(path, token):
    request = urllib.request.Request(f"http://{address}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code

with local_ray(1, 100_000_000, dashboard=True):
    address = ray._private.worker.get_dashboard_url()
    for path in ("/api/jobs/", "/api/v0/nodes", "/api/cluster_status"):
        print(path, code(path, None), code(path, "wrong" * 8), code(path, "right" * 8))
    print("address", address.rpartition(":")[0], flush=True)
    input()
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_without_the_token_every_route_refuses(tmp_path: Path) -> None:
    with nothing_left() as (mark, environment):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **environment,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": "right" * 8,
                "HOME": str(tmp_path),
            },
        )
        assert process.stdout is not None
        try:
            lines = []
            while line := process.stdout.readline():
                lines.append(line.strip())
                if line.startswith("address"):
                    break
            heard = listening(mark)
            _, errors = process.communicate("\n", timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert lines == [
        "/api/jobs/ 401 403 200",
        "/api/v0/nodes 401 403 200",
        "/api/cluster_status 401 403 200",
        "address 127.0.0.1",
    ], errors
    assert heard == {"127.0.0.1"}
