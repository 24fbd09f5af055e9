"""A sample of `make faults`, with every kind of fault in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_fault_of_a_sample_is_silent() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--short"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    *_, summary, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["silent"] == 0
    assert found["injected"] == found["recovered"] + found["refused"] >= 80
    assert found["recovered"] > 30 < found["refused"]
    assert summary == (
        f"injected {found['injected']}, recovered {found['recovered']}, refused {found['refused']}, silent 0"
    )
