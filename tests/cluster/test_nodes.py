"""Several nodes: real raylets on this machine, of which one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from ray._private.state import actors

from raytrain.cluster import checkpoint
from raytrain.cluster.identity import run_digest
from raytrain.cluster.row_stream import RowStream
from raytrain.cluster.training import CHECKPOINTS
from raytrain.config import build
from raytrain.data.reading import Reading
from raytrain.methods import resolve
from tests.cluster.runs import SMALL
from tests.datasets import small_dataset

OPTIONS = (
    *SMALL,
    "train.patience=off",
    "train.cpus_per_worker=1",
    "train.checkpoint_every=5",
    "train.log_every=1",
)


def _nodes_of(address: str, actor: str) -> set[str]:
    ray.init(address, log_to_driver=False)
    try:
        return {it["Address"]["NodeID"] for it in actors().values() if it["ActorClassName"] == actor}
    finally:
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_over_two_nodes_goes_on_when_one_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on two nodes, one of which dies: the run ends on the other one, and every row was seen in order."""
    from ray.cluster_utils import Cluster

    dataset, folder = small_dataset(tmp_path), tmp_path / "run"
    overrides = [*OPTIONS, "train.epochs=300", "train.workers=2", "train.min_workers=1", "model.dropout=0"]
    for name, value in (("RAY_health_check_period_ms", "1000"), ("RAY_health_check_failure_threshold", "8")):
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    process = None
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        cluster.wait_for_nodes()
        settings = [text for override in overrides for text in ("--set", override)]
        process = subprocess.Popen(
            [sys.executable, "-m", "raytrain", "train", dataset.path, "--out", str(folder), *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"},
        )
        give_up = time.monotonic() + 240
        while not checkpoint.list_steps(folder / CHECKPOINTS) and time.monotonic() < give_up:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.05)
        assert "rank 1 of 2 begins" in (folder / "logs" / "rank-1.log").read_text()
        assert _nodes_of(cluster.address, "Mailbox") == {cluster.head_node.node_id}  # the driver's
        cluster.remove_node(nodes[1], allow_graceful=False)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        cluster.shutdown()
    assert "rank 0 of 1 begins" in (folder / "logs" / "rank-0.log").read_text()
    config = resolve(build(overrides=overrides), dataset.manifest)
    order, expected = Reading.of(dataset, "train", config).order(config), RowStream()
    for epoch in range(300):
        expected.add(torch.from_numpy(order.rows_of_epoch(epoch)))
    assert run_digest(folder)["rows"] == str(expected)
    epochs = [json.loads(line)["epoch"] for line in (folder / "history.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 301))
