"""The Ray that a verb runs on: the one that runs already, a cluster, or one of its own that ends with the verb."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants

from raytrain.cluster.versions import check_versions

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""Of Ray, where the environment does not say otherwise: they halve the start of the workers and keep Ray quiet."""

LOCAL = "RAYTRAIN_LOCAL_RAY"
"""Set in every process of a Ray that we started on this machine."""
LOCAL_SETTINGS = {
    LOCAL: "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes the only node away
    # Ray's word for "this machine only": everything listens on loopback, as it does on Windows and macOS.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_ROTATION_MAX_BYTES": str(2**23),
    "RAY_ROTATION_BACKUP_COUNT": "2",
}
"""Further ones of a local Ray, in force while it runs."""

PREFIX = "raytrain-"
SOCKET_PATH_BYTES = 60
"""Of a temporary folder at most: Ray's socket paths in it may not be longer than 107."""


@contextmanager
def local_ray(num_cpus: int, object_store: int, *, dashboard: bool = False) -> Iterator[None]:
    """The Ray that runs already, the cluster of RAY_ADDRESS, or a local one that ends with the block.

    `num_cpus`, `object_store` (bytes) and `dashboard` are those of the local one.  It listens on loopback alone, and
    its session folder goes with it.  Raises ValueError where a package is older than what is safe.
    """
    check_versions()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
    elif os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()
    else:
        with _this_machine_only(), _session_folder() as folder:
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                log_to_driver=False,
                object_store_memory=object_store,
                logging_level="ERROR",
                runtime_env={"worker_process_setup_hook": know_own_cluster} if dashboard else None,
                _temp_dir=str(folder),
            )
            try:
                yield
            finally:
                ray.shutdown()


def on_cluster() -> bool:
    """Whether the Ray that is used is a cluster that somebody else started."""
    return bool(os.environ.get("RAY_ADDRESS")) and LOCAL not in os.environ


def know_own_cluster() -> None:
    """In a worker: Ray's State API, which ends what a stopped run has left, asks this Ray where there are several."""
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


@contextmanager
def _this_machine_only() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in LOCAL_SETTINGS}
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    enabled = ray_constants.ENABLE_RAY_CLUSTER  # was read when Ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "1"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for name, given in before.items():
            if given is None:
                del os.environ[name]


@contextmanager
def _session_folder() -> Iterator[Path]:
    """A temporary folder for Ray's session; those that killed processes left behind are removed."""
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(str(parent)) > SOCKET_PATH_BYTES:
        parent = Path("/tmp")
    for left in parent.glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Ray's processes write their last lines while they end."""
    give_up = time.monotonic() + 5
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > give_up:
            break
        time.sleep(0.05)
