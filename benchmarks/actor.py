"""What the teacher's actor costs a run, and whether a run feels its death.

    python benchmarks/actor.py [--short]

Runs in this process drive a real actor by its handle, without Ray Train's workers: a test does that.  Demo world,
128 + 1024 features, 15 classes.

with_over_without   steady-state throughput of a run with a slow teacher (EMA of the towers), its weights published to
                    the actor, soft labels counted in a window before each refresh, and graphs made by the actor and
                    adopted, over the same run with nothing of that.  Towers of 1024-1024, batch 400, one thread; a
                    graph every 20 epochs, its window one epoch, its lag two, weights published at the default
                    interval.  An epoch of each by turns; wall time, because it may wait; median of the ratios of
                    the cycles.  `every_40`: a graph every 40 epochs, as often as in a run of 40 with one graph
cpu_and_waits       the same of CPU seconds of this process plus the wall seconds that it waited for the actor: what
                    others do on the machine is not in it
counting_epoch      the same of the epochs of the window alone: what other intervals would cost follows from it
wait_ms             mean wait for a graph at its adoption
publish_ms          mean time of rank 0 for handing over the weights
search_s            CPU seconds of one graph in this process, for comparison
kills, equal        runs of small towers whose actor got SIGKILL once, when a step drawn over the run began and up to
                    0.2 s later; those of them whose final checkpoint, teacher and graphs are byte for byte those of
                    the undisturbed run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import ray
import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.actors import ActorMaker, teacher_actor
from raytrain.cluster.allocator import keep_freed_memory
from raytrain.cluster.alone import Held, local_maker
from raytrain.cluster.local_ray import local_ray
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident
from raytrain.cluster.teacher_store import GRAPHS, TEACHER
from raytrain.cluster.training import CHECKPOINTS, Training
from raytrain.config import Config, Model, Section, Train, build
from raytrain.data.manifest import Dataset
from raytrain.data.scene_config import SceneConfig
from raytrain.data.scenes import generate_scenes
from raytrain.graph.dependency import ClassDependency
from raytrain.methods import METHODS, resolve
from raytrain.methods import build as build_method
from raytrain.methods.base import GraphPlan, Method
from raytrain.models.ema import Follower, slow_copy
from raytrain.models.towers import Towers, ViewInput
from raytrain.teacher import GraphRequest, LocalMaker, make_graph
from raytrain.types import Loss, Progress, Rows, mean_over_world

CPU = torch.device("cpu")


class ClassifiedSettings(Section):
    teacher: bool = True
    refresh_every: int = 200
    window: int = 20
    lag: int = 20
    bootstraps: int = 50


class Classified(Method):
    """Cross-entropy of both views; with a teacher, the same beside its slow copy, whose graph enters a buffer."""

    Settings = ClassifiedSettings
    links: Tensor

    def __init__(self, settings: ClassifiedSettings, towers: Towers, num_classes: int):
        super().__init__()
        self.settings, self.towers = settings, towers
        self.slow: Towers | None = None
        if settings.teacher:
            self.slow = slow_copy(towers)
            self.follower = Follower(self.slow, towers, buffers="copied")
        self.register_buffer("links", torch.zeros(num_classes, num_classes))

    @classmethod
    def build(
        cls,
        settings: ClassifiedSettings,
        views: Mapping[str, ViewInput],
        model: Model,
        num_classes: int | None,
    ) -> Classified:
        assert num_classes is not None
        return cls(settings, Towers(views, model, num_classes=num_classes), num_classes)

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        assert here.labels is not None
        audio, visual = here.logits.values()
        each = F.cross_entropy(audio, here.labels, reduction="none")
        each = each + F.cross_entropy(visual, here.labels, reduction="none")
        linked = ((audio.softmax(dim=1) @ self.links) * visual.softmax(dim=1)).sum(dim=1)
        return Loss(mean_over_world(each - 0.1 * linked, world))

    def after_step(self, progress: Progress) -> None:
        if self.slow is not None:
            self.follower.move(0.99)

    def graph_plan(self, num_steps: int, steps_per_epoch: int) -> GraphPlan | None:
        s = self.settings
        if not s.teacher:
            return None
        refreshes = tuple(range(s.refresh_every, num_steps, s.refresh_every))
        return GraphPlan(refreshes, s.window, s.lag, {"bootstraps": s.bootstraps})

    def adopt(self, graph: ClassDependency) -> None:
        c = len(self.links)
        self.links.copy_(torch.from_numpy(graph.direction_frequency[:c, c:]))

    def soft_labels(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.slow is not None
        return self.slow(views)[1]

    def teacher_state(self) -> Mapping[str, Tensor]:
        return {} if self.slow is None else self.slow.state_dict()


class Timed(ActorMaker):
    """The maker of a run on Ray, with a watch beside it."""

    def __init__(self, actor: Any, local: Callable[[], LocalMaker]):
        super().__init__(actor, local)
        self.waited: list[float] = []
        self.published: list[float] = []
        self.request: GraphRequest | None = None

    def submit(self, request: GraphRequest) -> None:
        self.request = request
        super().submit(request)

    def result(self, step: int) -> ClassDependency:
        start = time.perf_counter()
        graph = super().result(step)
        self.waited.append(time.perf_counter() - start)
        return graph

    def publish(self, step: int, weights: Callable[[], Mapping[str, Tensor]], *, last: bool) -> None:
        start = time.perf_counter()
        super().publish(step, weights, last=last)
        self.published.append(time.perf_counter() - start)


class Run:
    """A run in this process, with its actor where it has a teacher."""

    def __init__(self, config: Config, dataset: Dataset, held: Held, folder: Path):
        self.actor: Any = None
        self.maker: Timed | None = None
        if config.method["teacher"]:
            self.actor = teacher_actor(config, dataset, folder)
            self.maker = Timed(self.actor, lambda: local_maker(config, dataset, folder))
            self.pid: int = ray.get(self.actor.pid.remote())
        torch.manual_seed(step_seed(config.train.seed, -1, 0))
        order = held.reading.order(config)
        method = build_method(config, dataset.manifest)
        self.training = Training(config, method, order, folder, CPU, maker=self.maker)
        self.source, self.validation = Resident(held.rows, order, 0, 1, CPU), held.validation

    def seconds(self, until: int | None = None) -> tuple[float, float]:
        """Wall seconds; CPU seconds of this process and wall seconds of its waits."""
        start, cpu, waited = time.perf_counter(), time.process_time(), self._waited()
        self.training.run(self.source, self.validation, None, until=until)
        return time.perf_counter() - start, time.process_time() - cpu + self._waited() - waited

    def _waited(self) -> float:
        return 0.0 if self.maker is None else sum(self.maker.waited)


def configure(dataset: Dataset, hidden: int, epochs: int, publish_every: int, **method: Any) -> Config:
    config = build(
        data={"path": dataset.path},
        method={"name": "classified", **method},
        model={"hidden": [hidden, hidden]},
        train={
            "epochs": epochs,
            "validate_every": 10**6,
            "patience": None,
            "ema_decay": None,
            "publish_every": publish_every,
            "precision": "float32",
            "diagnose_every": None,
        },
    )
    return resolve(config, dataset.manifest)


def throughput(folder: Path, dataset: Dataset, *, cycles: int, epochs_of_cycle: int) -> dict[str, Any]:
    steps = round(dataset.split("train").rows / 400)  # of an epoch
    cycle = steps * epochs_of_cycle
    plan = {"refresh_every": cycle, "window": steps, "lag": 2 * steps}
    configs = {
        teacher: configure(
            dataset, 1024, (cycles + 2) * epochs_of_cycle, Train().publish_every, teacher=teacher, **plan
        )
        for teacher in (True, False)
    }
    held = Held.of(configs[True], dataset, CPU)
    taught, plain = (
        Run(configs[teacher], dataset, held, folder / f"run-{teacher}") for teacher in (True, False)
    )
    assert taught.maker is not None
    ratios, busy, counting = [], [], []
    for number in range(cycles + 1):  # the first one warms up
        spent = {taught: (0.0, 0.0), plain: (0.0, 0.0)}
        for epoch in range(epochs_of_cycle):
            until = number * epochs_of_cycle + epoch + 1
            now = {run: run.seconds(until) for run in ((taught, plain) if epoch % 2 else (plain, taught))}
            spent = {run: (spent[run][0] + now[run][0], spent[run][1] + now[run][1]) for run in now}
            if number and epoch == epochs_of_cycle - 1:
                counting.append(now[plain][1] / now[taught][1])
        if number:
            ratios.append(spent[plain][0] / spent[taught][0])
            busy.append(spent[plain][1] / spent[taught][1])
            rate = cycle * 400 / spent[plain][0]
            print(
                f"cycle {number}: {cycle} steps each, plain {rate:,.0f} rows/s, ratio {ratios[-1]:.3f}, "
                f"of CPU and waits {busy[-1]:.3f}",
                flush=True,
            )
    assert taught.maker.request is not None
    start = time.process_time()
    make_graph(taught.maker.request)
    return {
        "with_over_without": round(statistics.median(ratios), 3),
        "with_over_without_min": round(min(ratios), 3),
        "with_over_without_max": round(max(ratios), 3),
        "cpu_and_waits": round(statistics.median(busy), 3),
        "cpu_and_waits_min": round(min(busy), 3),
        "cpu_and_waits_max": round(max(busy), 3),
        "cycle_steps": cycle,
        "counting_epoch": round(statistics.median(counting), 3),
        "wait_ms": round(1e3 * statistics.mean(taught.maker.waited[1:]), 2),
        "publish_ms": round(1e3 * statistics.median(taught.maker.published), 2),
        "search_s": round(time.process_time() - start, 3),
    }


def fingerprint(folder: Path) -> str:
    """sha256 over the files of the last checkpoint, the last teacher and every graph."""
    last = [checkpoint.list_steps(folder / part)[-1] for part in (CHECKPOINTS, TEACHER)]
    found = hashlib.sha256()
    for path in [*last, *checkpoint.list_steps(folder / GRAPHS)]:
        for file in sorted(path.iterdir()):
            found.update(f"{path.name}/{file.name}".encode() + file.read_bytes())
    return found.hexdigest()


def kill(run: Run, step: int, later: float) -> None:
    """Ends the run's actor, and no other process, a little after the run has done so many steps."""
    while run.training.state.step < step:
        time.sleep(0.002)
    time.sleep(later)
    os.kill(run.pid, signal.SIGKILL)


def deaths(folder: Path, *, kills: int, epochs: int) -> dict[str, Any]:
    dataset = generate_scenes(folder / "small", config=SceneConfig(clips=2_000, classes=15))
    plan = {"refresh_every": 60, "window": 40, "lag": 12, "bootstraps": 200}
    config = configure(dataset, 64, epochs, 6, teacher=True, **plan)
    held = Held.of(config, dataset, CPU)
    whole = Run(config, dataset, held, folder / "whole")
    length, _ = whole.seconds()
    expected = fingerprint(folder / "whole")
    generator = random.Random(0)
    equal, killed, waits = 0, 0, []
    for number in range(kills):
        run = Run(config, dataset, held, folder / f"killed-{number}")
        step, later = generator.randrange(run.training.num_steps), generator.uniform(0.0, 0.2)
        killer = threading.Thread(target=kill, args=(run, step, later))
        killer.start()
        took, _ = run.seconds()
        killer.join()
        killed += ray.get(run.actor.pid.remote()) != run.pid
        same = fingerprint(folder / f"killed-{number}") == expected
        equal += same
        waits.append(took)
        print(
            f"killed at step {step} of {run.training.num_steps}: {'equal' if same else 'NOT EQUAL'}, {took:.1f} s",
            flush=True,
        )
    return {
        "kills": killed,
        "equal": equal,
        "undisturbed_s": round(length, 1),
        "killed_s": round(statistics.median(waits), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    METHODS["classified"] = Classified
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    keep_freed_memory()
    with TemporaryDirectory() as scratch, local_ray(2, int(3e8)):
        folder = Path(scratch)
        dataset = generate_scenes(folder / "data", config=SceneConfig(clips=3_000, classes=15))
        found = throughput(
            folder / "steady", dataset, cycles=2 if short else 7, epochs_of_cycle=6 if short else 20
        )
        if not short:
            found["every_40"] = throughput(folder / "seldom", dataset, cycles=7, epochs_of_cycle=40)
        found |= deaths(folder, kills=1 if short else 20, epochs=25 if short else 40)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
