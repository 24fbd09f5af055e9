"""Watches over a spot machine of AWS: when it is to be taken back, Ray is told, and the run saves itself.

    python -m raytrain.cluster.spot

cluster.yaml starts it on every GPU machine.  AWS says two minutes ahead, at an address that only the machine itself
can ask, that it takes a spot machine back; this asks every five seconds, drains the node in Ray with that deadline and
ends.  The workers hear of it and write a checkpoint after the next step (`raytrain.cluster.preemption`).
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

METADATA = "http://169.254.169.254/latest"
"""Instance metadata, version 2: with a token of its own.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
ASK_EVERY_S = 5.0


def time_left(metadata: str = METADATA) -> float | None:
    """Seconds until the machine is taken back; None where it is not said to be."""
    token = _ask(f"{metadata}/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    if token is None:
        return None
    said = _ask(f"{metadata}/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    if said is None:
        return None
    action = json.loads(said)
    if action["action"] not in {"terminate", "stop", "hibernate"}:
        return None
    at = datetime.fromisoformat(action["time"].replace("Z", "+00:00"))
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _ask(url: str, method: str, headers: dict[str, str]) -> str | None:
    """None where there is nothing to be said (404) or nobody to say it."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            text: str = answer.read(10_000).decode()
            return text
    except urllib.error.URLError:
        return None


def drain(seconds: float) -> None:
    """Tells Ray that this node goes."""
    subprocess.run(
        [
            "ray",
            "drain-node",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=the spot machine is taken back",
            f"--deadline-remaining-seconds={int(seconds)}",
        ],
        check=True,
    )


def main() -> None:
    while (seconds := time_left()) is None:
        time.sleep(ASK_EVERY_S)
    drain(seconds)


if __name__ == "__main__":
    main()
