"""What a Ray Train worker hears of an end: from its own process, from Ray, from the driver."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

# Ray's public question, `ray.train.get_preemption_info`, is a barrier over the ranks by way of an actor: too much to
# ask after each step.  This is what it reads.
from ray.train.v2._internal.execution.context import get_train_context

from raytrain.cluster.preemption import Heard, heard_sigterm, on_sigterm


@dataclass
class GentleTorchConfig(TorchConfig):
    """Torch's process group, with two differences.

    SIGTERM is taken by `preemption.on_sigterm`: only the main thread of a worker may ask for a signal, and training
    runs in another one.  On one machine the ranks meet in a file of Ray's session folder: torch's own meeting place
    is a server that listens on all interfaces.
    """

    one_machine: bool = False

    @property
    def backend_cls(self) -> type[Backend]:
        return GentleBackend


class GentleBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: GentleTorchConfig) -> None:
        worker_group.execute(on_sigterm)
        if not backend_config.one_machine:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        place = session / f"ranks-{uuid.uuid4().hex}"
        ray.get(
            [
                worker_group.execute_single_async(
                    of_rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=of_rank,
                    world_size=len(worker_group),
                    init_method=place.as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for of_rank in range(len(worker_group))
            ]
        )


class Driver:
    """Posts to the driver's mailbox; an answer says that the driver was told to end."""

    def __init__(self, mailbox: ActorHandle):
        self._mailbox, self._answer = mailbox, None

    def post(self, message: dict[str, Any]) -> None:
        self._answer = self._mailbox.post.remote(message)

    def stops(self) -> bool:
        """Waits for nothing."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        answer, self._answer = self._answer, None
        return bool(ray.get(answer))


class Ear:
    """What a worker has heard since it was asked last."""

    def __init__(self, driver: Driver | None):
        self._driver, self._known = driver, None

    def __call__(self) -> Heard:
        if self._driver is not None and self._driver.stops():
            return Heard.STOP
        if heard_sigterm() == Heard.END:
            return Heard.END
        drained = get_train_context().preemption_context.preemption_info
        if drained is None or drained == self._known:
            return Heard.NOTHING
        self._known = drained
        return Heard.SAVE
